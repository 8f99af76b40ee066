"""KeyService, gateway and two runtimes in containers on a private network: containers fail, no request is lost.

Every client checks every answer against the raw engine. What the gateway counts must be what clients asked: a request
that was lost, or that a client had to send again, would be one more there.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from cloister import Client
from cloister.client.identity import create_identity
from cloister.testing.containers import Engine
from cloister.testing.demonstration.serving import VISION, equal, raw_session
from cloister.testing.fleet_cloud import FleetCloud
from cloister.testing.models.patients import patient_model
from cloister.testing.operator import Operator

pytestmark = pytest.mark.timeout(300)
USERS = ("bob", "carol", "dave", "erin")
PATIENTS = "breast-cancer"
# A user's turns: mostly small models, so that many requests are under way when something happens.
TURNS = (PATIENTS, "mobilenet-v1", PATIENTS, PATIENTS, "mobilenet-v1", PATIENTS, "densenet121", PATIENTS)


@dataclass(frozen=True)
class Question:
    """A model, inputs, and what the raw engine says."""

    model: str
    inputs: dict[str, Any]
    output: str
    expected: Any


@pytest.fixture(scope="module")
def cloud(
    engine: Engine, image: str, gateway_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FleetCloud]:
    folder = tmp_path_factory.mktemp("fleet") / "state"
    cloud = FleetCloud(folder, engine, image, gateway_image, concurrency=2, memory_mb=1024, keep_alive_s=300)
    try:
        cloud.start()
        yield cloud
    finally:
        cloud.stop()
        cloud.remove_network()


@pytest.fixture(scope="module")
def questions(cloud: FleetCloud, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Question]]:
    """Of each model a few, with answers; alice packs and publishes, and every user may ask."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("alice", *USERS):
        create_identity(cloud.home, name)
    patients = patient_model()
    models = {PATIENTS: patients.onnx, **{name: build().onnx for name, build in VISION.items()}}
    images = np.random.Generator(np.random.PCG64(7)).random((2, 1, 224, 224, 3), dtype=np.float32)
    inputs: dict[str, list[Any]] = {name: list(images) for name in VISION}
    inputs[PATIENTS] = [patients.test_inputs, *(row[None, :] for row in patients.test_inputs[:8])]
    policy = cloud.runtime_policy()
    asked: dict[str, list[Question]] = {}
    with Client.open(cloud.home, "alice") as alice:
        alice.register()
        for name, onnx in models.items():
            source = folder / f"{name}.onnx"
            source.write_bytes(onnx)
            alice.pack(source, folder / name, name=name)
            alice.publish(folder / name)
        for user in USERS:
            with Client.open(cloud.home, user) as client:
                client.register()
                for name in models:
                    alice.grant(name, client.account.identity.id, policy)
                    client.consent(alice.own_model(name), policy)
    for name, onnx in models.items():
        raw = raw_session(onnx)
        where, output = raw.inputs[0].name, raw.outputs[-1].name
        asked[name] = [Question(name, {where: x}, output, raw.run({where: x})[output]) for x in inputs[name]]
        raw.close()
    return asked


@dataclass
class Load:
    """Users who ask one question after the other, each in a thread of its own, until told to stop."""

    cloud: FleetCloud
    questions: dict[str, list[Question]]
    going: threading.Event = field(default_factory=threading.Event)
    answers: Counter[str] = field(default_factory=Counter)
    slowest: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self.going.set()
        self.threads = [threading.Thread(target=self._user, args=(n, user)) for n, user in enumerate(USERS)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.going.clear()
        for thread in self.threads:
            thread.join()

    def more(self, count: int, within_s: float = 60.0) -> None:
        """Wait until every user has so many more answers."""
        wanted = {user: self.answers[user] + count for user in USERS}
        end = time.monotonic() + within_s
        while any(self.answers[user] < number for user, number in wanted.items()):
            assert not self.lost, self.lost
            assert time.monotonic() < end, (wanted, self.answers)
            time.sleep(0.02)

    def told(self, counted: Counter[str]) -> str:
        """What became of it; nothing may be lost or wrong."""
        assert not self.lost, self.lost
        assert not self.wrong, self.wrong
        slowest = dict(self.slowest)
        return f"{self.answers.total()} answers, none lost or wrong; gateway: {dict(counted)}; slowest, ms: {slowest}"

    def _user(self, number: int, user: str) -> None:
        counts = itertools.count(number)
        with Client.open(self.cloud.home, user) as client:
            while self.going.is_set():
                turn = next(counts)
                choices = self.questions[TURNS[turn % len(TURNS)]]
                self._ask(client, user, choices[turn % len(choices)])

    def _ask(self, client: Client, user: str, question: Question) -> None:
        began = time.monotonic()
        try:
            outputs = client.infer(question.model, question.inputs)
        except Exception as error:  # noqa: BLE001  # a thread must not hide one
            self.lost.append(f"{user} {question.model} after {time.monotonic() - began:.1f} s: {error!r}")
            return
        if not equal(outputs[question.output], question.expected):
            self.wrong.append(f"{user} {question.model}")
        self.answers[user] += 1
        self.slowest[question.model] = max(self.slowest[question.model], round(1000 * (time.monotonic() - began)))


def requests(cloud: FleetCloud) -> Counter[str]:
    """What the gateway counted, by outcome."""
    assert cloud.gateway is not None
    told = Operator(cloud.folder, cloud.gateway.address).metrics()
    found: Counter[str] = Counter()
    for outcome, count in re.findall(r'cloister_gateway_requests_total\{outcome="([^"]*)"[^}]*\} (\d+)', told):
        found[outcome] += int(count)
    return found


def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def up(cloud: FleetCloud) -> set[str]:
    """Addresses of instances that the gateway may use now."""
    assert cloud.gateway is not None
    status = Operator(cloud.folder, cloud.gateway.address).status()
    return {there["host"] for there in status["instances"] if there["state"] == "ready"}


def test_every_model_of_the_demonstration_is_served_right(cloud: FleetCloud, questions: Any) -> None:
    with Client.open(cloud.home, "bob") as bob:
        for choices in questions.values():
            for question in choices:
                outputs = bob.infer(question.model, question.inputs)
                assert equal(outputs[question.output], question.expected), question.model
                assert outputs.provenance.measurement == cloud.measurement()


def test_runtimes_are_stopped_and_cut_off_without_a_lost_request(
    cloud: FleetCloud, questions: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = requests(cloud)
    with Load(cloud, questions) as load:
        load.more(4)
        until(lambda: len(up(cloud)) == 2)  # one is not enough for four users
        assert cloud.stop_runtime(0) == 0
        assert '"event":"stopped","count":0' in _events(cloud.runtimes[0].output()[1])
        load.more(4)
        cloud.restart_runtime(0)
        until(lambda: cloud.runtimes[0].ip in up(cloud))
        load.more(4)
        cut = cloud.runtimes[1].ip
        cloud.cut_off(1)
        until(lambda: cut not in up(cloud))
        load.more(4)
        cloud.mend(1)
        until(lambda: cloud.runtimes[1].ip in up(cloud))
        load.more(4)
    told = load.told(requests(cloud) - before)
    with capsys.disabled():
        print(f"\nruntimes stopped and cut off: {told}")
    assert requests(cloud) - before == Counter({"ok": load.answers.total()}), told


def test_the_keyservice_is_killed_and_restarted_without_a_lost_request(
    cloud: FleetCloud, questions: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runtimes serve on under their leases. What needs keys in that moment is told so, and sent again by its client."""
    before = requests(cloud)
    with Load(cloud, questions) as load:
        load.more(4)
        cloud.restart_keyservice()
        load.more(4)
        assert cloud.stop_runtime(1) == 0
        cloud.restart_runtime(1)  # has no session and no keys: it needs the KeyService that was restarted
        until(lambda: cloud.runtimes[1].ip in up(cloud))
        load.more(4)
    counted = requests(cloud) - before
    told = load.told(counted)
    with capsys.disabled():
        print(f"\nKeyService killed: {told}")
    assert counted.pop("ok") == load.answers.total(), told
    assert set(counted) <= {"keyservice-unavailable"}, told


def _events(text: str) -> str:
    """Log lines without their times."""
    return re.sub(r'"(time|level|service|tee)":[^,]*,', "", text)
