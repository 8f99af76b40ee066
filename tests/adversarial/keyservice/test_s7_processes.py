"""S7 against real processes: an attacker who owns the KeyService's disk and network; two of three witnesses sign."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.adapters.http.blocking import HttpClient
from cloister.base.errors import CloisterError, Refused, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import SNAPSHOT_LEAST
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.keyservice.storage.place import STORE_FILE
from cloister.keyservice.storage.port import NewEntry
from cloister.keyservice.storage.sealed import SealedStore
from cloister.keyservice.storage.sqlite import SqliteRows
from cloister.log.entry import STATEMENT, Entry
from cloister.log.receipt import check_statement_receipt
from cloister.log.witness import require_quorum
from cloister.testing.embedded import attest_request
from cloister.testing.keyservice_clone import clone, snapshot
from cloister.testing.keyservice_process import HttpCaller, KeyServiceProcess
from cloister.testing.people import Person, simulation_policy
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import WitnessProcess
from cloister.wire import calls, provisioning
from cloister.wire.checkpoint import AddCheckpoint, Checkpoint
from cloister.wire.provisioning import Release, ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Body,
    Consent,
    DefinePolicy,
    Grant,
    PublishModel,
    RevokeGrant,
    Validity,
    key_commitment,
)

MODEL_KEY, REQUEST = SecretBytes(b"M" * 32), SecretBytes(b"Q" * 32)
PLATFORM = b"p" * 32


class Scene:
    """Everything up, a grant and a consent; the KeyService may be replaced by copies of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.witnesses = [WitnessProcess(folder / f"w{number}") for number in range(3)]
        for witness in self.witnesses:
            witness.start()
        keys = ", ".join(f'"{witness.key.public_key.hex()}"' for witness in self.witnesses)
        (folder / "ks").mkdir()
        addresses = [word for witness in self.witnesses for word in ("--witness", witness.address)]
        self.process = KeyServiceProcess(
            folder / "ks",
            settings=f'rollback_protection = "witnesses"\nwitnesses = [{keys}]\nwitness_threshold = 2\n'
            f'simulation_keys = ["{simulation_key()}"]\n',
            arguments=tuple(addresses),
        )
        for witness in self.witnesses:
            witness.add(self.process.root.log_key.public_key)  # told while they run
        self.processes = [self.process]
        self.callers: list[HttpCaller] = []
        self.tee = SimulatedTee("runtime", key=self.process.platform, clock=self.process.clock)
        self.process.start()
        caller = self.caller()
        self.owner, self.user = (Person(self.process.root.id, self.process.clock) for _ in range(2))
        policy = self.tee.policy()
        for person in (self.owner, self.user):
            self.say(caller, person.register())
            self.say(caller, person.statement(DefinePolicy(policy.encode())))
        self.model = ModelId(self.owner.id, "model")
        body = PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))
        self.say(caller, self.owner.statement(body), MODEL_KEY)
        self.grant = Grant("model", self.user.id, policy.digest, Validity(), 0)
        self.say(caller, self.owner.statement(self.grant))
        consent = Consent(self.model, policy.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
        self.say(caller, self.user.statement(consent), REQUEST)
        self.request = ReleaseRequest(self.user.id, self.model, REQUEST_KEY, key_commitment(REQUEST))

    def caller(self, process: KeyServiceProcess | None = None) -> HttpCaller:
        caller = HttpCaller((process or self.process).address)
        self.callers.append(caller)
        return caller

    def say(self, caller: HttpCaller, statement: bytes, *keys: SecretBytes) -> None:
        result = caller.call(calls.STATEMENT, statement, keys)
        receipt = check_statement_receipt(result, statement, self.process.root.log_keys)
        require_quorum(
            self.process.root.id,
            receipt.head,
            witnesses=[witness.key.public_key for witness in self.witnesses],
            threshold=2,
            now=self.process.clock.now(),
        )

    def tell(self, caller: HttpCaller, body: Body) -> None:
        self.say(caller, self.owner.statement(body))

    def release(self, caller: HttpCaller) -> Release:
        request, key = attest_request(self.tee, caller.post("/v1/challenge", b"", limit=1024))
        session = provisioning.accept_session(caller.call(calls.ATTEST, request.encode()), request, key)
        data = provisioning.seal_session_call(session, 1, self.request.fields())
        reply = caller.post("/v1/session", data, limit=2**20)
        return Release.read(provisioning.open_session_reply(session, data, reply))

    def twin(self, state: Path) -> KeyServiceProcess:
        found = clone(self.process, self.folder / f"twin-{len(self.processes)}", state)
        self.processes.append(found)
        found.start()
        return found

    def nothing_leaves(self, process: KeyServiceProcess, code: str) -> None:
        caller = self.caller(process)
        for attempt in (lambda: self.release(caller), lambda: self.tell(caller, self.grant)):
            with pytest.raises(Unavailable) as caught:
                attempt()
            assert caught.value.code == code
        assert "confirmed" in caller.call(calls.QUERY, self.owner.query("whoami", {}))

    def metrics(self, process: KeyServiceProcess) -> dict[str, str]:
        text = self.caller(process).get("/metrics", limit=2**20)
        rows = [line.split(" ") for line in bytes(text).decode().splitlines() if not line.startswith("#")]
        return {row[0]: row[-1] for row in rows}

    def close(self) -> None:
        for caller in self.callers:
            caller.close()
        for process in (*self.processes, *self.witnesses):
            process.kill()


def simulation_key() -> str:
    return SigningKey.from_seed(SecretBytes(PLATFORM)).public_key.hex()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def test_s7_restoring_the_disk_releases_nothing_and_the_true_one_goes_on(scene: Scene) -> None:
    caller = scene.caller()
    assert scene.release(caller).key == REQUEST
    old = snapshot(scene.process, scene.folder / "old")
    scene.tell(caller, RevokeGrant("model", scene.user.id))
    newest = caller.head()
    scene.process.kill()
    restored = scene.twin(old)
    scene.nothing_leaves(restored, "keyservice-superseded")
    assert scene.metrics(restored)["cloister_keyservice_confirmed"] == "0"
    assert '"code":"keyservice-superseded"' in restored.log.read_text()
    restored.kill()
    scene.process.start()
    caller = scene.caller()
    assert caller.head().size >= newest.size
    with pytest.raises(Refused) as caught:  # the revocation is there
        scene.release(caller)
    assert caught.value.code == "release-refused"
    assert scene.metrics(scene.process)["cloister_keyservice_confirmed"] == "1"


def test_s7_two_live_copies_never_both_release(scene: Scene) -> None:
    """Both run, both under load, both reach all witnesses: what is released is one history."""
    twin = scene.twin(snapshot(scene.process, scene.folder / "copy"))
    released: dict[str, list[Release]] = {"first": [], "twin": []}
    barrier = threading.Barrier(2)

    def many(name: str, process: KeyServiceProcess) -> None:
        caller = scene.caller(process)
        barrier.wait(30)
        for _ in range(10):
            try:
                released[name].append(scene.release(caller))
            except CloisterError:
                continue

    threads = [
        threading.Thread(target=many, args=("first", scene.process)),
        threading.Thread(target=many, args=("twin", twin)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert sorted(map(bool, released.values())) == [False, True]
    loser = twin if released["first"] else scene.process
    scene.nothing_leaves(loser, "keyservice-superseded")


def test_s7_kill_9_of_witnesses_and_keyservice_loses_nothing(scene: Scene) -> None:
    for round_ in range(3):
        caller = scene.caller()
        scene.tell(caller, replace(scene.grant, quota=round_ + 1))
        before = caller.head()
        scene.witnesses[round_].kill()
        scene.tell(caller, scene.grant)  # two of three are enough
        scene.process.kill()
        scene.witnesses[round_].start()
        scene.process.start()
        after = scene.caller().head()
        assert after.size >= before.size + 1


def test_s7_witnesses_away_then_back(scene: Scene) -> None:
    for witness in scene.witnesses[:2]:
        witness.kill()
    scene.nothing_leaves(scene.process, "keyservice-unconfirmed")
    for witness in scene.witnesses[:2]:
        witness.start()
    caller = scene.caller()
    for _ in range(200):
        try:
            scene.tell(caller, scene.grant)
        except Unavailable as error:
            threading.Event().wait(error.retry_after)
            continue
        break
    assert scene.release(caller).key == REQUEST


def test_s7_a_witness_over_http_answers_as_c2sp_says(scene: Scene) -> None:
    client = HttpClient(scene.process.clock)
    try:

        def post(body: bytes, path: str = "/add-checkpoint") -> tuple[int, str, bytes]:
            answer = client.request("POST", scene.witnesses[0].address, path, content=body)
            return answer.status, answer.headers.get("content-type"), bytes(answer.body)

        assert post(b"noise")[0] == 400
        log = scene.process.root.log_key
        known = Checkpoint(scene.process.root.id, 3, bytes(32))
        assert post(AddCheckpoint(0, (), known.sign(log)).encode())[:2] == (409, "text/x.tlog.size")
        size = int(post(AddCheckpoint(0, (), known.sign(log)).encode())[2])
        assert post(AddCheckpoint(0, (), known.sign(scene.process.platform)).encode())[0] == 403
        unknown = Checkpoint(bytes(32), 3, bytes(32))
        assert post(AddCheckpoint(0, (), unknown.sign(log)).encode())[0] == 404
        forged = Checkpoint(scene.process.root.id, size + 1, bytes(32))
        assert post(AddCheckpoint(size, (bytes(32),), forged.sign(log)).encode())[0] == 422
        assert post(AddCheckpoint(size + 2, (), forged.sign(log)).encode())[0] == 400
        assert post(b"x" * 20_000)[0] == 413
    finally:
        client.close()


def test_s7_a_keyservice_that_began_from_a_snapshot_ends_when_its_scrub_finds_a_change(tmp_path: Path) -> None:
    """And does not start any more: by then it is told without a scrub."""
    process = KeyServiceProcess(tmp_path)
    database = process.state / STORE_FILE
    person = Person(process.root.id, process.clock)
    store, now = SealedStore(SqliteRows(database), process.root.store_key, process.root.id), int(process.clock.now())
    assert len(list(store.load())) == 1
    policies = (simulation_policy(number.to_bytes(48, "big")) for number in range(1, SNAPSHOT_LEAST + 5))
    said = [person.register(), *(person.statement(DefinePolicy(policy.encode())) for policy in policies)]
    store.append([NewEntry(Entry(STATEMENT, now, bytes(32), statement).encode()) for statement in said])
    store.close()
    process.start()
    assert process.stop() == 0
    assert '"event":"snapshot"' in process.log.read_text()
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("UPDATE entries SET record = (SELECT record FROM entries WHERE idx = 6) WHERE idx = 5")
    connection.close()
    process.start()  # what is wrong lies before the snapshot
    assert process.wait() not in (0, None)
    log = process.log.read_text()
    assert '"event":"snapshot-read"' in log
    assert any('"event":"store-tampered"' in line and '"code":"store-record"' in line for line in log.splitlines())
    assert "Traceback" not in log
    with pytest.raises(Unavailable, match="store-record"):
        process.start()
