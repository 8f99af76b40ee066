"""The KeyService as a process: killed at random moments, restarted, drained, refused."""

from __future__ import annotations

import random  # noqa: TID251  # a seeded choice of moments, nothing secret
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.keyservice import KeyServiceLink, VolatileHeads
from cloister.attest.bundle import TrustBundle
from cloister.attest.policy import Policy, Rule
from cloister.attest.types import TeeType
from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.log.entry import Entry
from cloister.log.merkle import verify_consistency, verify_inclusion
from cloister.log.receipt import Receipt, check_statement_receipt
from cloister.testing.authority import Authority
from cloister.testing.collateral import NoCollateral
from cloister.testing.keyservice_process import HttpCaller, KeyServiceProcess
from cloister.testing.people import Person
from cloister.wire import calls, cbor
from cloister.wire.calls import Description, LogHead
from cloister.wire.statements import Grant, PublishModel, Validity, key_commitment

CLIENTS = 16
STATEMENTS = 1_000
KILLS = 5


@pytest.fixture
def process(tmp_path: Path) -> Iterator[KeyServiceProcess]:
    process = KeyServiceProcess(tmp_path)
    yield process
    process.kill()


class Scene:
    """Sixteen clients that go on whatever happens, and what was acknowledged to them."""

    def __init__(self, process: KeyServiceProcess) -> None:
        self.process = process
        self.changed = threading.Condition()
        self.acknowledged: list[tuple[Person, int, bytes, Receipt]] = []
        self.errors: list[BaseException] = []
        self.generation = 0
        self.interrupted = 0
        self.people = [Person(process.root.id, process.clock) for _ in range(CLIENTS)]

    def done(self) -> bool:
        return len(self.acknowledged) >= STATEMENTS or bool(self.errors)

    def client(self, person: Person) -> None:
        try:
            self._client(person)
        except BaseException as error:  # noqa: BLE001  # the main thread tells of it
            with self.changed:
                self.errors.append(error)
                self.changed.notify_all()

    def _client(self, person: Person) -> None:
        generation, caller = 0, None
        version, registered = 0, False
        while not self.done():
            with self.changed:
                self.changed.wait_for(lambda g=generation: self.generation > g or self.done())  # type: ignore[misc]
                generation = self.generation
            try:
                caller = HttpCaller(self.process.address)
                if not registered:
                    registered = self._say_register(caller, person)
                while not self.done():
                    version += 1
                    key = SecretBytes(person.id[:16] + version.to_bytes(16, "big"))
                    name = key_commitment(key)
                    self.say(caller, person, PublishModel("model", version, name, name), key)
                    if version % 7 == 0:  # a denied statement leaves nothing wedged
                        with pytest.raises(Refused):
                            self.say(caller, person, Grant("model", bytes(32), bytes(32), Validity(), 0))
            except (Unavailable, InvalidInput):  # cut off, or the epoch went with its process
                self.interrupted += 1
            finally:
                if caller is not None:
                    caller.close()

    def _say_register(self, caller: HttpCaller, person: Person) -> bool:
        """It may be durable already, and its acknowledgement lost."""
        try:
            caller.call(calls.STATEMENT, person.register())
        except Refused as error:
            return error.code == "identity-known"
        return True

    def say(self, caller: HttpCaller, person: Person, body: Any, *keys: SecretBytes) -> None:
        statement = person.statement(body)
        result = caller.call(calls.STATEMENT, statement, keys)
        receipt = check_statement_receipt(result, statement, self.process.root.log_keys)
        with self.changed:
            self.acknowledged.append((person, result["entry"], statement, receipt))
            self.changed.notify_all()


def test_every_acknowledged_statement_survives_kill_9(process: KeyServiceProcess) -> None:
    scene = Scene(process)
    chance = random.Random(20261122)
    moments = sorted(chance.sample(range(20, STATEMENTS - 20), KILLS))
    threads = [threading.Thread(target=scene.client, args=(person,)) for person in scene.people]
    for thread in threads:
        thread.start()
    for moment in [*moments, STATEMENTS]:
        process.start()
        with scene.changed:
            scene.generation += 1
            scene.changed.notify_all()
            scene.changed.wait_for(lambda m=moment: len(scene.acknowledged) >= m or scene.errors)  # type: ignore[misc]
        if moment < STATEMENTS:
            process.kill()
    for thread in threads:
        thread.join(60)
    assert not scene.errors
    assert scene.interrupted >= KILLS

    caller = HttpCaller(process.address)
    try:
        there: dict[int, bytes] = {}
        for person in scene.people:
            after = 0
            while after >= 0:
                page = caller.call(calls.QUERY, person.query("events", {"after": after}))
                head = LogHead.read(page["head"])
                for item in page["items"]:
                    entry = Entry.decode(item["entry"])
                    verify_inclusion(entry.leaf(), item["index"], head.size, item["inclusion"], head.root)
                    there[item["index"]] = entry.body
                after = page["next"]
        missing = [index for _, index, statement, _ in scene.acknowledged if there.get(index) != statement]
        assert missing == []
        assert len(scene.acknowledged) >= STATEMENTS
        final = caller.head()
        for head in {receipt.head.size: receipt.head for *_, receipt in scene.acknowledged}.values():
            asked = cbor.encode({"first": head.size, "second": final.size})
            proof = cbor.decode(caller.post("/v1/consistency", asked, limit=8192), limit=8192, what="proof")["proof"]
            verify_consistency(head.size, head.root, final.size, final.root, proof)
    finally:
        caller.close()


def test_sigterm_drains_and_the_address_goes(process: KeyServiceProcess) -> None:
    process.start()
    assert (process.state / "address").read_text().strip() == process.address
    caller = HttpCaller(process.address)
    person = Person(process.root.id, process.clock)
    caller.call(calls.STATEMENT, person.register())
    caller.close()
    assert process.stop() == 0
    assert not (process.state / "address").exists()
    process.start()
    caller = HttpCaller(process.address)
    assert caller.call(calls.QUERY, person.query("whoami"))["id"] == person.id
    caller.close()


def test_a_second_process_and_another_configuration_are_refused(process: KeyServiceProcess) -> None:
    process.start()
    second = KeyServiceProcess.__new__(KeyServiceProcess)
    second.__dict__.update(process.__dict__, _process=None)
    with pytest.raises(Unavailable) as caught:
        second.start()
    assert "store-locked" in caught.value.message or "has the store" in process.log.read_text()
    process.stop()
    process.configuration.write_text("lease_s = 1\n")  # S7, S9: the operator's own configuration cannot unseal
    with pytest.raises(Unavailable):
        process.start()
    assert "unseal-failed" in process.log.read_text()


def test_a_caller_attests_it_under_a_trust_bundle(tmp_path: Path) -> None:
    author = SigningKey.from_seed(SecretBytes(b"a" * 32))
    path = tmp_path / "bundle"
    process = KeyServiceProcess(
        tmp_path,
        settings=f'bundle_root = "{author.public_key.hex()}"\nbundle_version = 1\n',
        arguments=("--bundle", str(path)),
    )
    rule = {
        "measurement": [process.tee.measurement],
        "minimum_security_version": 0,
        "maximum_age_s": 3600,
        "configuration": [process.settings.measured().digest],
        "isolation": "any-isolation",
    }
    now = int(process.clock.now())

    def bundle(**changed: Any) -> TrustBundle:
        values: dict[str, Any] = {
            "root": author.public_key,
            "version": 1,
            "name": "test",
            "issued_at": now - 10,
            "expires_at": now + 3600,
            "keyservice": Policy((Rule.of("keyservice", TeeType.SIMULATION, rule),)),
            "accept_simulation": True,
            "simulation_keys": (process.platform.public_key,),
            "accept_rollback_unsafe": True,
        }
        return TrustBundle(**(values | changed))

    path.write_bytes(bundle().sign(author))
    try:
        process.start()
        caller = HttpCaller(process.address)
        person = Person(process.root.id, process.clock)

        def link(trusted: TrustBundle) -> KeyServiceLink:
            return KeyServiceLink(
                caller, bundle=lambda: trusted, collateral=NoCollateral(), clock=process.clock, heads=VolatileHeads()
            )

        trusting = link(bundle())
        trusting.call(calls.STATEMENT, lambda _: person.register())
        assert trusting.call(calls.QUERY, lambda _: person.query("whoami"))["id"] == person.id
        assert trusting.attested().description.keyservice == process.root.id
        for changed, code in (
            ({"accept_rollback_unsafe": False}, "keyservice-bundle-differs"),
            ({"version": 2}, "keyservice-bundle-differs"),
            ({"simulation_keys": (author.public_key,)}, "simulation-refused"),
        ):
            with pytest.raises(Refused) as caught:
                link(bundle(**changed)).attested()
            assert caught.value.code == code
        caller.close()
    finally:
        process.kill()


def test_hostile_bytes_get_one_answer_and_break_nothing(process: KeyServiceProcess) -> None:
    process.start()
    caller = HttpCaller(process.address)
    person = Person(process.root.id, process.clock)
    caller.call(calls.STATEMENT, person.register())
    good = calls.seal_call(caller.description, calls.QUERY, person.query("whoami")).data
    seen = set()
    for number in range(300):
        bad = bytearray(good)
        bad[(number * 37) % len(bad)] ^= 1 << number % 8
        for path, body in (("/v1/call", bytes(bad)), ("/v1/session", bytes(bad)), ("/v1/call", good[: number * 4])):
            try:
                caller.post(path, body, limit=1 << 20)
                seen.add("answered")
            except CloisterError as error:
                seen.add(error.code)
    assert seen <= {"call-refused", "call-epoch-gone"}
    with pytest.raises(CloisterError) as caught:
        caller.post("/v1/call", bytes(300 * 1024), limit=4096)
    assert caught.value.code == "body-too-large"
    assert caller.call(calls.QUERY, person.query("whoami"))["id"] == person.id
    caller.close()


def test_it_speaks_tls_when_told_to(process: KeyServiceProcess, tmp_path: Path) -> None:
    authority = Authority(tmp_path, process.clock.now())
    certificate, key = authority.issue("127.0.0.1")
    process.start("--tls-cert", str(certificate), "--tls-key", str(key))
    assert process.address.startswith("https://")
    client = HttpClient(process.clock, tls=authority.client_context())
    try:
        description = Description.decode(client.request("GET", process.address, "/v1/description").body)
        assert description.keyservice == process.root.id
    finally:
        client.close()
    assert process.stop() == 0
