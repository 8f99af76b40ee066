"""S7 and backups: whoever owns a backup changes it, mixes it, ages it, or puts another in its place; whoever owns the
machine puts traps where one is restored (spec/protocol.md, 13.25).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.tee.simulation import SimulatedSealer
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import BACKUP_ROWS, MAX_BACKUP_RECORD, REQUEST_FRESHNESS_S
from cloister.base.secret import SecretBytes
from cloister.keyservice.backup.format import read_backup
from cloister.keyservice.backup.judging import Known, ask_witnesses, known_from_file
from cloister.keyservice.backup.restoring import authenticate, copy_rows, inspect, restore_state
from cloister.keyservice.backup.writing import backup_pieces, keep_backup
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.offline import ROOT_FILE
from cloister.keyservice.root import keep_root, root_of
from cloister.keyservice.storage.place import STORE_FILE
from cloister.keyservice.storage.sealed import SealedStore
from cloister.log.receipt import Receipt, check_statement_receipt
from cloister.testing.backups import backup_of, inspected, put_together, quiet, restored, take_apart
from cloister.testing.clock import FakeClock
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.replicas import Cluster
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import local_witnesses, witnessed
from cloister.wire.provisioning import ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Consent,
    DefinePolicy,
    Grant,
    PublishModel,
    RevokeConsent,
    RevokeGrant,
    Validity,
    key_commitment,
)

ROOT = root_of(SecretBytes(b"r" * 32))
MODEL_KEY, REQUEST = SecretBytes(b"M" * 32), SecretBytes(b"Q" * 32)


class World:
    """A KeyService with a grant and a consent under it, and three witnesses if it is to have them."""

    def __init__(self, folder: Path | None = None) -> None:
        self.clock = FakeClock()
        self.platform = SimulatedTee("runtime", clock=self.clock)
        self.witnesses = [] if folder is None else local_witnesses(folder, self.clock, ROOT.log_key.public_key, 3)
        self.running: list[EmbeddedKeyService] = []
        self.ks = self.start()
        self.owner, self.user = self.ks.person(), self.ks.person()
        policy = self.platform.policy()
        for person in (self.owner, self.user):
            self.ks.say(person.statement(DefinePolicy(policy.encode())))
        self.model = ModelId(self.owner.id, "model")
        self.ks.say(self.owner.statement(PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))), MODEL_KEY)
        self.grant = Grant("model", self.user.id, policy.digest, Validity(), 0)
        self.ks.say(self.owner.statement(self.grant))
        consent = Consent(self.model, policy.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
        self.ks.say(self.user.statement(consent), REQUEST)
        self.request = ReleaseRequest(self.user.id, self.model, REQUEST_KEY, key_commitment(REQUEST))

    def start(self, disk: MemoryDisk | None = None, **more: Any) -> EmbeddedKeyService:
        settings = witnessed(self.witnesses, 2) if self.witnesses else {}
        ks = EmbeddedKeyService(clock=self.clock, disk=disk, runtime_tee=self.platform, **settings | more)
        self.running.append(ks)
        return ks

    def grow(self, count: int) -> None:
        """So many entries more, of people who come."""
        for _ in range(count):
            self.ks.person()

    def said(self) -> Receipt:
        """One entry more, and the receipt for it."""
        statement = self.owner.statement(self.grant)
        return check_statement_receipt(self.ks.say(statement), statement, ROOT.log_keys)

    def release(self, ks: EmbeddedKeyService) -> bytes:
        return ks.attest(self.platform).release(self.request).key.reveal()

    def close(self) -> None:
        for ks in self.running:
            ks.close()


@pytest.fixture
def world() -> Any:
    world = World()
    yield world
    world.close()


@pytest.fixture
def confirmed(tmp_path: Path) -> Any:
    world = World(tmp_path)
    yield world
    world.close()


def open_disk(disk: MemoryDisk) -> Ledger:
    return Ledger(SealedStore(MemoryRows(disk), ROOT.store_key, ROOT.id), FakeClock())


# --- what a backup is ---


def test_s7_everything_acknowledged_before_a_backup_is_in_it_and_nothing_opens_without_the_root(world: World) -> None:
    world.grow(3 * BACKUP_ROWS)
    data = backup_of(world.ks)
    for secret in (MODEL_KEY, REQUEST):
        assert secret.reveal() not in data
    assert world.owner.id not in data
    ks = world.start(restored(data))
    assert ks.assembled.ledger.position() == world.ks.assembled.ledger.position()
    assert world.release(ks) == REQUEST.reveal()
    assert ks.ask(world.user, "whoami")["sequence"] == world.user.sequence


def test_s7_a_backup_is_of_one_moment_while_writing_goes_on(world: World) -> None:
    world.grow(2 * BACKUP_ROWS)
    pieces = backup_pieces(world.ks.assembled.ledger, log_keys=ROOT.log_keys, head=None, root=b"")
    data = bytearray()
    for number, piece in enumerate(pieces):
        data += piece
        if number < 3:  # between any two pieces somebody says something
            world.said()
    disk = restored(bytes(data))
    assert disk.tables["entries"] == world.ks.disk.tables["entries"]
    assert open_disk(disk).head().root == world.ks.assembled.ledger.head().root


# --- what is done to one ---


def drop_entry(records: list[dict[str, Any]]) -> None:
    for name in ("rows", "secrets"):
        del records[1][name][3]
    records[1]["leaves"] = records[1]["leaves"][:96] + records[1]["leaves"][128:]


def drop_last(records: list[dict[str, Any]]) -> None:
    for name in ("rows", "secrets"):
        del records[-3][name][-1]
    records[-3]["leaves"] = records[-3]["leaves"][:-32]


def double_entry(records: list[dict[str, Any]]) -> None:
    for name in ("rows", "secrets"):
        records[1][name][3] = records[1][name][2]


def swap_entries(records: list[dict[str, Any]]) -> None:
    rows = records[1]["rows"]
    rows[2], rows[3] = rows[3], rows[2]


def swap_secrets(records: list[dict[str, Any]]) -> None:
    secrets = records[1]["secrets"]
    first, second = (index for index, item in enumerate(secrets) if item)
    secrets[first], secrets[second] = secrets[second], secrets[first]


def drop_secret(records: list[dict[str, Any]]) -> None:
    secrets = records[1]["secrets"]
    secrets[next(index for index, item in enumerate(secrets) if item)] = b""


def move_secret(records: list[dict[str, Any]]) -> None:
    secrets = records[1]["secrets"]
    index = next(index for index, item in enumerate(secrets) if item)
    secrets[index - 1], secrets[index] = secrets[index], b""


def flip_entry(records: list[dict[str, Any]]) -> None:
    rows = records[1]["rows"]
    rows[4] = rows[4][:-1] + bytes([rows[4][-1] ^ 1])


def flip_head(records: list[dict[str, Any]]) -> None:
    index, record = records[-2]["kept"][0]
    records[-2]["kept"][0] = [index, record[:-1] + bytes([record[-1] ^ 1])]


def flip_leaf(records: list[dict[str, Any]]) -> None:
    leaves = records[1]["leaves"]
    records[1]["leaves"] = leaves[:64] + bytes(32) + leaves[96:]


def entry_as_secret(records: list[dict[str, Any]]) -> None:
    records[1]["secrets"][2] = records[1]["rows"][2]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (drop_entry, "store-record"),
        (drop_last, "store-truncated"),
        (double_entry, "store-record"),
        (swap_entries, "store-record"),
        (swap_secrets, "store-record"),
        (drop_secret, "secret-missing"),
        (move_secret, "store-record"),
        (flip_entry, "store-record"),
        (flip_head, "store-record"),
        (flip_leaf, "backup-changed"),
        (entry_as_secret, "store-record"),
    ],
)
def test_s7_a_changed_backup_is_noticed_by_its_digest_or_when_it_is_opened(
    world: World, change: Callable[[list[dict[str, Any]]], None], code: str
) -> None:
    records = take_apart(backup_of(world.ks))
    change(records)
    with pytest.raises(Tampered) as caught:
        inspected(put_together(records, honest=True))
    assert caught.value.code == "backup-changed"
    data = put_together(records)  # by one who makes the digest fit
    found, rows = inspected(data), MemoryRows(restored(data))
    with pytest.raises(Tampered) as caught:
        authenticate(rows, ROOT, found, world.clock)
    assert caught.value.code == code


def test_s7_pages_left_out_repeated_or_moved_are_noticed(world: World) -> None:
    world.grow(2 * BACKUP_ROWS)
    records = take_apart(backup_of(world.ks))
    assert len(records) > 4
    header, one, two, *rest = records
    for changed in ([header, two, *rest], [header, one, one, two, *rest], [header, two, one, *rest]):
        with pytest.raises(Tampered) as caught:
            inspected(put_together(changed))
        assert caught.value.code == "backup-changed"
    for changed in ([one, two, *rest], [header, one, two, rest[-2], *rest], [header, one, two, rest[-1]]):
        with pytest.raises((Tampered, InvalidInput)):
            inspected(put_together(changed))


def test_s7_a_backup_mixed_from_two_moments_or_two_histories_does_not_open(world: World) -> None:
    world.grow(BACKUP_ROWS)
    twin = world.start(world.ks.disk.copy())
    before = take_apart(backup_of(world.ks))
    world.grow(BACKUP_ROWS)
    after = take_apart(backup_of(world.ks))
    for _ in range(BACKUP_ROWS):
        twin.person()
    fork = take_apart(backup_of(twin))
    assert [len(item) for item in (after, fork)] == [len(after)] * 2
    mixed = {
        "store-truncated": [*before[:-2], *after[-2:]],  # the entries of then, the head of now
        "store-head": [*after[:-2], *before[-2:]],  # the entries of now, the head of then
        "store-record": [*after[:-3], *fork[-3:]],  # a page of another history
    }
    for code, records in mixed.items():
        data = put_together(records)
        with pytest.raises(Tampered) as caught:
            authenticate(MemoryRows(restored(data)), ROOT, inspected(data), world.clock)
        assert caught.value.code == code


def test_s7_a_truncated_backup_is_none_wherever_it_ends(world: World) -> None:
    data = backup_of(world.ks)
    ends = {0, 1, 4, len(data) - 1}
    position = 0
    while position < len(data):
        position += 4 + int.from_bytes(data[position : position + 4], "big")
        ends |= {position - 1, position, position + 2} if position < len(data) else set()
    for end in sorted(ends):
        with pytest.raises((Tampered, InvalidInput)) as caught:
            inspected(data[:end])
        assert caught.value.code == ("backup-truncated" if end else "backup-malformed")
    with pytest.raises(InvalidInput):
        inspected(data + b"\0")


def test_s7_giant_lengths_are_refused_before_anything_is_read(world: World) -> None:
    data, asked = backup_of(world.ks), []

    def read(wanted: int) -> bytes:
        asked.append(wanted)
        return stream.read(wanted)

    for start in (b"\xff\xff\xff\xff", (MAX_BACKUP_RECORD + 1).to_bytes(4, "big"), bytes(4)):
        stream = io.BytesIO(start + data[4:])
        with pytest.raises(InvalidInput):
            list(read_backup(read))
    assert max(asked) <= 4
    header, page, *rest = take_apart(data)
    for name, value in (("rows", [b"x" * 200_000]), ("rows", []), ("rows", [0]), ("first", 2**62)):
        with pytest.raises((InvalidInput, Tampered)):
            inspected(put_together([header, page | {name: value}, *rest], honest=True))
    for kept in ([], [[1, b"x"]], [[0, b"x"], [0, b"x"]], [[0, b"x" * 200_000]], [["0", b"x"]], [[True, b"x"]]):
        with pytest.raises(InvalidInput):
            inspected(put_together([header, page, {"kept": kept}, rest[-1]]))


# --- another one in its place ---


def test_s7_a_backup_of_another_keyservice_is_refused_however_it_is_labelled(world: World) -> None:
    other = EmbeddedKeyService(clock=world.clock, seed=b"o" * 32, runtime_tee=world.platform)
    world.running.append(other)
    data, receipt = backup_of(other), world.said()
    signed = receipt.sign(ROOT.log_key)
    with pytest.raises(InvalidInput) as caught:
        authenticate(MemoryRows(restored(data)), ROOT, inspected(data), world.clock)
    assert caught.value.code == "backup-other"
    with pytest.raises(Tampered) as tampered:
        known_from_file("receipt", signed, inspected(data).header)
    assert tampered.value.code == "signature-invalid"
    records = take_apart(data)
    for label in ({"ks": ROOT.id}, {"log_key": ROOT.log_key.public_key}):
        with pytest.raises(InvalidInput) as caught:
            inspected(put_together([records[0] | label, *records[1:]]))
        assert caught.value.code == "keyservice-id"
    records[0] |= {"ks": ROOT.id, "log_key": ROOT.log_key.public_key}
    data = put_together(records)
    known = known_from_file("receipt", signed, inspected(data).header)
    with pytest.raises(Tampered) as tampered:
        inspected(data, [known])
    assert tampered.value.code == "log-rollback"
    with pytest.raises(Tampered) as tampered:
        authenticate(MemoryRows(restored(data)), ROOT, inspected(data), world.clock)
    assert tampered.value.code == "store-record"


# --- an old one ---


def test_s7_an_old_backup_is_refused_by_whoever_kept_a_later_head(world: World) -> None:
    old = backup_of(world.ks)
    fork = world.start(world.ks.disk.copy())
    receipt = world.said()
    now = backup_of(world.ks)
    kept = known_from_file("receipt", receipt.sign(ROOT.log_key), inspected(now).header)
    inspected(now, [kept])
    with pytest.raises(Tampered) as caught:
        inspected(old, [kept])
    assert (caught.value.code, caught.value.details) == ("log-rollback", {"behind": "1"})
    later = inspected(now)
    with pytest.raises(Tampered) as caught:
        inspected(old, [Known("another backup", later.end.size, later.root)])
    assert caught.value.code == "log-rollback"
    fork.say(world.user.statement(RevokeConsent(world.model)))
    with pytest.raises(Tampered) as caught:
        inspected(backup_of(fork), [kept])
    assert caught.value.code == "log-fork"


def test_s7_an_old_backup_releases_nothing_and_a_new_one_goes_on_where_witnesses_know(confirmed: World) -> None:
    world = confirmed
    old = backup_of(world.ks)
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    now = backup_of(world.ks)
    world.ks.close()
    told = ask_witnesses([(f"w{number}", each) for number, each in enumerate(world.witnesses)], inspected(old).header)
    assert max(item.known.size for item in told if item.known) == inspected(old).end.size + 1
    inspected(now, [item.known for item in told if item.known])
    ks = world.start(restored(old))
    for attempt in (lambda: world.release(ks), lambda: ks.say(world.owner.statement(world.grant))):
        with pytest.raises(Unavailable) as caught:
            attempt()
        assert caught.value.code == "keyservice-superseded"
    assert "confirmed" in ks.ask(world.owner, "whoami")
    good = world.start(restored(now))
    with pytest.raises(CloisterError) as refused:
        world.release(good)
    assert refused.value.code != "keyservice-superseded"
    good.say(world.owner.statement(world.grant))
    assert world.release(good) == REQUEST.reveal()


def test_s7_witnesses_that_say_nothing_or_lie_about_a_backup_are_noticed(confirmed: World) -> None:
    world = confirmed
    header = inspected(backup_of(world.ks)).header
    for witness in world.witnesses:
        witness.away = True
    with pytest.raises(Unavailable) as caught:
        ask_witnesses([("w", world.witnesses[0])], header)
    assert caught.value.code == "witness-away"

    class Liar:
        """Makes a checkpoint that the log key never signed."""

        def add_checkpoint(self, body: bytes) -> bytes | int:
            raise AssertionError

        def newest(self, keyservice: bytes) -> bytes | None:
            note = world.ks.service.checkpoint()
            return note.replace(b"\n8\n", b"\n9\n") if keyservice == world.ks.id else None

    with pytest.raises(Unavailable):
        ask_witnesses([("w", Liar())], header)


# --- keys that were destroyed ---


def test_s7_a_destroyed_key_that_comes_back_with_a_backup_is_destroyed_at_once(world: World) -> None:
    world.ks.say(world.user.statement(RevokeConsent(world.model)))
    data = backup_of(world.ks)  # the entry says so, and its time has not come yet
    found = inspected(data)
    assert found.end.secrets == 2
    world.clock.advance(REQUEST_FRESHNESS_S + 1)
    world.ks.service.maintain()
    assert inspected(backup_of(world.ks)).end.secrets == 1
    disk = restored(data)
    assert len(disk.tables["secrets"]) == 2
    rows = MemoryRows(disk)
    assert authenticate(rows, ROOT, found, world.clock).destroyed == 1
    rows.close()
    assert len(disk.tables["secrets"]) == 1
    on_a_machine_without_its_root = restored(data)
    ks = world.start(on_a_machine_without_its_root)
    ks.service.maintain()
    assert len(on_a_machine_without_its_root.tables["secrets"]) == 1
    with pytest.raises(Refused):
        world.release(ks)


def test_s7_a_key_destroyed_while_it_is_copied_makes_no_backup_that_does_not_open(world: World) -> None:
    world.grow(BACKUP_ROWS)
    consent_entry = 7
    world.ks.say(world.user.statement(RevokeConsent(world.model)))
    pieces = backup_pieces(world.ks.assembled.ledger, log_keys=ROOT.log_keys, head=None, root=b"")
    data = next(pieces) + next(pieces)  # with the key
    world.clock.advance(REQUEST_FRESHNESS_S + 1)
    world.ks.service.maintain()
    data += b"".join(pieces)
    disk = restored(data)
    assert consent_entry in disk.tables["secrets"]
    found = authenticate(MemoryRows(disk), ROOT, inspected(data), world.clock)
    assert found.destroyed == 1
    assert consent_entry not in disk.tables["secrets"]


# --- where it is restored ---


def sealer() -> SimulatedSealer:
    return SimulatedSealer(SecretBytes(b"p" * 32), measurement=b"m" * 48, configuration_digest=b"c" * 32)


def restore(backup: Path, state: Path, *, opens: bool = True) -> Any:
    with backup.open("rb") as file:
        found = inspect(file, lambda _header: (), quiet)
    return restore_state(
        backup,
        found,
        state,
        root_file=state / ROOT_FILE,
        sealer=sealer() if opens else None,
        clock=FakeClock(),
        progress=quiet,
    )


@pytest.fixture
def backup(world: World, tmp_path: Path) -> Path:
    keep_root(tmp_path / "sealed", ROOT, sealer())
    pieces = backup_pieces(
        world.ks.assembled.ledger,
        log_keys=ROOT.log_keys,
        head=None,
        root=(tmp_path / "sealed").read_bytes(),
    )
    path = tmp_path / "backup"
    keep_backup(path, io.BytesIO(b"".join(pieces)).read, quiet)
    return path


def test_s7_nothing_is_overwritten_and_no_trap_is_followed(backup: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"somebody's")
    for name in (STORE_FILE, f"{STORE_FILE}-wal"):
        for target in (victim, tmp_path / "nowhere"):
            state = tmp_path / f"state-{name}-{target.name}"
            state.mkdir()
            (state / name).symlink_to(target)
            with pytest.raises(Refused) as caught:
                restore(backup, state)
            assert caught.value.code == "state-exists"
            assert sorted(path.name for path in state.iterdir()) == sorted({name, f"{STORE_FILE}.lock"})
    state = tmp_path / "trapped"
    state.mkdir()
    for name in ("store.sqlite.restored", "root.sealed.restored"):
        (state / name).symlink_to(victim)
    assert restore(backup, state).opened.entries == 8
    assert victim.read_bytes() == b"somebody's"
    with pytest.raises(Refused) as caught:
        restore(backup, state)
    assert caught.value.code == "state-exists"
    for name in ("new", "new.part"):
        target = tmp_path / "folder" / "new"
        target.parent.mkdir(exist_ok=True)
        (target.parent / name).unlink(missing_ok=True)
        (target.parent / name).symlink_to(victim)
        if name == "new":
            with pytest.raises(Refused) as caught:
                keep_backup(target, io.BytesIO(backup.read_bytes()).read, quiet)
            assert caught.value.code == "file-exists"
            target.unlink()
        else:
            keep_backup(target, io.BytesIO(backup.read_bytes()).read, quiet)
            assert target.read_bytes() == backup.read_bytes()
    assert victim.read_bytes() == b"somebody's"


def test_s7_a_backup_that_does_not_open_leaves_nothing_that_runs(backup: Path, tmp_path: Path) -> None:
    records = take_apart(backup.read_bytes())
    flip_entry(records)
    bad = tmp_path / "bad"
    bad.write_bytes(put_together(records))
    with pytest.raises(Tampered):
        restore(bad, tmp_path / "state")
    assert [path.name for path in (tmp_path / "state").iterdir()] == [f"{STORE_FILE}.lock"]
    keep_root(tmp_path / "state" / ROOT_FILE, root_of(SecretBytes(b"x" * 32)), sealer())
    with pytest.raises(InvalidInput) as caught:
        restore(backup, tmp_path / "state")
    assert caught.value.code == "backup-other"
    assert not (tmp_path / "state" / STORE_FILE).exists()


def test_s7_without_its_root_nothing_is_claimed_to_have_been_opened(backup: Path, tmp_path: Path) -> None:
    found = restore(backup, tmp_path / "state", opens=False)
    assert found.opened is None
    assert not (tmp_path / "state" / ROOT_FILE).exists()
    assert (tmp_path / "state" / STORE_FILE).exists()
    records = take_apart(backup.read_bytes())
    sealed_elsewhere = records[0]["root"]
    records[0]["root"] = sealed_elsewhere[:-1] + bytes([sealed_elsewhere[-1] ^ 1])
    other = tmp_path / "other"
    other.write_bytes(put_together(records))
    assert restore(other, tmp_path / "state2").opened is None
    assert not (tmp_path / "state2" / ROOT_FILE).exists()


# --- replicas ---


def test_s7_a_replica_restored_from_an_old_backup_follows_to_the_end_before_it_may_lead(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        leader = cluster.leader()
        number = cluster.number(leader)
        follower = next(other for other in cluster.live if other != number)
        cluster.attempt(leader.person, seconds=0.25)
        cluster.until(cluster.equal)
        old = backup_of(cluster.live[follower])
        for _ in range(3):
            cluster.attempt(leader.person, seconds=0.25)
        cluster.until(cluster.equal)
        size = leader.assembled.ledger.head().size
        for each in tuple(cluster.live):
            cluster.crash(each)
        restored_one = cluster.start(follower, restored(old))
        behind = restored_one.assembled.ledger.head().size
        assert behind < size
        others = [each for each in range(cluster.count) if each != follower]
        second = cluster.start(others[0], restored(old))
        for _ in range(60):  # two of three, a majority, both old: witnesses know more
            cluster.step(seconds=0.5)
            assert not cluster.leading()
        third = cluster.start(others[1])  # whose disk was not lost
        cluster.until(lambda: bool(cluster.leading()) and cluster.equal())
        assert cluster.leading() == [third]
        assert {each.assembled.ledger.head().size for each in (restored_one, second, third)} == {size}
    finally:
        cluster.close()


def test_s7_a_follower_whose_copy_was_replaced_ends_the_backup(world: World) -> None:
    world.grow(BACKUP_ROWS)
    ledger = world.ks.assembled.ledger
    pieces = backup_pieces(ledger, log_keys=ROOT.log_keys, head=None, root=b"")
    assert next(pieces)
    assert next(pieces)
    ledger.follow()
    ledger.cut(10, b"")
    ledger.lead()
    world.ks.person()
    with pytest.raises(Unavailable) as caught:
        list(pieces)
    assert caught.value.code == "backup-overtaken"


def test_s7_a_restore_that_is_cut_short_at_any_write_leaves_nothing_that_starts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.keyservice.backup.restoring.RESTORE_BATCH", 1)  # a transaction for each page
    world.grow(3 * BACKUP_ROWS)
    data = backup_of(world.ks)
    whole = MemoryDisk()
    copy_rows(io.BytesIO(data), inspected(data), MemoryRows(whole), quiet)
    assert whole.writes > 4
    codes = set()
    for number in range(whole.writes):
        for fault in ("fail_before", "fail_after"):
            disk = MemoryDisk()
            setattr(disk, fault, number)
            rows = MemoryRows(disk)
            with pytest.raises(Unavailable):
                copy_rows(io.BytesIO(data), inspected(data), rows, quiet)
            rows.close()
            if fault == "fail_after" and number == whole.writes - 1:
                assert open_disk(disk).head().size == inspected(data).end.size  # it was the last
                continue
            with pytest.raises(Tampered) as caught:
                open_disk(disk).require_genesis(ROOT.id)
            codes.add(caught.value.code)
            again = MemoryRows(disk) if disk.tables["entries"] and not disk.locked else None
            if again is not None:
                with pytest.raises(Refused):  # and nothing is written over it
                    copy_rows(io.BytesIO(data), inspected(data), again, quiet)
    assert codes == {"store-empty", "store-head"}
