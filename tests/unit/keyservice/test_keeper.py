"""When snapshots are written, by whom, and what becomes of one that cannot be."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cloister.adapters.logs import Value
from cloister.base.errors import Tampered, Unavailable
from cloister.base.limits import SNAPSHOT_LEAST
from cloister.keyservice import keeper as module
from cloister.keyservice.keeper import Keeper
from cloister.keyservice.storage.port import BLOCKS, ENTRIES, SNAPSHOTS
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.logs import MemoryLog
from cloister.testing.people import Person, simulation_policy
from cloister.wire.statements import DefinePolicy

BLOCK = 4
PATIENCE_S = 30.0


class Heard(MemoryLog):
    """Events that a test may wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def event(self, name: str, /, *, level: str = "info", **fields: Value) -> None:
        with self.changed:
            super().event(name, level=level, **fields)
            self.changed.notify_all()

    def named(self, name: str) -> list[dict[str, object]]:
        return [fields for event, _, fields in self.events if event == name]

    def wait(self, name: str) -> dict[str, object]:
        with self.changed:
            assert self.changed.wait_for(lambda: self.named(name), PATIENCE_S), self.events
        return self.named(name)[-1]


class World:
    def __init__(self) -> None:
        self.ks = EmbeddedKeyService(block_entries=BLOCK)
        self.person = Person(self.ks.id, self.ks.clock, b"o" * 32)
        self.ks.say(self.person.register())
        self.log = Heard()

    def more(self, count: int) -> None:
        for _ in range(count):
            policy = simulation_policy(self.person.sequence.to_bytes(48, "big"))
            self.ks.say(self.person.statement(DefinePolicy(policy.encode())))

    def keeper(self, every: int) -> Keeper:
        return Keeper(self.ks.assembled.ledger, self.ks.clock, self.log, every=every)

    @property
    def size(self) -> int:
        return self.ks.assembled.ledger.head().size


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.ks.close()


def test_a_snapshot_is_due_after_so_many_entries(world: World) -> None:
    keeper = world.keeper(every=8)
    world.more(5)
    assert not keeper.due()
    world.more(1)
    assert keeper.due()
    assert keeper.save()
    assert not keeper.due()
    assert keeper.saved == world.size == 8
    world.more(8)
    assert keeper.due()


def test_a_large_state_is_written_less_often(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.more(20)
    keeper = world.keeper(every=1)
    assert keeper.save()
    assert keeper._saved[1] > 25  # rows: each policy is one, and there are more
    monkeypatch.setattr(module, "SNAPSHOT_SHARE", 4)
    world.more(keeper._saved[1] // 4 - 1)
    assert not keeper.due()
    world.more(1)
    assert keeper.due()


def test_threads_write_it_and_read_the_rest(world: World) -> None:
    world.more(12)
    keeper = world.keeper(every=8)
    keeper.start()
    assert world.log.wait("snapshot")["sequence"] == 14
    keeper.stop()
    world.ks.restart()
    keeper = world.keeper(every=100)
    assert (keeper.saved, keeper.scrubbed, keeper.unscrubbed) == (14, 0, 14)
    keeper.start()
    assert world.log.wait("scrubbed")["sequence"] == 14
    keeper.stop()
    assert (keeper.scrubbed, keeper.unscrubbed) == (14, 0)
    assert world.log.named("snapshot-read") == [{"sequence": 14}]


def test_the_last_one_is_written_at_the_end_if_it_is_worth_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SNAPSHOT_LEAST > 100
    world.more(8)
    keeper = world.keeper(every=100)
    keeper.stop()
    assert not world.log.events
    monkeypatch.setattr(module, "SNAPSHOT_LEAST", 10)
    keeper.stop()
    assert world.log.named("snapshot")[0]["sequence"] == world.size


def test_a_full_disk_leaves_the_one_before(world: World) -> None:
    world.more(8)
    keeper = world.keeper(every=1)
    assert keeper.save()
    world.more(8)
    before = dict(world.ks.disk.tables[SNAPSHOTS])
    for writes in range(3):  # the first block; the second; the manifest, after the second and a part
        world.ks.disk.fail_before = writes
        assert not keeper._try_save()
        assert {**before, **world.ks.disk.tables[SNAPSHOTS]}[0] == before[0]
        assert keeper.saved == 10
    assert [event["code"] for event in world.log.named("snapshot-failed")] == ["store-unavailable"] * 3
    world.more(1)
    assert keeper._try_save()
    assert keeper.saved == world.size


def test_a_fault_of_ours_is_told_and_ends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.snapshots, "copy", lambda *_: 1 / 0)
    keeper = world.keeper(every=1)
    assert not keeper._try_save()
    assert world.log.named("internal-error") == [{"where": "snapshots", "error": "ZeroDivisionError"}]
    world.more(1)


def test_the_scrub_waits_for_a_disk_that_is_away_and_ends_with_a_store_that_is_not_sound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.more(8)
    assert world.keeper(every=1).save()
    world.ks.restart()
    found: list[Tampered] = []
    ledger = world.ks.assembled.ledger
    ledger.watch(found.append)
    get = ledger._store._rows.get  # type: ignore[attr-defined]
    away = [True]

    def flaky(table: str, index: int) -> bytes | None:
        if table == ENTRIES and away.pop() if away else False:
            raise Unavailable("store-unavailable", "the disk is away")
        return get(table, index)

    ledger._store._rows.get = flaky  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "_RETRY_S", 0.0)
    del world.ks.disk.tables[ENTRIES][3]
    keeper = world.keeper(every=100)
    keeper._scrub()
    assert not away
    assert [error.code for error in found] == ["store-missing"]
    assert not world.log.named("scrubbed")
    assert not ledger.open
    keeper.stop()  # writes nothing: what would it say?
    assert not world.ks.disk.tables[SNAPSHOTS]


def test_a_snapshot_that_entries_were_cut_from_is_forgotten(world: World) -> None:
    """As a replica does that drops a history which lost."""
    world.more(11)
    keeper = world.keeper(every=4)
    ledger = world.ks.assembled.ledger
    assert keeper.save()
    world.more(6)
    assert keeper.save()
    assert keeper.saved == 19
    ledger.follow()
    ledger.cut(14, b"")
    assert keeper.saved == 0
    assert sorted(world.ks.disk.tables[BLOCKS]) == [0, 1, 2]
    assert keeper.due()
    assert keeper.save()
    assert keeper.saved == 14


def test_a_cut_while_one_is_written_ends_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.more(11)
    keeper = world.keeper(every=4)
    ledger = world.ks.assembled.ledger
    ledger.follow()
    monkeypatch.setattr(module.snapshots, "parts", lambda _copy: iter([ledger.cut(9, b"")] and [(b"\x80", 0)]))
    assert not keeper.save()
    assert not world.ks.disk.tables[SNAPSHOTS]
    monkeypatch.undo()
    assert keeper.save()
    assert keeper.saved == 9
