"""Sixteen clients, three models, one instance; processes killed meanwhile; nothing lost, nothing wrong."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from cloister.base.ids import ModelId
from cloister.client.client import Client
from cloister.engines.port import ModelParts
from cloister.engines.registry import engine
from cloister.testing.models import small
from cloister.testing.models.vision import mobilenet_v1
from cloister.testing.scene import Scene, pss_mb
from cloister.wire.statements import REQUEST_KEY, SERVICE_KEY

pytestmark = pytest.mark.xdist_group("system")
CLIENTS = 16
SIDE = 2560


@dataclass(frozen=True)
class Offered:
    """A model, how to ask it, and what is right."""

    model: ModelId
    make: Callable[[np.random.Generator], dict[str, Any]]
    right: Callable[[dict[str, Any]], dict[str, Any]]
    weights_mb: float


@dataclass(frozen=True)
class Together:
    scene: Scene
    clients: list[Client]
    models: list[Offered]

    def ask(self, number: int, turn: int) -> None:
        """One client asks one model, and compares with the raw engine."""
        generator = np.random.default_rng(1000 * number + turn)
        offered = self.models[(number + turn) % len(self.models)]
        inputs = offered.make(generator)
        found = self.clients[number].infer(offered.model, inputs)
        for name, value in offered.right(inputs).items():
            np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=1e-4)

    def all_ask(self, turns: int) -> None:
        """All of them at once, so many times each."""

        def client(number: int) -> None:
            for turn in range(turns):
                self.ask(number, turn)

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(client, range(CLIENTS)))

    def keep_asking(self, stop: threading.Event) -> list[int]:
        """All of them until told to stop; how often each was answered right."""

        def client(number: int) -> int:
            count = 0
            while not stop.is_set():
                self.ask(number, count)
                count += 1
            return count

        with ThreadPoolExecutor(CLIENTS) as pool:
            return list(pool.map(client, range(CLIENTS)))


def by_engine(onnx: bytes) -> Callable[[dict[str, Any]], dict[str, Any]]:
    session = engine("onnx").load(ModelParts(onnx), threads=1)
    return lambda inputs: dict(session.run(inputs, [spec.name for spec in session.outputs]))


@pytest.fixture(scope="module")
def together(scene: Scene) -> Iterator[Together]:
    owner = scene.person("owner")
    clients = [scene.person(f"user-{number}") for number in range(CLIENTS)]
    mobilenet = mobilenet_v1().onnx
    matrices = [np.random.default_rng(seed).random((SIDE, SIDE), np.float32) for seed in (1, 2)]
    first, second = (small.matrix(matrix) for matrix in matrices)
    models = [
        Offered(
            scene.offer(owner, "mobilenet", mobilenet, *clients),
            lambda generator: {"input": generator.random((1, 224, 224, 3), np.float32)},
            by_engine(mobilenet),
            17.0,
        ),
        *(
            Offered(
                scene.offer(owner, name, onnx, *clients, mode=mode),
                lambda generator: {"x": generator.random((1, SIDE), np.float32)},
                lambda inputs, matrix=matrix: {"y": inputs["x"] @ matrix},
                SIDE * SIDE * 4 / 2**20,
            )
            for name, onnx, matrix, mode in (
                ("first", first, matrices[0], REQUEST_KEY),
                ("second", second, matrices[1], SERVICE_KEY),
            )
        ),
    ]
    yield Together(scene, clients, models)
    for offered in models:
        owner.retire(offered.model.name)


def test_sixteen_clients_share_one_copy_of_each_of_three_models(together: Together) -> None:
    scene = together.scene
    together.scene.kill_instances()
    tiny = scene.offer(scene.person("owner"), "tiny", small.identity(shape=(-1, 3)), together.clients[0])
    together.clients[0].infer(tiny, {"x": np.ones((1, 3), np.float32)})
    (instance,) = scene.instances()
    before = pss_mb(instance.pid)
    rounds = [before]
    for _ in range(5):
        together.all_ask(1)
        rounds.append(pss_mb(instance.pid))
    assert [there.pid for there in scene.instances()] == [instance.pid], "one instance served them all"
    status = scene.get(instance.address, "/v1/status")
    assert len(status["models"]) == 4
    weights = sum(offered.weights_mb for offered in together.models)
    after = rounds[-1]
    # A second copy of each would be `weights` more; what sixteen requests hold beside (tensors, engine memory) is not.
    assert after - before < 1.5 * weights + 20, f"{after - before:.0f} MB for {weights:.0f} MB of weights"
    # Buffers come as more requests meet; but if requests kept what they use (10 MB of images), every round would grow.
    growth = [later - sooner for sooner, later in pairwise(rounds)]
    assert min(growth) < 5, f"each round of requests took {[round(grown) for grown in growth]} MB more"


def test_no_request_is_lost_when_the_instance_is_killed(together: Together) -> None:
    scene = together.scene
    together.all_ask(1)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(together.keep_asking, stop)
        try:
            seen: set[int] = set()
            for _ in range(3):
                scene.until(lambda: asking.done() or {there.pid for there in scene.instances()} - seen)
                (instance,) = scene.instances()
                scene.until(
                    lambda address=instance.address: (
                        asking.done()
                        or (scene.answers(address, "/readyz") and scene.get(address, "/v1/status")["in_flight"] > 0)
                    )
                )
                seen.add(instance.pid)
                assert scene.kill_instances() == 1
        finally:
            stop.set()
        counts = asking.result()
    assert len(seen) == 3
    assert min(counts) >= 1
    together.all_ask(1)


def test_the_keyservice_is_killed_and_restarted_meanwhile(together: Together) -> None:
    scene = together.scene
    together.all_ask(1)
    owner, other = scene.person("owner"), scene.person("granted-before-the-kill")
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(together.keep_asking, stop)
        try:
            for _ in range(2):
                entry = owner.grant("first", other.account.identity.id, scene.cloud.runtime_policy())["entry"]
                scene.restart_keyservice(meanwhile=lambda: time.sleep(0.5))  # as long as an operator's restart takes
                kept = [item for item in owner.access() if item.get("entry") == entry]
                assert kept, "what was acknowledged before the kill is there after it"
                time.sleep(3.5)  # a lease: each has to be renewed from the new process
        finally:
            stop.set()
        counts = asking.result()
    assert min(counts) >= 1


def test_a_service_key_is_attested_once_and_any_instance_answers(together: Together) -> None:
    """Also one that is started later; nothing more is asked of the KeyService by the client."""
    scene = together.scene
    user = scene.person("service-key-user")
    owner, policy = scene.person("owner"), scene.cloud.runtime_policy()
    offered = together.models[2]
    owner.grant(offered.model.name, user.account.identity.id, policy)
    user.consent(offered.model, policy, mode=SERVICE_KEY)
    inputs = offered.make(np.random.default_rng(5))

    def check() -> None:
        found = user.infer(offered.model, inputs)
        np.testing.assert_allclose(found["y"], offered.right(inputs)["y"], rtol=2e-3)

    check()
    first = scene.instances()
    key = user.keys.key(offered.model)
    asked: list[str] = []
    link, transport, profile = user.account.link, user.account.link._transport, user.profile

    class Watched:
        """The KeyService, and what is asked of it."""

        def get(self, path: str, *, limit: int) -> bytes:
            asked.append(path)
            return transport.get(path, limit=limit)

        def post(self, path: str, body: bytes, *, limit: int) -> bytes:
            asked.append(path)
            return transport.post(path, body, limit=limit)

    link._transport = Watched()
    try:
        scene.kill_instances()
        check()
        assert scene.instances()[0].pid != first[0].pid
        later = scene.runtime()
        user.profile = dataclasses.replace(profile, gateway=later.address)
        check()
        later.stop()
    finally:
        link._transport, user.profile = transport, profile
    assert not asked
    assert user.keys.key(offered.model) == key
