"""S7 with snapshots: who owns the disk deletes, changes, swaps, mixes and brings back; nothing wrong is ever answered.

What is derived (blocks, snapshots) is either right or not used; what was not read at the start is found when somebody
asks for it, by the scrub, and by the start after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.base.errors import CloisterError, Refused, Tampered
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.keyservice.root import root_of
from cloister.keyservice.storage.chain import CHAIN_START, chain_link
from cloister.keyservice.storage.port import BLOCKS, ENTRIES, HEAD, SECRETS, SNAPSHOTS
from cloister.keyservice.storage.sealed import SealedStore
from cloister.testing.clock import FakeClock
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.keyservice_state import canonical, without_snapshot
from cloister.testing.logs import MemoryLog
from cloister.testing.people import Person, simulation_policy
from cloister.testing.replicas import Cluster
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.testing.tee import SimulatedTee
from cloister.wire.provisioning import ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Consent,
    DefinePolicy,
    Grant,
    PublishModel,
    RevokeGrant,
    RotateRequestKey,
    Validity,
    key_commitment,
)

MODEL_KEY, REQUEST, NEXT = SecretBytes(b"M" * 32), SecretBytes(b"Q" * 32), SecretBytes(b"N" * 32)
SEED = b"r" * 32
BLOCK = 4


class World:
    """A KeyService with a grant, a consent, four blocks, a snapshot, and two entries after it."""

    def __init__(self, seed: bytes = SEED) -> None:
        self.clock = FakeClock()
        self.platform = SimulatedTee("runtime", clock=self.clock)
        self.seed = seed
        self.disk = MemoryDisk()
        self.ks = self.start(self.disk)
        self.owner, self.user = self.ks.person(b"o" * 32), self.ks.person(b"u" * 32)
        policy = self.platform.policy()
        self.model = ModelId(self.owner.id, "model")
        self.grant = Grant("model", self.user.id, policy.digest, Validity(), 0)
        for person in (self.owner, self.user):
            self.ks.say(person.statement(DefinePolicy(policy.encode())))
        self.ks.say(self.owner.statement(PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))), MODEL_KEY)
        self.ks.say(self.owner.statement(self.grant))
        consent = Consent(self.model, policy.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
        self.ks.say(self.user.statement(consent), REQUEST)
        self.request = ReleaseRequest(self.user.id, self.model, REQUEST_KEY, key_commitment(REQUEST))
        self.more(10)
        assert self.ks.assembled.keeper.save()
        self.more(2)
        assert sorted(self.disk.tables[BLOCKS]) == [0, 1, 2, 3]
        self.saved = self.ks.assembled.keeper.saved

    def start(self, disk: MemoryDisk, code: str = "keyservice") -> EmbeddedKeyService:
        return EmbeddedKeyService(
            clock=self.clock,
            disk=disk,
            runtime_tee=self.platform,
            seed=self.seed,
            block_entries=BLOCK,
            code=code,
            events=MemoryLog(),
        )

    def more(self, count: int, by: Person | None = None) -> None:
        person = by or self.owner
        for _ in range(count):
            policy = simulation_policy(person.sequence.to_bytes(48, "big"))
            self.ks.say(person.statement(DefinePolicy(policy.encode())))

    def again(self, disk: MemoryDisk | None = None, code: str = "keyservice") -> EmbeddedKeyService:
        """Stopped, and started on this disk."""
        self.ks.close()
        if disk is not None:
            self.disk = disk
        self.disk.locked = False
        self.ks = self.start(self.disk, code)
        return self.ks

    def release(self) -> SecretBytes:
        return self.ks.attest(self.platform).release(self.request).key

    def read_everything(self) -> None:
        while self.ks.assembled.keeper.scrub():
            pass

    def events(self, name: str) -> list[dict[str, object]]:
        log = self.ks.events
        assert isinstance(log, MemoryLog)
        return [fields for event, _, fields in log.events if event == name]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.ks.close()


Tables = dict[str, dict[int, bytes]]
Change = Callable[[World, Tables], None]


def parts(tables: Tables) -> list[int]:
    return sorted(index for index in tables[SNAPSHOTS] if index)


def flip(table: str, index: int | None = None, at: int = 40) -> Change:
    def change(_world: World, tables: Tables) -> None:
        place = parts(tables)[0] if index is None else index
        record = bytearray(tables[table][place])
        record[at] ^= 1
        tables[table][place] = bytes(record)

    return change


def no_manifest(_world: World, tables: Tables) -> None:
    del tables[SNAPSHOTS][0]


def no_part(_world: World, tables: Tables) -> None:
    del tables[SNAPSHOTS][parts(tables)[0]]


def part_for_manifest(_world: World, tables: Tables) -> None:
    tables[SNAPSHOTS][0] = tables[SNAPSHOTS][parts(tables)[0]]


def manifest_for_part(_world: World, tables: Tables) -> None:
    tables[SNAPSHOTS][parts(tables)[0]] = tables[SNAPSHOTS][0]


def block_for_part(_world: World, tables: Tables) -> None:
    tables[SNAPSHOTS][parts(tables)[0]] = tables[BLOCKS][0]


def cut_part(_world: World, tables: Tables) -> None:
    place = parts(tables)[0]
    tables[SNAPSHOTS][place] = tables[SNAPSHOTS][place][:-20]


def part_of_an_older_one(world: World, tables: Tables) -> None:
    """Both are of the same slot and the same place, under the same key."""
    old = parts(tables)[0], tables[SNAPSHOTS][parts(tables)[0]]
    for _ in range(2):
        world.more(1)
        assert world.ks.assembled.keeper.save()
    tables.update({name: dict(rows) for name, rows in world.disk.tables.items()})
    assert parts(tables) == [old[0]]
    tables[SNAPSHOTS][old[0]] = old[1]


def of_another_keyservice(_world: World, tables: Tables) -> None:
    other = World(b"s" * 32)
    tables[SNAPSHOTS] = dict(other.disk.tables[SNAPSHOTS])
    other.ks.close()


def of_another_history(world: World, tables: Tables) -> None:
    """The disk is copied, both copies go on, and the one's snapshot and blocks are laid under the other's log."""
    here = {name: dict(rows) for name, rows in tables.items()}
    world.more(9, by=world.user)
    assert world.ks.assembled.keeper.save()
    there = world.disk.copy()
    tables.update(here)
    tables[SNAPSHOTS], tables[BLOCKS] = dict(there.tables[SNAPSHOTS]), dict(there.tables[BLOCKS])


def of_the_same_size_in_another_history(world: World, tables: Tables) -> None:
    """As before, and the log goes on to the same size, so that only the chain tells them apart."""
    copy = world.disk.copy()
    world.more(3, by=world.user)
    assert world.ks.assembled.keeper.save()
    there = world.disk.copy()
    world.again(copy)
    world.more(3)
    tables.update({name: dict(rows) for name, rows in world.disk.tables.items()})
    tables[SNAPSHOTS], tables[BLOCKS] = dict(there.tables[SNAPSHOTS]), dict(there.tables[BLOCKS])


NOT_USED = {
    "a bit of the manifest": flip(SNAPSHOTS, 0),
    "a bit of a part": flip(SNAPSHOTS),
    "a part is gone": no_part,
    "a part is cut": cut_part,
    "a part in place of the manifest": part_for_manifest,
    "the manifest in place of a part": manifest_for_part,
    "a block in place of a part": block_for_part,
    "a part of an older snapshot": part_of_an_older_one,
    "of another KeyService": of_another_keyservice,
    "of another history": of_another_history,
    "of the same size in another history": of_the_same_size_in_another_history,
}


@pytest.mark.parametrize("attack", NOT_USED)
def test_s7_a_snapshot_that_is_not_this_logs_is_not_used(world: World, attack: str) -> None:
    tables = {name: dict(rows) for name, rows in world.disk.tables.items()}
    NOT_USED[attack](world, tables)
    disk = MemoryDisk()
    disk.tables = tables
    plain = World.start(world, without_snapshot(disk))
    expected = canonical(plain.assembled.ledger)
    plain.close()
    world.again(disk)
    assert world.ks.assembled.ledger.begun == 0
    assert [event["code"] for event in world.events("snapshot-ignored")] in (
        [["store-record"], ["store-missing"], ["store-head"]]
    )
    assert canonical(world.ks.assembled.ledger) == expected
    assert world.release() == REQUEST
    assert world.ks.assembled.keeper.save()  # in place of what was there
    world.again()
    assert world.ks.assembled.ledger.begun == world.ks.assembled.ledger.head().size
    world.read_everything()


def test_s7_without_its_snapshot_every_entry_is_read(world: World) -> None:
    before = canonical(world.ks.assembled.ledger)
    no_manifest(world, world.disk.tables)
    world.again()
    assert world.ks.assembled.ledger.begun == 0
    assert not world.events("snapshot-ignored")
    assert canonical(world.ks.assembled.ledger) == before


def test_s5_s7_an_older_snapshot_revives_nothing(world: World) -> None:
    """It is of this log, so it is used: what came after it is read, the revocation among it."""
    old = dict(world.disk.tables[SNAPSHOTS])
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    world.more(8)
    assert world.ks.assembled.keeper.save()
    before = canonical(world.ks.assembled.ledger)
    world.disk.tables[SNAPSHOTS] = old
    world.again()
    assert world.ks.assembled.ledger.begun == world.saved
    assert canonical(world.ks.assembled.ledger) == before
    with pytest.raises(Refused):
        world.release()


def test_s7_a_newer_snapshot_over_an_older_log_is_not_used(world: World) -> None:
    """Rolling the log back is what it was before (witnesses and callers notice); a newer snapshot does not help it."""
    old = world.disk.copy()
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    assert world.ks.assembled.keeper.save()
    mixed = old.copy()
    mixed.tables[SNAPSHOTS] = dict(world.disk.tables[SNAPSHOTS])
    world.again(mixed)
    assert [event["code"] for event in world.events("snapshot-ignored")] == ["store-head"]
    assert world.ks.assembled.ledger.head().size == len(old.tables[ENTRIES])


def gone(*indices: int) -> Change:
    def change(_world: World, tables: Tables) -> None:
        for index in indices:
            del tables[ENTRIES][index]

    return change


def all_but(*kept: int) -> Change:
    def change(world: World, tables: Tables) -> None:
        for index in range(world.saved):
            if index not in kept and index != world.saved - 1:
                del tables[ENTRIES][index]

    return change


def swapped(world: World, tables: Tables) -> None:
    del world
    rows = tables[ENTRIES]
    rows[5], rows[6] = rows[6], rows[5]


def from_another_history(world: World, tables: Tables) -> None:
    """Sealed by the same KeyService, to the same place, after the same entries; but another entry."""
    early = world.disk.copy()
    for table in (ENTRIES, SECRETS):
        for index in [index for index in early.tables[table] if index >= 9]:
            del early.tables[table][index]
    for table in (BLOCKS, SNAPSHOTS):
        early.tables[table].clear()
    root, chain = root_of(SecretBytes(world.seed)), CHAIN_START
    for index in range(9):
        chain = chain_link(chain, early.tables[ENTRIES][index])
    store = SealedStore(MemoryRows(MemoryDisk()), root.store_key, root.id)
    early.tables[HEAD][0] = store._head_row(9, chain).record  # as it lay there once
    other = world.start(early)
    other.say(world.user.statement(DefinePolicy(simulation_policy(b"x" * 48).encode())))
    tables[ENTRIES][9] = early.tables[ENTRIES][9]
    other.close()


LATER = {
    "one entry is gone": gone(9),
    "a bit of one": flip(ENTRIES, 9),
    "two are swapped": swapped,
    "one of another history": from_another_history,
    "a snapshot almost alone": all_but(0),
}
NOW = {
    "the first is gone": gone(0),
    "a bit of the first": flip(ENTRIES, 0),
    "a snapshot alone": all_but(),
}


def damaged(world: World, change: Change) -> MemoryDisk:
    disk = world.disk.copy()
    change(world, disk.tables)
    return disk


@pytest.mark.parametrize("attack", LATER)
def test_s7_entries_before_a_snapshot_are_found_by_the_scrub_and_refused_from_then_on(
    world: World, attack: str
) -> None:
    head = world.ks.assembled.ledger.head()
    told: list[Tampered] = []
    world.again(damaged(world, LATER[attack]))
    world.ks.assembled.ledger.watch(told.append)
    assert world.ks.assembled.ledger.head().root == head.root  # of the right log, whatever lies there
    assert world.release() == REQUEST  # and right answers, until it is found
    with pytest.raises(Tampered) as caught:
        world.read_everything()
    assert caught.value.code in ("store-record", "store-missing")
    assert [error.code for error in told] == [caught.value.code]
    assert world.events("store-tampered") == [{"code": caught.value.code}]
    stopped(world, caught.value.code)
    with pytest.raises(Tampered) as refused:
        world.again()
    assert refused.value.code in ("store-record", "store-missing")


def stopped(world: World, code: str) -> None:
    """Nothing is answered any more, and the host is told."""
    assert not world.ks.service.healthy()
    assert not world.disk.tables[SNAPSHOTS]
    asked: list[Callable[[], Any]] = [
        lambda: world.ks.ask(world.user, "whoami"),
        lambda: world.ks.say(world.owner.statement(world.grant)),
        lambda: world.ks.service.status(bytes(32)),
        world.release,
    ]
    for ask in asked:
        with pytest.raises(CloisterError) as caught:
            ask()
        assert caught.value.code in (code, "release-refused")  # a runtime is told no more


@pytest.mark.parametrize("attack", LATER)
def test_s7_entries_before_a_snapshot_are_found_by_whoever_asks_for_them(world: World, attack: str) -> None:
    world.again(damaged(world, LATER[attack]))
    with pytest.raises(Tampered) as caught:
        world.ks.ask(world.owner, "events")
    stopped(world, caught.value.code)


@pytest.mark.parametrize("attack", NOW)
def test_s7_the_first_and_the_last_entry_of_a_snapshot_are_read_at_the_start(world: World, attack: str) -> None:
    disk = damaged(world, NOW[attack])
    with pytest.raises(Tampered):
        world.again(disk)


@pytest.mark.parametrize("table", [ENTRIES, HEAD, SECRETS])
def test_s7_what_a_start_reads_still_stops_it(world: World, table: str) -> None:
    """Entries after the snapshot, the head, and secrets: as without snapshots."""
    disk = damaged(world, flip(table, {ENTRIES: world.saved, HEAD: 0, SECRETS: 5}[table]))
    with pytest.raises(Tampered) as caught:
        world.again(disk)
    assert caught.value.code == "store-record"


def another_block(_world: World, tables: Tables) -> None:
    tables[BLOCKS][2] = tables[BLOCKS][1]


def no_block(_world: World, tables: Tables) -> None:
    del tables[BLOCKS][2]


def entry_for_block(_world: World, tables: Tables) -> None:
    tables[BLOCKS][2] = tables[ENTRIES][2]


BLOCKS_CHANGED = {
    "a bit": flip(BLOCKS, 2),
    "gone": no_block,
    "another one": another_block,
    "an entry in its place": entry_for_block,
}


@pytest.mark.parametrize("attack", BLOCKS_CHANGED)
@pytest.mark.parametrize("who", ["scrub", "question"])
def test_s7_a_changed_block_is_found_and_made_anew(world: World, attack: str, who: str) -> None:
    before = canonical(world.ks.assembled.ledger)
    world.again(damaged(world, BLOCKS_CHANGED[attack]))
    with pytest.raises(Tampered) as caught:
        world.read_everything() if who == "scrub" else world.ks.ask(world.owner, "events")
    stopped(world, caught.value.code)
    world.again()  # every entry is read, and whole
    assert world.ks.assembled.ledger.begun == 0
    assert canonical(world.ks.assembled.ledger) == before
    assert world.ks.assembled.keeper.save()
    world.again()
    world.read_everything()
    assert canonical(world.ks.assembled.ledger) == before


def test_s7_an_old_block_of_another_history_does_not_open(world: World) -> None:
    copy = world.disk.copy()
    world.more(8, by=world.user)
    assert world.ks.assembled.keeper.save()
    there = world.disk.copy()
    world.again(copy)
    world.more(8)
    assert world.ks.assembled.keeper.save()
    disk = world.disk.copy()
    number = max(disk.tables[BLOCKS]) - 1  # the last one is read at the start
    disk.tables[BLOCKS][number] = there.tables[BLOCKS][number]
    world.again(disk)
    with pytest.raises(Tampered):
        world.read_everything()


def test_s7_secrets_that_were_destroyed_do_not_come_back_with_a_snapshot(world: World) -> None:
    """The attacker has every earlier disk: the snapshot from before the rotation, and the secret beside it."""
    old = world.disk.copy()
    world.ks.say(world.user.statement(RotateRequestKey(world.model, key_commitment(NEXT))), NEXT)
    world.clock.advance(200)
    world.ks.service.maintain()
    assert world.ks.assembled.keeper.save()
    mixed = world.disk.copy()
    lost = set(old.tables[SECRETS]) - set(mixed.tables[SECRETS])
    assert len(lost) == 1
    mixed.tables[SECRETS] |= old.tables[SECRETS]
    for snapshot in (mixed.tables[SNAPSHOTS], old.tables[SNAPSHOTS]):
        disk = mixed.copy()
        disk.tables[SNAPSHOTS] = dict(snapshot)
        world.again(disk)
        assert world.ks.assembled.ledger.begun
        world.ks.service.maintain()
        with pytest.raises(Refused):
            world.release()
        assert not lost & set(world.ks.assembled.ledger._vault._secrets)


def test_s10_no_secret_is_in_a_snapshot_or_block_and_nothing_is_in_the_clear(world: World) -> None:
    root = root_of(SecretBytes(SEED))
    store = SealedStore(MemoryRows(world.disk.copy()), root.store_key, root.id, block_entries=BLOCK)
    saved = store.snapshots.saved()
    assert saved is not None
    opened = b"".join(store.snapshots.parts(saved))
    lies_there = b"".join(record for table in (BLOCKS, SNAPSHOTS) for record in world.disk.tables[table].values())
    for secret in (MODEL_KEY, REQUEST):
        assert secret.reveal() not in opened + lies_there
    assert world.user.id in opened
    assert world.user.id not in lies_there
    assert b"model" not in lies_there


def test_s7_what_other_code_wrote_is_not_gone_on_from(world: World) -> None:
    """An older build with a fault in its rules leaves no state behind for the one that mends it."""
    before = canonical(world.ks.assembled.ledger)
    world.again(code="patched")
    assert [event["code"] for event in world.events("snapshot-ignored")] == ["snapshot-other-code"]
    assert world.ks.assembled.ledger.begun == 0
    assert canonical(world.ks.assembled.ledger) == before


def test_s7_a_replica_drops_snapshot_and_blocks_with_the_entries_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever brings them back gets nothing: they are of a history that lost."""
    cluster = Cluster(tmp_path, block_entries=BLOCK)
    try:
        leader = cluster.leader()
        person = Person(leader.id, cluster.clock, b"o" * 32)
        policies = (simulation_policy(number.to_bytes(48, "big")).encode() for number in range(1, 100))
        cluster.attempt(lambda: leader.say(person.register()))
        for _ in range(8):
            cluster.attempt(lambda: leader.say(person.statement(DefinePolicy(next(policies)))))
        cluster.until(cluster.equal)
        loser = cluster.number(leader)
        assert leader.assembled.keeper.save()
        confirmed = leader.assembled.keeper.saved
        others = [number for number in range(3) if number != loser]
        cluster.part([loser], others)
        for _ in range(5):  # on one disk only
            with pytest.raises(CloisterError):
                cluster.attempt(lambda: leader.say(person.statement(DefinePolicy(next(policies)))))
        assert not leader.assembled.keeper.save()  # they may be replaced
        ledger = leader.assembled.ledger
        tentative = ledger.position()[0]
        assert tentative > confirmed
        with monkeypatch.context() as patched:  # as if that rule were not there
            patched.setattr(type(ledger), "lasting", property(lambda self: self.position()[0]))
            assert leader.assembled.keeper.save()
        lost = leader.disk.copy()
        cluster.until(lambda: any(ks is not leader for ks in cluster.leading()))
        winner = next(ks for ks in cluster.leading() if ks is not leader)
        for _ in range(7):
            cluster.attempt(lambda: winner.say(person.statement(DefinePolicy(next(policies)))))
        cluster.part()
        cluster.until(cluster.equal)
        assert canonical(leader.assembled.ledger) == canonical(winner.assembled.ledger)
        cluster.crash(loser)
        disk = cluster.disks[loser]
        disk.tables[SNAPSHOTS], disk.tables[BLOCKS] = lost.tables[SNAPSHOTS], lost.tables[BLOCKS]
        again = cluster.start(loser, disk)
        cluster.until(cluster.equal)
        assert canonical(again.assembled.ledger) == canonical(winner.assembled.ledger)
    finally:
        cluster.close()
