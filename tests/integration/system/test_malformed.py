"""Malformed requests of every kind among good ones, at a runtime, at a gateway and at a KeyService (issue: bad input).

Every good request is answered right, nobody crashes, memory stays, and no cache is poisoned.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.base.errors import Unavailable
from cloister.base.ids import ModelId
from cloister.client.client import Client
from cloister.testing.malformed import (
    INSIDE,
    KEYSERVICE,
    OUTSIDE,
    TO_KEYSERVICE,
    Forge,
    Malformed,
    code_in_reply,
    code_inside,
)
from cloister.testing.models import small
from cloister.testing.scene import Scene, pss_mb

pytestmark = pytest.mark.xdist_group("system")
COLUMNS = 16
WEIGHTS = np.random.default_rng(3).random((COLUMNS, COLUMNS), np.float32)
CODES = set(
    re.findall(
        r"^\| `([a-z0-9-]+)`", (Path(__file__).parents[3] / "docs/reference/errors.md").read_text(), re.MULTILINE
    )
)
GOOD_EVERY = 20


@dataclass
class Front:
    """Where malformed requests go: a gateway, or an instance itself."""

    name: str
    address: str
    pids: Callable[[], dict[str, int]]


class Barrage:
    """Sends them, and checks each answer."""

    def __init__(self, scene: Scene, model: ModelId, user: Client, front: Front, seed: int) -> None:
        self.scene = scene
        self.front = front
        self.user = scene.at(user, front.address)
        self.forge = Forge(self.user, model, COLUMNS, seed)
        self.rng = np.random.default_rng(seed)
        self.model = model
        self.codes: Counter[tuple[str, str]] = Counter()

    def good(self) -> None:
        x = self.rng.random((3, COLUMNS), np.float32)
        np.testing.assert_allclose(self.user.infer(self.model, {"x": x})["y"], x @ WEIGHTS, rtol=1e-4)

    def bad(self, forged: Malformed) -> None:
        to_keyservice = forged.service == KEYSERVICE
        address = self.scene.keyservice if to_keyservice else self.front.address
        try:
            answer = self.scene.post(address, forged.target, forged.data)
        except Unavailable as error:  # too large: refused, and the connection closed, before all of it was sent
            if error.code not in ("no-answer", "answer-truncated") or len(forged.data) < 250_000:
                raise
            return
        if answer.status == 200:
            body = bytes(answer.body)
            if to_keyservice:
                assert forged.kind == "a call with rubbish inside", (
                    forged.kind
                )  # its answer is sealed, to whoever asked
                return
            code = code_inside(forged, body)
        else:
            assert 400 <= answer.status < 500 or answer.status == 503, (forged.kind, answer.status)
            code = code_in_reply(answer.body)
        assert code in CODES, (forged.kind, code)
        assert code not in ("ok", "internal", "internal-error"), (forged.kind, code)
        self.codes[forged.kind, code] += 1

    def run(self, count: int) -> None:
        self.good()
        pids, memory = self.front.pids(), {}
        for number, forged in enumerate(self.forge.stream(count)):
            self.bad(forged)
            if number % GOOD_EVERY == 0:
                self.good()
            if number == count // 4:
                memory = {name: pss_mb(pid) for name, pid in pids.items()}
        self.good()
        assert self.front.pids() == pids, "nobody crashed"
        grown = {name: pss_mb(pid) - memory[name] for name, pid in pids.items()}
        assert max(grown.values()) < 12, grown
        if count >= len(OUTSIDE) + len(INSIDE) + len(TO_KEYSERVICE):
            kinds = {kind for kind, _ in self.codes}
            assert kinds >= (OUTSIDE.keys() | INSIDE.keys() | TO_KEYSERVICE.keys()) - {
                "too large a call",
                "a call with rubbish inside",
            }


@pytest.fixture(scope="module")
def served(scene: Scene) -> Iterator[tuple[ModelId, Client]]:
    owner, user = scene.person("owner"), scene.person("user-who-misbehaves")
    yield scene.offer(owner, "target", small.matrix(WEIGHTS), user), user
    owner.retire("target")


def fronts(scene: Scene, which: str) -> Front:
    def services() -> dict[str, int]:
        return {name: process.pid for name, process in scene.cloud.processes.items()}

    if which == "gateway":
        return Front(which, scene.gateway, lambda: services() | {there.name: there.pid for there in scene.instances()})
    runtime = scene.runtime()
    pid = runtime.process.pid

    def pids() -> dict[str, int]:
        assert runtime.process.poll() is None, runtime.log.read_text()
        return services() | {"runtime": pid}

    return Front(which, runtime.address, pids)


def barrage(scene: Scene, served: tuple[ModelId, Client], which: str, count: int, seed: int) -> None:
    model, user = served
    front = fronts(scene, which)
    made = Barrage(scene, model, user, front, seed)
    made.run(count)
    status = (
        scene.get(front.address, "/v1/status")
        if which == "runtime"
        else scene.get(scene.instances()[0].address, "/v1/status")
    )
    assert str(model) in repr(status["models"]), "the model is still there"
    assert status["in_flight"] == status["queued"] == 0
    logs = b"".join(path.read_bytes() for path in [*scene.cloud.log_files, *scene.folder.glob("runtime-*.log")])
    assert b"internal-error" not in logs
    assert b"Traceback" not in logs
    entries = scene.person("owner").whoami()  # the KeyService answers, in order
    assert entries["id"] == scene.person("owner").account.identity.id


@pytest.mark.parametrize("which", ["runtime", "gateway"])
def test_five_hundred_malformed_requests_among_good_ones(scene: Scene, served: Any, which: str) -> None:
    barrage(scene, served, which, 250, seed=11)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("which", ["runtime", "gateway"])
def test_ten_thousand_malformed_requests_among_good_ones(scene: Scene, served: Any, which: str) -> None:
    barrage(scene, served, which, int(os.environ.get("CLOISTER_MALFORMED", "5000")), seed=12)
