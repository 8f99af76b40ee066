"""The power fails at every write and every fsync of one scenario, and the disk holds whatever it may hold then.

What was acknowledged is there, nothing is half there, and the service goes on. strace records what the product's own
process does to its files; ``cloister.testing.disk_trace`` makes the images.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cloister.base.errors import CloisterError, Tampered, Unavailable
from cloister.keyservice.keeper import Keeper
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.offline import ROOT_FILE
from cloister.keyservice.root import Root
from cloister.keyservice.storage.place import STORE_FILE
from cloister.keyservice.storage.sqlite import SqliteRows
from cloister.log.merkle import HASH_LENGTH, MerkleTree
from cloister.testing import crash_scenario, disk_trace
from cloister.testing.clock import FakeClock
from cloister.testing.crash_scenario import FOLLOWS, LEADS, TOLD
from cloister.testing.disk_trace import Disk, Event, Image
from cloister.testing.logs import MemoryLog
from cloister.testing.people import Person

pytestmark = pytest.mark.skipif(not disk_trace.AVAILABLE, reason="strace is not installed")

LATER = 1_800_100_000.0  # after everything in the scenario


@dataclass
class Expected:
    """What a store must hold, from what was told: one of these sizes, and none of these secrets."""

    sizes: tuple[int, ...] = (0,)
    gone: set[int] = field(default_factory=set)
    begun: str = ""


@dataclass(frozen=True)
class Recording:
    folder: Path
    events: list[Event]
    told: list[dict[str, Any]]
    root: Root
    final: MerkleTree

    def lines(self, number: int) -> dict[str, Expected]:
        """What holds after so many lines were told."""
        found = {LEADS: Expected(), FOLLOWS: Expected()}
        for at, line in enumerate(self.told[:number]):
            if not line["store"]:
                continue
            expected = found[line["store"]]
            if "begins" in line:
                done = next((one for one in self.told[at:] if one["store"] == line["store"] and "size" in one), None)
                expected.sizes = (*expected.sizes, done["size"] if done else expected.sizes[0])
                expected.begun = line["begins"]
            else:
                expected.sizes, expected.begun = (line["size"],), ""
                expected.gone |= set(line.get("gone", ()))
        return found


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("traced")
    command = [sys.executable, "-m", "cloister.testing.crash_scenario", str(folder)]
    events = disk_trace.record(command, folder / "trace")
    root = crash_scenario.root(folder / LEADS)
    ks = crash_scenario.running(folder / LEADS, FakeClock(LATER))
    leaves = ks.assembled.ledger.leaves(0, ks.assembled.ledger.head().size)
    final = MerkleTree(leaves[at : at + HASH_LENGTH] for at in range(0, len(leaves), HASH_LENGTH))
    ks.close()
    told = [json.loads(line) for line in (folder / TOLD).read_text().splitlines()]
    assert told[-1] == {"store": "", "ends": True}
    return Recording(folder, events, told, root, final)


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Path]:
    """Where images are opened; in memory where there is such a place, for their fsyncs are not the point."""
    memory = Path("/dev/shm")  # a folder of our own in it
    found = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else tmp_path))
    yield found / "image"
    shutil.rmtree(found)


def points(recording: Recording) -> Iterator[tuple[int, int, Disk]]:
    """(event, lines told, disk) after each event that changes the disk."""
    disk, told = Disk(recording.folder), 0
    for at, event in enumerate(recording.events):
        if event.path == str(recording.folder / TOLD):
            told += event.kind == "write"
        elif disk.apply(event):
            yield at, told, disk


def opened(recording: Recording, image: Image, workshop: Path) -> tuple[Path, set[str]]:
    """The image laid out; which files are there."""
    folder = disk_trace.lay(image, recording.folder, workshop)
    return folder, {str(Path(path).relative_to(recording.folder)) for path in image}


def same_history(recording: Recording, tree: MerkleTree) -> None:
    assert tree.root() == recording.final.root(tree.size)


def whole_snapshots(ledger: Ledger) -> None:
    """None that is half there is gone on from, or even seen; and what was gone on from is all there."""
    assert not ledger.ignored
    keeper = Keeper(ledger, FakeClock(LATER), MemoryLog())
    while keeper.scrub():
        pass


def check_leads(recording: Recording, image: Image, workshop: Path, expected: Expected) -> str:
    """Start the KeyService on it; what came of it, in a word."""
    folder, files = opened(recording, image, workshop)
    if f"{LEADS}/{ROOT_FILE}" not in files or expected.sizes[0] == 0:
        return check_unborn(folder / LEADS, expected)
    ks = crash_scenario.running(folder / LEADS, FakeClock(LATER))
    try:
        ledger = ks.assembled.ledger
        assert ledger.position()[0] in expected.sizes, expected
        same_history(recording, ledger._tree)
        assert ks.id == recording.root.id
        whole_snapshots(ledger)
        rows = ks._rows
        assert isinstance(rows, SqliteRows)
        assert expected.gone.isdisjoint(index for index, _ in rows.scan("secrets"))
        size = ledger.position()[0]
        person = Person(ks.id, ks.clock)
        assert ks.say(person.register())["entry"] == size  # it goes on
        assert ks.ask(person, "whoami")["id"] == person.id
    finally:
        ks.close()
    if len(set(expected.sizes)) == 1:
        return "whole"
    return "after" if size == expected.sizes[-1] else "before"


def check_unborn(state: Path, expected: Expected) -> str:
    """Nothing was acknowledged yet: `init` is to be repeated, and whoever starts it instead is told so."""
    assert expected.sizes[0] == 0
    try:
        ks = crash_scenario.running(state, FakeClock(LATER))
    except (Unavailable, Tampered) as error:
        return error.code
    assert ks.assembled.ledger.position()[0] == 1
    ks.close()
    return "after"


def check_follows(recording: Recording, image: Image, workshop: Path, expected: Expected, leader: Ledger) -> None:
    """Start the replica's store on it."""
    folder, _ = opened(recording, image, workshop)
    ledger = crash_scenario.follower(folder / FOLLOWS, recording.root, FakeClock(LATER))
    try:
        assert ledger.position()[0] in expected.sizes, expected
        same_history(recording, ledger._tree)
        whole_snapshots(ledger)
        ledger.absorb(leader.sealed(ledger.position()[0]), b"proof")  # it goes on
        assert ledger.position() == leader.position()
        ledger.lead()  # and has the secrets that it needs
    finally:
        ledger.close()


def test_the_scenario_has_every_kind_of_step(recording: Recording) -> None:
    begun = {line["begins"] for line in recording.told if "begins" in line}
    assert begun >= {
        *("init", "register", "DefinePolicy", "PublishModel", "Grant", "Consent", "release", "RotateModelKey"),
        *("RotateRequestKey", "snapshot", "sweep", "restart", "absorb", "cut", "RevokeGrant", "RevokeConsent", "close"),
    }
    assert sum(bool(line.get("gone")) for line in recording.told) == 2
    assert {event.kind for event in recording.events} >= {"open", "write", "sync", "truncate", "unlink"}
    assert sum(1 for _ in points(recording)) > 200


def examine(recording: Recording, workshop: Path, final: Path, seeds: int) -> dict[str, set[str]]:
    """Every image at every point; what came of the steps that were under way.

    :raises AssertionError: which image is not what it must be.
    """
    disk_trace.lay(whole(recording), recording.folder, final)
    ks = crash_scenario.running(final / LEADS, FakeClock(LATER))
    outcomes: dict[str, set[str]] = {}
    seen: set[tuple[int, int]] = set()
    for at, told, disk in points(recording):
        expected = recording.lines(told)
        for name, image in disk.images(range(seeds * at, seeds * at + seeds)):
            for store in (LEADS, FOLLOWS):
                part = {path: data for path, data in image.items() if f"/{store}/" in path}
                key = told, hash(tuple(sorted(part.items())))
                if key in seen or (not part and expected[store].sizes == (0,)):
                    continue
                seen.add(key)
                try:
                    if store == LEADS:
                        outcome = check_leads(recording, part, workshop, expected[LEADS])
                        outcomes.setdefault(expected[LEADS].begun, set()).add(outcome)
                    else:
                        check_follows(recording, part, workshop, expected[FOLLOWS], ks.assembled.ledger)
                except (CloisterError, AssertionError) as error:
                    where = f"{store} after event {at}, {told} lines told, image {name}: {expected[store]}"
                    raise AssertionError(where) from error
    ks.close()
    assert len(seen) > 500
    return outcomes


@pytest.mark.parametrize("seeds", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_every_crash_point(recording: Recording, seeds: int, workshop: Path, tmp_path: Path) -> None:
    outcomes = examine(recording, workshop, tmp_path / "final", seeds)
    for step in ("register", "DefinePolicy", "PublishModel", "Grant", "Consent", "release", "RotateModelKey"):
        assert outcomes[step] == {"before", "after"}, step  # the crash points lie on both sides
    assert outcomes["init"] == {"state-missing", "unseal-failed", "store-empty", "after"}
    for step in ("snapshot", "sweep", "restart", "close", ""):
        assert outcomes[step] == {"whole"}, step


@pytest.mark.parametrize("store", [LEADS, FOLLOWS])
def test_without_its_fsyncs_it_would_lose_something(
    recording: Recording, store: str, workshop: Path, tmp_path: Path
) -> None:
    """The images are severe enough: the same writes, not synced before they are acknowledged, do not pass."""
    path = str(recording.folder / store / f"{STORE_FILE}-wal")
    events = [event for event in recording.events if (event.kind, event.path) != ("sync", path)]
    assert len(events) < len(recording.events)
    with pytest.raises(AssertionError, match=rf"^{store} after event .* image (synced|mixed)"):
        examine(replace(recording, events=events), workshop, tmp_path / "final", 3)


def whole(recording: Recording) -> Image:
    """The disk at the end."""
    disk = Disk(recording.folder)
    for event in recording.events:
        if event.path != str(recording.folder / TOLD):
            disk.apply(event)
    return dict(disk.images(()))["written"]
