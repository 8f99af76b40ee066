"""S7, S9: whoever has a retired root, the old disk and the network gets nothing believed, nothing confirmed, no key.

The thief here has everything of generation 0: the root secret and so log key, store key and replication key, the sealed
file, the disk as it was; and the network between the KeyService, its witnesses and its callers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.keyservice import KeyServiceLink, VolatileHeads
from cloister.attest.bundle import TrustBundle
from cloister.base.errors import CloisterError, Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.offline import ROOT_FILE
from cloister.keyservice.root import Root, decode_root, keep_root, open_root, root_of
from cloister.keyservice.rotation import newer, rotate_root, settled_root, stored
from cloister.keyservice.storage.chain import chain_link
from cloister.keyservice.storage.sealed import SealedStore
from cloister.log.export import ExportHeader, OpenedEntry, verify_export, write_export
from cloister.log.receipt import Receipt, check_statement_receipt, verify_receipt
from cloister.runtime.keys import RuntimeSession
from cloister.runtime.stages import Timings
from cloister.testing.clock import FakeClock
from cloister.testing.collateral import NoCollateral
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import simulation_policy
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import local_witnesses, witnessed
from cloister.wire.calls import Description, LogHead, sign_status, verify_status
from cloister.wire.checkpoint import AddCheckpoint, Checkpoint
from cloister.wire.log_keys import FollowLogKeys, KeyCertificate, LogKeys
from cloister.wire.provisioning import Release, ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Consent,
    DefinePolicy,
    Grant,
    PublishModel,
    Validity,
    key_commitment,
)

MODEL_KEY, REQUEST = SecretBytes(b"M" * 32), SecretBytes(b"Q" * 32)
OLD = root_of(SecretBytes(b"r" * 32))
N, K = 3, 2
NONCE = b"n" * 32


class World:
    """A KeyService with two of three witnesses, or without any; a grant and a consent; a release succeeds."""

    def __init__(self, folder: Path, *, witnesses: bool = True) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.witnesses = local_witnesses(folder, self.clock, OLD.log_key.public_key, N) if witnesses else []
        self.platform = SimulatedTee("runtime", clock=self.clock)
        self.running: list[EmbeddedKeyService] = []
        self.ks = self.start()
        self.owner = self.ks.person()
        self.model = ModelId(self.owner.id, "model")
        policy = self.platform.policy()
        self.ks.say(self.owner.statement(DefinePolicy(policy.encode())))
        self.ks.say(self.owner.statement(PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))), MODEL_KEY)
        self.grant = Grant("model", self.owner.id, policy.digest, Validity(), 0)
        self.acknowledged = self.owner.statement(self.grant)
        self.acknowledgement = self.ks.say(self.acknowledged)
        consent = Consent(self.model, policy.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
        self.ks.say(self.owner.statement(consent), REQUEST)
        self.request = ReleaseRequest(self.owner.id, self.model, REQUEST_KEY, key_commitment(REQUEST))
        self.release()

    def start(self, disk: MemoryDisk | None = None, **more: Any) -> EmbeddedKeyService:
        settings = (witnessed(self.witnesses, K) if self.witnesses else {}) | more
        ks = EmbeddedKeyService(clock=self.clock, disk=disk, runtime_tee=self.platform, **settings)
        self.running.append(ks)
        return ks

    def release(self, ks: EmbeddedKeyService | None = None) -> Release:
        found = (ks or self.ks).attest(self.platform).release(self.request)
        assert (found.model_key, found.key) == (MODEL_KEY, REQUEST)
        return found

    def rotate(self) -> MemoryDisk:
        """The disk as the thief kept it."""
        old = self.ks.disk.copy()
        self.ks.rotate(self.folder)
        self.ks.assembled.ledger._anchor.require()  # until witnesses confirmed it, where there are any
        return old

    def say(self) -> tuple[dict[str, Any], bytes]:
        statement = self.owner.statement(self.grant)
        return self.ks.say(statement), statement

    def all_signed(self) -> None:
        """Until the witness that is not needed has signed the newest head too."""
        size, pause = self.ks.assembled.ledger.head().size, threading.Event()
        while any(witness.record(self.ks.id).newest.size < size for witness in self.witnesses):
            self.clock.advance(11)  # heads are confirmed anew, by all that answer
            self.ks.assembled.ledger._anchor.tick()
            pause.wait(0.05)

    @property
    def file(self) -> Path:
        return self.folder / ROOT_FILE

    def nothing_leaves(self, ks: EmbeddedKeyService) -> None:
        for attempt in (lambda: self.release(ks), lambda: ks.say(self.owner.statement(self.grant))):
            with pytest.raises(Unavailable) as caught:
                attempt()
            assert caught.value.code in ("keyservice-superseded", "keyservice-unconfirmed")

    def bundle(self) -> TrustBundle:
        configuration = self.ks.settings.measured().digest
        return TrustBundle(
            root=SigningKey.from_seed(SecretBytes(b"b" * 32)).public_key,
            version=1,
            name="test",
            issued_at=1,
            expires_at=2**38,
            keyservice=simulation_policy(self.ks.tee.measurement, configuration=[configuration]),
            accept_simulation=True,
            simulation_keys=(self.platform.key.public_key,),
            accept_rollback_unsafe=not self.witnesses,
            witnesses=tuple(witness.key for witness in self.witnesses),
            witness_threshold=K if self.witnesses else 0,
        )

    def link(self, heads: VolatileHeads | None = None, network: Network | None = None) -> KeyServiceLink:
        bundle = self.bundle()
        return KeyServiceLink(
            network or Network(self, bundle),
            bundle=lambda: bundle,
            collateral=NoCollateral(),
            clock=self.clock,
            heads=heads or VolatileHeads(),
        )

    def told(self, keys: LogKeys, signer: SigningKey, size: int, root: bytes, old: int = 0) -> bytes:
        """What a witness is told."""
        proof = self.ks.assembled.ledger.consistency(old, size) if old else ()
        note = Checkpoint(keys.keyservice, size, root).sign(signer)
        return FollowLogKeys(keys, AddCheckpoint(old, proof, note).encode()).encode()


class Network:
    """``Transport`` to the KeyService of the moment, under the callers' bundle, unless the thief says otherwise.

    :ivar lies: by path, instead of the answer.
    """

    def __init__(self, world: World, bundle: TrustBundle) -> None:
        self._world = world
        self._bundle = bundle
        self.lies: dict[str, Callable[[bytes], bytes]] = {}

    def description(self, ks: EmbeddedKeyService) -> bytes:
        """With evidence that is also over the digest of the bundle, as the real one's is."""
        found = Description.decode(ks.service.description())
        bound = replace(found, bundle_digest=self._bundle.digest)
        evidence = ks.tee.attester().evidence(bound.report_data())
        return replace(bound, evidence=replace(found.evidence, body=evidence.body)).encode()

    def get(self, path: str, *, limit: int) -> bytes:
        if path in self.lies:
            return self.lies[path](b"")
        return self.description(self._world.ks) if path == "/v1/description" else self._world.ks.get(path, limit=limit)

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        if path in self.lies:
            return self.lies[path](body)
        return self._world.ks.post(path, body, limit=limit)


@pytest.fixture(params=["witnesses", "none"])
def any_world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, witnesses=request.param == "witnesses")
    yield world
    for ks in world.running:
        ks.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for ks in world.running:
        ks.close()


@pytest.fixture
def single(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, witnesses=False)
    yield world
    for ks in world.running:
        ks.close()


def code(call: Callable[[], object]) -> str:
    with pytest.raises(CloisterError) as caught:
        call()
    return caught.value.code


# --- what a rotation is ---


def test_s7_a_rotated_keyservice_is_the_same_one_and_goes_on(any_world: World) -> None:
    world = any_world
    heads = VolatileHeads()
    world.link(heads).attested()
    before = Description.decode(world.ks.service.description())
    size = world.ks.assembled.ledger.head().size
    for generation in (1, 2, 3):
        world.rotate()
        after = Description.decode(world.ks.service.description())
        assert after.keyservice == before.keyservice
        assert after.log_keys.generation == generation
        assert after.log_key != before.log_key
        world.release()
        result, statement = world.say()
        assert check_statement_receipt(result, statement, after.log_keys).index >= size
        found = world.link(heads).attested().description
        assert found.log_keys == heads.log_keys(found.keyservice) == after.log_keys
        world.ks.restart()
        world.release()
    _, entry, _ = world.ks.assembled.ledger.entries([after.log_keys.certificates[0].size])[0]
    assert after.log_keys.encoded[0] in entry  # the log says where


def test_s7_a_runtime_loses_nothing_but_its_session(any_world: World) -> None:
    world = any_world
    session = RuntimeSession(
        world.link(),
        world.platform.attester(),
        world.platform.configuration,
        clock=world.clock,
        keyservice=world.ks.id,
    )
    for _ in range(3):
        assert session.release(world.request, Timings()).key == REQUEST
        world.rotate()
    assert session.release(world.request, Timings()).key == REQUEST
    assert session.attests == 4


# --- what a retired key signs ---


def test_s7_an_old_receipt_stays_good_and_the_thief_makes_no_new_one(any_world: World) -> None:
    world = any_world
    world.rotate()
    keys = world.ks.root.log_keys
    receipt = verify_receipt(world.acknowledgement["receipt"], keys)
    assert receipt.head.size <= keys.begins
    ledger = world.ks.assembled.ledger
    head = ledger.head()
    index = head.size - 1
    new = Receipt(world.ks.id, index, ledger.leaf(index), head, ledger.inclusion(index, head.size))
    assert verify_receipt(new.sign(world.ks.root.log_key), keys) == new
    assert code(lambda: verify_receipt(new.sign(OLD.log_key), keys)) == "log-key-retired"
    for other in (Receipt(bytes(32), *receipt_parts(receipt)), receipt):  # nor does the new key speak for old times
        expected = "receipt-other" if other is not receipt else "log-key-retired"
        assert code(lambda other=other: verify_receipt(other.sign(world.ks.root.log_key), keys)) == expected
    forged = replace(receipt, leaf=bytes(32))
    assert code(lambda: verify_receipt(forged.sign(OLD.log_key), keys)) == "log-inclusion"


def receipt_parts(receipt: Receipt) -> tuple[int, bytes, LogHead, tuple[bytes, ...]]:
    return receipt.index, receipt.leaf, receipt.head, receipt.inclusion


def test_s7_a_receipt_that_the_thief_made_up_for_old_times_is_in_no_log(world: World) -> None:
    """He can sign one that stands for itself; beside the leaves of the log it does not."""
    size = world.ks.assembled.ledger.head().size
    world.rotate()
    forged = stored_elsewhere(world, size)
    header, leaves = world.link().export()
    verified = verify_export(b"".join(write_export(header, leaves, [])))
    verified.check_receipt(verify_receipt(world.acknowledgement["receipt"], header.log_keys))
    made_up = verify_receipt(forged.sign(OLD.log_key), header.log_keys)
    assert code(lambda: verified.check_receipt(made_up)) == "log-inclusion"
    assert not made_up.head.cosignatures  # and witnesses never signed its head


def stored_elsewhere(world: World, size: int) -> Receipt:
    other = EmbeddedKeyService(clock=world.clock, seed=b"r" * 32)
    person = other.person()
    while other.assembled.ledger.head().size < size:
        other.say(person.statement(DefinePolicy(world.platform.policy().encode())))
    ledger = other.assembled.ledger
    head = ledger.head()
    other.close()
    return Receipt(other.id, size - 1, ledger.leaf(size - 1), head, ledger.inclusion(size - 1, size))


def test_s7_a_status_by_the_retired_key_is_none(any_world: World) -> None:
    world = any_world
    old = Description.decode(world.ks.service.description())
    world.rotate()
    new = Description.decode(world.ks.service.description())
    head = world.ks.assembled.ledger.head()
    forged = sign_status(OLD.log_key, epoch=new.epoch, nonce=NONCE, head=head)
    assert code(lambda: verify_status(forged, new, NONCE)) == "signature-invalid"
    early = sign_status(world.ks.root.log_key, epoch=new.epoch, nonce=NONCE, head=replace(head, size=1))
    assert code(lambda: verify_status(early, new, NONCE)) == "log-key-retired"
    assert old.log_keys.generation == 0


# --- callers ---


def test_s7_who_saw_the_new_key_is_not_brought_back_to_the_old_one(any_world: World) -> None:
    """The thief plays back the last description of the old root, whose evidence is genuine, and signs statuses."""
    world = any_world
    heads, network = VolatileHeads(), Network(world, world.bundle())
    recorded = network.description(world.ks)
    world.link(heads, network).attested()
    world.rotate()
    world.link(heads, network).attested()
    seen = heads.newest(world.ks.id)
    assert seen is not None
    epoch = Description.decode(recorded).epoch
    network.lies = {
        "/v1/description": lambda _: recorded,
        "/v1/status": lambda nonce: sign_status(OLD.log_key, epoch=epoch, nonce=nonce, head=seen),
    }
    assert code(lambda: world.link(heads, network).attested()) == "keyservice-rolled-back"
    assert heads.newest(world.ks.id) == seen


def test_s7_a_chain_that_is_shorter_forked_or_of_another_is_refused(any_world: World) -> None:
    world = any_world
    heads, network = VolatileHeads(), Network(world, world.bundle())
    world.rotate()
    world.rotate()
    world.link(heads, network).attested()
    genuine = Description.decode(network.description(world.ks))
    keys, size = genuine.log_keys, genuine.log_keys.certificates[0].size
    thief = SigningKey.generate()
    rival = KeyCertificate(keys.keyservice, 1, thief.public_key, size, bytes(32), int(world.clock.now()))
    forked = LogKeys(keys.first).then(rival.sign(OLD.log_key))
    other = KeyCertificate(bytes(32), 1, keys.certificates[0].key, size, bytes(32), int(world.clock.now()))
    for log_keys in (forked, LogKeys(keys.first), LogKeys(keys.first).then(keys.encoded[0])):
        lie = replace(genuine, log_keys=log_keys).encode()
        network.lies = {"/v1/description": lambda _, lie=lie: lie}
        for memory in (heads, VolatileHeads()):  # the evidence is over the log keys: nobody at all believes it
            assert code(lambda memory=memory: world.link(memory, network).attested()) == "report-data-mismatch"
    assert code(lambda: LogKeys(keys.first).then(other.sign(OLD.log_key))) == "log-keys-broken"
    assert code(lambda: LogKeys(keys.first).then(keys.encoded[1])) == "signature-invalid"
    assert code(lambda: keys.then(keys.encoded[0])) == "signature-invalid"


def test_s7_s9_a_thief_cannot_name_the_key_of_another_genuine_keyservice(any_world: World) -> None:
    """Its evidence is genuine, its code and configuration are those of the bundle; and it is not this KeyService."""
    world = any_world
    network = Network(world, world.bundle())
    theirs = world.start(seed=b"t" * 32)
    size, root = world.ks.assembled.ledger.head().size, world.ks.assembled.ledger.head().root
    named = KeyCertificate(world.ks.id, 1, theirs.log_key, size, root, int(world.clock.now()))
    keys = LogKeys(OLD.log_keys.first).then(named.sign(OLD.log_key))
    genuine = Description.decode(network.description(theirs))
    lie = replace(genuine, keyservice=world.ks.id, log_keys=keys)
    assert lie.log_key == genuine.log_key
    network.lies = {"/v1/description": lambda _: lie.encode(), "/v1/status": theirs.service.status}
    assert code(lambda: world.link(network=network).attested()) == "report-data-mismatch"


def test_s7_an_enclave_that_rotated_an_old_disk_is_another_successor(any_world: World) -> None:
    """Genuine code on the thief's copy of disk and sealed file: its evidence is good, and its log keys fork."""
    world = any_world
    heads, network = VolatileHeads(), Network(world, world.bundle())
    old = world.rotate()
    world.link(heads, network).attested()
    folder = world.folder / "thief"
    folder.mkdir()
    keep_root(folder / ROOT_FILE, OLD, world.ks.tee.sealer())
    root = rotate_root(
        folder / ROOT_FILE,
        world.ks.tee.sealer(),
        replace(world.ks.settings, rollback_protection="none", witnesses=(), witness_threshold=0),
        lambda: MemoryRows(old),
        clock=world.clock,
    )
    copy = world.start(old, root=root)
    if world.witnesses:
        world.nothing_leaves(copy)
    copied = network.description(copy)
    network.lies = {"/v1/description": lambda _: copied, "/v1/status": copy.service.status}
    assert code(lambda: world.link(heads, network).attested()) == "keyservice-forked"
    following = [witness.record(world.ks.id).log_keys for witness in world.witnesses]
    assert sum(keys == world.ks.root.log_keys for keys in following) >= (K if world.witnesses else 0)


# --- witnesses ---


def test_s7_witnesses_follow_and_sign_for_the_retired_key_no_more(world: World) -> None:
    world.rotate()
    world.say()
    world.all_signed()
    world.ks.close()  # so that nobody asks them but the thief
    keys, ledger = world.ks.root.log_keys, world.ks.assembled.ledger
    head = ledger.head()
    for witness in world.witnesses:
        record = witness.record(world.ks.id)
        witness.restart()  # it was durable
        assert witness.record(world.ks.id) == record
        assert record.log_keys == keys
        size = record.newest.size
        for checkpoint in (head, replace(head, size=head.size + 1, root=bytes(32))):
            note = Checkpoint(world.ks.id, checkpoint.size, checkpoint.root).sign(OLD.log_key)
            body = AddCheckpoint(size, ledger.consistency(size, head.size), note).encode()
            assert code(lambda body=body, witness=witness: witness.add_checkpoint(body)) == "witness-not-signed"
            told = FollowLogKeys(LogKeys(keys.first), body).encode()
            assert code(lambda told=told, witness=witness: witness.follow_log_keys(told)) == "witness-not-signed"
        assert witness.record(world.ks.id) == record


def test_s7_a_witness_told_two_successors_of_one_key_follows_the_first_and_keeps_the_proof(world: World) -> None:
    world.rotate()
    world.say()
    world.all_signed()
    witness = world.witnesses[0]
    before = witness.record(world.ks.id)
    keys, thief = before.log_keys, SigningKey.generate()
    certificate = keys.certificates[0]
    rival = LogKeys(keys.first).then(replace(certificate, key=thief.public_key).sign(OLD.log_key))
    size, root = world.ks.assembled.ledger.head().size, world.ks.assembled.ledger.head().root
    for _ in range(20):
        told = world.told(rival, thief, size, root, before.newest.size)
        assert code(lambda told=told: witness.follow_log_keys(told)) == "log-fork"
    after = witness.record(world.ks.id)
    assert after == replace(before, rivals=(rival.encoded[0],))
    witness.restart()
    assert witness.record(world.ks.id) == after
    world.say()


def test_s7_a_witness_follows_only_what_goes_on_from_what_it_signed(world: World) -> None:
    """The thief is first, and has the key: what he cannot have is a log that continues the witness's with his key."""
    world.all_signed()
    witness = world.witnesses[0]
    newest, thief, now = witness.record(world.ks.id).newest, SigningKey.generate(), int(world.clock.now())

    def named(size: int, root: bytes) -> LogKeys:
        made = KeyCertificate(world.ks.id, 1, thief.public_key, size, root, now)
        return LogKeys(OLD.log_keys.first).then(made.sign(OLD.log_key))

    early = named(newest.size - 1, bytes(32))
    other_root = named(newest.size, bytes(32))
    good = named(newest.size, newest.root)
    size, root = newest.size + 1, b"x" * 32
    for keys, at, old, expected in (
        (early, size, newest.size, "log-fork"),
        (early, newest.size, newest.size, "log-fork"),  # over the very head that was signed, by a key named before it
        (other_root, size, newest.size, "log-fork"),
        (good, newest.size, newest.size, "witness-not-signed"),  # not beyond where the new key begins
    ):
        note = Checkpoint(world.ks.id, at, newest.root if at == newest.size else root).sign(thief)
        told = FollowLogKeys(keys, AddCheckpoint(old, (), note).encode()).encode()
        assert code(lambda told=told: witness.follow_log_keys(told)) == expected
    note = Checkpoint(world.ks.id, size, root).sign(thief)
    told = FollowLogKeys(good, AddCheckpoint(newest.size, (), note).encode()).encode()
    assert code(lambda: witness.follow_log_keys(told)) == "log-fork"
    by_old = Checkpoint(world.ks.id, size, root).sign(OLD.log_key)
    told = FollowLogKeys(good, AddCheckpoint(newest.size, (), by_old).encode()).encode()
    assert code(lambda: witness.follow_log_keys(told)) == "witness-not-signed"
    unknown = LogKeys(thief.public_key)
    note = Checkpoint(unknown.keyservice, size, root).sign(thief)
    told = FollowLogKeys(unknown, AddCheckpoint(0, (), note).encode()).encode()
    assert code(lambda: witness.follow_log_keys(told)) == "witness-log-unknown"
    told = FollowLogKeys(good, AddCheckpoint(0, (), note).encode()).encode()
    assert code(lambda: witness.follow_log_keys(told)) == "checkpoint-malformed"
    assert witness.record(world.ks.id).log_keys == OLD.log_keys
    world.rotate()
    world.release()


def test_s7_the_old_root_on_the_old_disk_gets_nothing_out(world: World) -> None:
    old = world.rotate()
    world.release()
    copy = world.start(old)
    world.nothing_leaves(copy)
    assert code(lambda: world.link(network=Away(world, copy)).call("statement", lambda _: b"")) in (
        "keyservice-unconfirmed",
        "keyservice-rolled-back",
    )
    world.release()


class Away(Network):
    """Leads callers who know nothing yet to the thief's copy."""

    def __init__(self, world: World, copy: EmbeddedKeyService) -> None:
        super().__init__(world, world.bundle())
        world.clock.advance(121)  # nothing that was co-signed before the rotation is fresh any more
        self.lies = {
            "/v1/description": lambda _: self.description(copy),
            "/v1/status": copy.service.status,
            "/v1/call": copy.service.call,
        }


def test_s7_a_store_that_lacks_what_was_confirmed_is_not_rotated(world: World) -> None:
    old = world.ks.disk.copy()
    world.say()
    world.all_signed()
    keep_root(world.file, OLD, world.ks.tee.sealer())
    attempt = lambda disk: rotate_root(  # noqa: E731
        world.file,
        world.ks.tee.sealer(),
        world.ks.settings,
        lambda: MemoryRows(disk),
        clock=world.clock,
        witnesses=world.witnesses,
    )
    assert code(lambda: attempt(old)) == "keyservice-superseded"
    for witness in world.witnesses:
        witness.away = True
    world.ks.close()
    assert code(lambda: attempt(world.ks.disk)) == "keyservice-unconfirmed"
    assert not newer(world.file).exists()
    assert open_root(world.file, world.ks.tee.sealer()).generation == 0


# --- the disk ---


def test_s7_the_old_store_key_opens_old_entries_and_nothing_that_lives(any_world: World) -> None:
    world = any_world
    world.rotate()
    disk, entries = world.ks.disk.tables, world.ks.root.log_keys.begins
    store = stored(MemoryRows(world.ks.disk.copy()), OLD)
    assert not store.belongs()
    assert disk["secrets"]
    thief = SealedStore(MemoryRows(world.ks.disk.copy()), OLD.store_key, OLD.id)
    chain = [bytes(32)]
    for index, record in sorted(disk["entries"].items()):
        if index < entries:
            thief._open("entries", index, chain[-1], record)
        else:
            assert code(lambda index=index, record=record: thief._open("entries", index, chain[-1], record)) == (
                "store-record"
            )
        chain.append(chain_link(chain[-1], record))
    for table, first in (("secrets", 1), ("head", 0)):
        for index, record in disk[table].items():
            for previous in chain if first else [bytes(32)]:
                opened = lambda table=table, index=index, previous=previous, record=record: thief._open(  # noqa: E731
                    table, index, previous, record
                )
                assert code(opened) == "store-record"


def test_s7_nothing_that_need_not_be_read_at_a_start_outlives_a_rotation(single: World) -> None:
    """Blocks and snapshot under the old store key are dropped in the rotation, and made anew under the new one."""
    ks = EmbeddedKeyService(clock=single.clock, runtime_tee=single.platform, block_entries=4)
    single.running.append(ks)
    person = ks.person()
    for _ in range(20):
        ks.say(person.statement(DefinePolicy(single.platform.policy().encode())))
    ks.assembled.keeper.save()
    old = ks.disk.copy().tables
    assert old["blocks"]
    assert old["snapshots"]
    ks.rotate(single.folder)
    assert not ks.disk.tables["snapshots"]
    assert not ks.disk.tables["blocks"]
    for _ in range(3):
        ks.assembled.keeper.save()
        ks.say(person.statement(DefinePolicy(single.platform.policy().encode())))
        ks.restart()
    assert ks.assembled.ledger.begun
    assert ks.assembled.ledger.log_keys() == ks.root.log_keys
    ks.rotate(single.folder)  # from one whose blocks are on the disk
    assert ks.assembled.ledger.log_keys() == ks.root.log_keys
    brought_back = ks.disk.copy()
    for table in ("blocks", "snapshots"):
        brought_back.tables[table] = dict(old[table])
    again = EmbeddedKeyService(
        clock=single.clock, disk=brought_back, root=ks.root, runtime_tee=single.platform, block_entries=4
    )
    single.running.append(again)
    assert not again.assembled.ledger.begun  # it read every entry, as without


def test_s7_generations_do_not_mix(single: World) -> None:
    world = single
    old = world.rotate()
    world.say()
    good, root = world.ks.disk.copy(), world.ks.root
    world.ks.close()

    def opens(disk: MemoryDisk, with_root: Root) -> str:
        try:
            EmbeddedKeyService(clock=world.clock, disk=disk, root=with_root, runtime_tee=world.platform).close()
        except CloisterError as error:
            return error.code
        return ""

    assert opens(good.copy(), root) == ""
    assert opens(old.copy(), OLD) == ""  # a rollback without witnesses: only callers notice
    assert opens(old.copy(), root) == "store-generation"
    assert opens(good.copy(), OLD) == "store-record"
    for table in ("head", "secrets"):
        for index, record in old.tables[table].items():
            mixed = good.copy()
            mixed.tables[table][index] = record
            assert opens(mixed, root) in ("store-record", "store-generation"), (table, index)
    size = root.log_keys.begins
    swapped = good.copy()
    swapped.tables["entries"][size] = old.tables["entries"][size - 1]
    assert opens(swapped, root) == "store-record"
    mixed_root = replace(root, earlier_store_keys=(SecretBytes(b"x" * 32),))
    assert opens(good.copy(), mixed_root) == "store-record"


# --- crashes, and who owns the directory ---


class Crashed(Exception):
    """The process is gone."""


def rotation(world: World, disk: MemoryDisk) -> Root:
    return rotate_root(
        world.file, world.ks.tee.sealer(), world.ks.settings, lambda: Fresh.rows(disk), clock=world.clock
    )


class Fresh:
    """A disk that another process left open is not locked any more."""

    @staticmethod
    def rows(disk: MemoryDisk) -> MemoryRows:
        disk.locked = False
        return MemoryRows(disk)


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("again", [False, True])
def test_s7_a_crash_at_any_step_leaves_it_rotated_or_not(
    single: World, monkeypatch: pytest.MonkeyPatch, step: int, again: bool
) -> None:
    from cloister.keyservice import rotation as module

    world = single
    world.ks.close()
    disk, sealer = world.ks.disk, world.ks.tee.sealer()
    keep_root(world.file, OLD, sealer)

    def crash(*_: object) -> None:
        raise Crashed

    def then_crash(call: Callable[..., Any]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            call(*arguments)
            raise Crashed

        return run

    def torn(path: Path, root: Root, sealer: Any) -> None:
        path.write_bytes(sealer.seal(root.encode().reveal())[:100])
        raise Crashed

    writes = {0: ("keep_root", crash), 1: ("keep_root", torn), 2: ("keep_root", then_crash(module.keep_root))}
    expected = 1 if step >= 4 else 0
    with monkeypatch.context() as patch:
        if step in writes:
            patch.setattr(module, *writes[step])
        elif step == 3:
            disk.fail_before = 0
        elif step == 4:
            disk.fail_after = 0
        else:
            patch.setattr(module, "replace_root", crash)
        with pytest.raises((Crashed, Unavailable)):
            rotation(world, disk)
    disk.fail_before = disk.fail_after = None
    if again:  # an operator who repeats it rotates once more, or the first time
        assert rotation(world, disk).generation == expected + 1
        expected += 1
    for _ in range(2):
        root = settled_root(world.file, sealer, lambda: Fresh.rows(disk))
        assert root.generation == expected
        assert not newer(world.file).exists()
    disk.locked = False
    world.ks = world.start(disk, root=root)
    world.release()
    world.say()


def test_s7_a_root_brought_back_does_not_open_the_store(single: World) -> None:
    world = single
    keep_root(world.file, OLD, world.ks.tee.sealer())
    old_file = world.file.read_bytes()
    world.rotate()
    world.ks.close()
    sealer, new_file = world.ks.tee.sealer(), world.file.read_bytes()
    rows = lambda: Fresh.rows(world.ks.disk)  # noqa: E731

    def settled(present: bytes, beside: bytes) -> Root:
        world.file.write_bytes(present)
        newer(world.file).write_bytes(beside)
        return settled_root(world.file, sealer, rows)

    assert settled(new_file, old_file).generation == 1  # the old one beside it is thrown away
    assert not newer(world.file).exists()
    assert settled(old_file, new_file).generation == 1  # as after a crash
    assert world.file.read_bytes() == new_file
    assert code(lambda: settled(old_file, old_file)) == "store-generation"
    assert code(lambda: settled(old_file, b"noise")) == "unseal-failed"
    other = world.folder / "other"
    keep_root(other, root_of(SecretBytes(b"o" * 32)).rotated(1, bytes(32), 1), sealer)
    assert code(lambda: settled(other.read_bytes(), new_file)) == "store-generation"
    world.ks.disk.tables["head"].clear()
    assert code(lambda: settled(old_file, new_file)) == "store-generation"
    assert newer(world.file).exists()  # nothing is thrown away on a guess


def test_s7_one_that_runs_is_not_rotated(single: World) -> None:
    world = single
    keep_root(world.file, OLD, world.ks.tee.sealer())
    attempt = lambda: rotate_root(  # noqa: E731
        world.file, world.ks.tee.sealer(), world.ks.settings, lambda: MemoryRows(world.ks.disk), clock=world.clock
    )
    assert code(attempt) == "store-locked"
    assert not newer(world.file).exists()
    world.say()


def test_s7_what_is_sealed_after_a_rotation_holds_nothing_of_the_old_root_but_what_reads_old_entries(
    single: World,
) -> None:
    world = single
    world.rotate()
    found = open_root(world.file, world.ks.tee.sealer())
    content = found.encode().reveal()
    assert decode_root(found.encode()) is not None
    assert OLD.store_key.reveal() in content
    for secret in (OLD.secret, OLD.replication_key, OLD.log_key.seed()):
        assert secret.reveal() not in content


# --- auditors ---


def test_s7_exports_under_two_successors_of_one_key_are_a_fork(single: World) -> None:
    world = single
    world.rotate()
    header, leaves = world.link().export()
    verified = verify_export(b"".join(write_export(header, leaves, [])))
    size, root = header.log_keys.certificates[0].size, header.log_keys.certificates[0].root
    thief = SigningKey.generate()
    rival = LogKeys(header.log_keys.first).then(
        KeyCertificate(header.keyservice, 1, thief.public_key, size, root, int(world.clock.now())).sign(OLD.log_key)
    )
    note = Checkpoint(header.keyservice, header.head.size, header.head.root).sign(thief)
    forged = ExportHeader(header.keyservice, rival, header.head, note)
    other = verify_export(b"".join(write_export(forged, leaves, [])))  # in itself it is sound
    assert code(lambda: verified.check_same_history(other)) == "log-fork"
    by_old = replace(
        forged,
        log_keys=LogKeys(header.log_keys.first),
        checkpoint=Checkpoint(header.keyservice, header.head.size, header.head.root).sign(OLD.log_key),
    )
    sound = verify_export(b"".join(write_export(by_old, leaves, [])))  # the thief leaves the certificate out,
    verified.check_same_history(sound)  # over the very same history
    opened = OpenedEntry(size, world.ks.assembled.ledger.entries([size])[0][1])
    verify_export(b"".join(write_export(header, leaves, [opened])))
    for lie in (forged, by_old):  # and the log's own entry says otherwise to whoever opens it
        assert code(lambda lie=lie: verify_export(b"".join(write_export(lie, leaves, [opened])))) == "log-fork"
    assert code(lambda: ExportHeader.read(replace(header, checkpoint=by_old.checkpoint).fields())) == (
        "signature-invalid"
    )
    early = Checkpoint(header.keyservice, size, root)
    old_head = replace(header, head=LogHead(size, root, 0), checkpoint=early.sign(world.ks.root.log_key))
    assert code(lambda: ExportHeader.read(old_head.fields())) == "log-key-retired"
    moved = replace(header.log_keys.certificates[0], root=bytes(32)).sign(OLD.log_key)
    elsewhere = replace(header, log_keys=LogKeys(header.log_keys.first).then(moved))
    assert code(lambda: verify_export(b"".join(write_export(elsewhere, leaves, [])))) == "log-fork"


def test_s7_a_log_whose_rotation_is_of_another_history_is_not_opened(single: World) -> None:
    """Whoever has the old root and wrote the store himself: the certificate he has is for another head."""
    world = single
    world.rotate()
    world.ks.close()
    root = world.ks.root
    certificate = root.log_keys.certificates[0]
    moved = replace(certificate, root=bytes(32)).sign(OLD.log_key)
    lied = replace(root, log_keys=LogKeys(root.log_keys.first).then(moved))
    opened = lambda: EmbeddedKeyService(  # noqa: E731
        clock=world.clock, disk=world.ks.disk.copy(), root=lied, runtime_tee=world.platform
    )
    assert code(opened) == "store-generation"


def test_the_certificate_cannot_say_anything_but_where_it_stands(single: World) -> None:
    world = single
    world.ks.close()
    disk = world.ks.disk.copy()
    for size, time in ((3, 0), (2**40, 0), (0, 10)):
        ledger = Ledger(stored(Fresh.rows(disk), OLD), world.clock)
        head = ledger.head()
        from cloister.log.entry import ROTATION, Entry

        made = OLD.rotated(size or head.size, head.root, head.time)
        entry = Entry(ROTATION, head.time + time, bytes(32), made.log_keys.encoded[0])
        assert code(lambda ledger=ledger, entry=entry, made=made: ledger.rotate(entry, made.store_key)) == "log-order"
        ledger.close()
    assert disk.tables == world.ks.disk.tables
