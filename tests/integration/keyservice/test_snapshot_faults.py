"""A crash at every write of a scenario with snapshots: nothing acknowledged is lost, nothing half-written is used."""

from __future__ import annotations

import contextlib

import pytest

from cloister.base.errors import CloisterError, Unavailable
from cloister.keyservice.storage.port import BLOCKS
from cloister.testing.clock import FakeClock
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.keyservice_state import canonical, without_snapshot
from cloister.testing.people import Person, simulation_policy
from cloister.testing.rows import MemoryDisk
from cloister.testing.tee import SimulatedTee
from cloister.wire.statements import DefinePolicy

BLOCK = 4


class Scenario:
    """Statements, with snapshots in between; goes on after errors as a service would, until it is killed."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.platform = SimulatedTee("runtime", clock=self.clock)
        self.disk = MemoryDisk()
        self.ks = self.start(self.disk)
        self.person = Person(self.ks.id, self.clock, b"o" * 32)
        self.acknowledged = 0
        self.faults = 0

    def start(self, disk: MemoryDisk) -> EmbeddedKeyService:
        return EmbeddedKeyService(clock=self.clock, disk=disk, runtime_tee=self.platform, block_entries=BLOCK)

    def run(self) -> None:
        for number in range(1, 12):
            self.say(number)
        self.save()
        for number in range(12, 20):
            self.say(number)
        self.save()
        self.say(20)
        self.save()

    def say(self, number: int) -> None:
        body = DefinePolicy(simulation_policy(number.to_bytes(48, "big")).encode())
        statement = self.person.register() if number == 1 else self.person.statement(body)
        for _ in range(3):
            try:
                self.acknowledged = self.ks.say(statement)["entry"] + 1
            except Unavailable:
                self.faults += 1
            else:
                return
        raise AssertionError

    def save(self) -> None:
        for _ in range(3):
            try:
                assert self.ks.assembled.keeper.save()
            except Unavailable:
                self.faults += 1
            else:
                return
        raise AssertionError


def writes() -> int:
    scenario = Scenario()
    before = scenario.disk.writes
    scenario.run()
    assert not scenario.faults
    assert len(scenario.disk.tables[BLOCKS]) == 5
    return scenario.disk.writes - before


WRITES = writes()


@pytest.mark.parametrize("fault", ["fail_before", "fail_after"])
def test_a_fault_at_any_write_is_survived(fault: str) -> None:
    """The disk fails once, and the service goes on by itself."""
    for number in range(WRITES):
        scenario = Scenario()
        setattr(scenario.disk, fault, number)
        scenario.run()
        assert scenario.faults == 1
        expected = canonical(scenario.ks.assembled.ledger)
        check(scenario, scenario.disk, 21, begun=21)
        assert canonical(scenario.ks.assembled.ledger) == expected


@pytest.mark.parametrize("fault", ["fail_before", "fail_after"])
def test_a_crash_at_any_write_loses_nothing(fault: str) -> None:
    """The process is killed there: what lies on the disk then is all that the next one has."""
    begun = set()
    for number in range(WRITES):
        scenario = Scenario()
        setattr(scenario.disk, fault, number)
        write = scenario.ks.assembled.ledger._store._rows.write  # type: ignore[attr-defined]

        def killed(*args: object, scenario: Scenario = scenario, write: object = write) -> None:
            try:
                write(*args)  # type: ignore[operator]
            except Unavailable as error:
                scenario.disk.fail_before = 0  # and for ever
                raise SystemExit from error

        scenario.ks.assembled.ledger._store._rows.write = killed  # type: ignore[attr-defined]
        with contextlib.suppress(SystemExit):
            scenario.run()
        crashed = scenario.disk.copy()
        least = scenario.acknowledged
        scenario.ks = scenario.start(crashed)
        begun.add(scenario.ks.assembled.ledger.begun)
        check(scenario, crashed, least)
    assert begun == {0, 12, 20, 21} - ({21} if fault == "fail_before" else set())


def check(scenario: Scenario, disk: MemoryDisk, least: int, begun: int | None = None) -> None:
    """Everything is there, the snapshot says what the log says, and it goes on."""
    with contextlib.suppress(CloisterError):
        scenario.ks.close()
    disk.fail_before = disk.fail_after = None
    disk.locked = False
    ks = scenario.ks = scenario.start(disk)
    ledger = ks.assembled.ledger
    assert ledger.head().size >= max(least, 1)
    assert not ledger.ignored
    assert begun in (None, ledger.begun)
    replayed = scenario.start(without_snapshot(disk)).assembled.ledger
    assert canonical(ledger) == canonical(replayed)
    while ks.assembled.keeper.scrub():
        pass
    assert ks.assembled.keeper.save()
    ks.restart()
    assert ks.assembled.ledger.begun == ledger.head().size
    assert canonical(ks.assembled.ledger) == canonical(replayed)
