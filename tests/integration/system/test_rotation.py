"""The KeyService's root is rotated while people work: nobody's request is refused, and the old disk serves nobody."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cloister.base.errors import CloisterError
from cloister.base.ids import ModelId
from cloister.cli.main import main
from cloister.client.client import Client
from cloister.testing.models import small
from cloister.testing.scene import Scene, raised
from cloister.wire.statements import SERVICE_KEY

pytestmark = pytest.mark.xdist_group("rotation")


@pytest.fixture
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with raised(tmp_path_factory.mktemp("rotation"), witnesses=3) as scene:
        yield scene


class Asking:
    """Asks until it is told to stop; whatever is refused is kept."""

    def __init__(self, client: Client, model: ModelId) -> None:
        self.answered = 0
        self.errors: list[BaseException] = []
        self._client, self._model = client, model
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                found = self._client.infer(self._model, {"x": np.ones((1, 3), np.float32)})
                assert found["y"].tolist() == [[1.0, 1.0, 1.0]]
                self.answered += 1
            except BaseException as error:  # noqa: BLE001  # told by the test's thread
                self.errors.append(error)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(120)


def said(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(  # ourselves
        [sys.executable, "-m", "cloister", *arguments, "--json"], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_root_is_rotated_twice_under_load_and_the_old_one_is_dead(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    owner, user = scene.person("owner"), scene.person("user")
    model = scene.offer(owner, "tiny", small.identity(shape=(-1, 3)), user)
    sealed = scene.offer(owner, "sealed", small.identity(shape=(-1, 3)), user, mode=SERVICE_KEY)
    for name in (model, sealed):
        user.infer(name, {"x": np.ones((1, 3), np.float32)})
    old = scene.folder / "old"
    made: list[dict[str, Any]] = []

    def rotate() -> None:
        if not old.exists():
            shutil.copytree(scene.cloud.folder / "keyservice", old, ignore=shutil.ignore_patterns("control"))
        made.append(scene.cloud.rotate_root())

    asking = Asking(user, model)
    for _ in range(2):
        answered = asking.answered
        scene.restart_keyservice(rotate)
        while asking.answered < answered + 20 and not asking.errors:
            threading.Event().wait(0.01)
    scene.kill_instances()  # a fresh runtime gets its keys from the KeyService under the new root
    user.infer(sealed, {"x": np.ones((1, 3), np.float32)})
    asking.stop()
    assert not [error for error in asking.errors if not _instance_died(error)]
    owner.grant("tiny", user.account.identity.id, scene.cloud.runtime_policy())
    scene.person("newcomer")

    assert [item["generation"] for item in made] == [1, 2]
    assert made[0]["keyservice"] == made[1]["keyservice"]
    status = said("keyservice", "status", "--address", scene.keyservice)
    assert (status["keyservice"], status["generation"]) == (made[0]["keyservice"], 2)
    assert status["log_keys"][1:] == [item["log_key"] for item in made]
    export = scene.folder / "export"
    assert main(["log", "export", "--out", str(export), "--keyservice", scene.keyservice]) == 0
    assert main(["log", "verify", str(export), "--keyservice-id", status["keyservice"]]) == 0
    assert f"its root was rotated at entry {made[1]['entry']}" in capsys.readouterr().out
    shown = said("witness", "show", "--state", str(scene.cloud.folder / "witness-1"))
    assert shown["logs"][0]["generation"] == 2

    def bring_back() -> None:
        shutil.rmtree(scene.cloud.folder / "keyservice")
        shutil.copytree(old, scene.cloud.folder / "keyservice")

    scene.restart_keyservice(bring_back)
    owner.account.link.forget()
    with pytest.raises(CloisterError) as caught:
        owner.account.link.attested()
    assert caught.value.code == "keyservice-rolled-back"
    with pytest.raises(CloisterError) as caught:  # who knows nothing yet gets no acknowledgement either
        scene.person("stranger")
    assert caught.value.code in ("keyservice-unconfirmed", "keyservice-superseded")


def _instance_died(error: BaseException) -> bool:
    return isinstance(error, CloisterError) and error.code in ("instance-lost", "no-answer", "instance-died")
