"""S7 for whoever owns the disk: what he can do to the records of a KeyService, with witnesses or not, or a replica."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.base.errors import CloisterError
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.keyservice.root import root_of
from cloister.testing.clock import FakeClock
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person
from cloister.testing.replicas import SEED, Cluster
from cloister.testing.rows import MemoryDisk
from cloister.testing.witness import local_witnesses, witnessed
from cloister.wire.statements import DefinePolicy, PublishModel, key_commitment

ONE, WITNESSED, REPLICATED = "one", "witnessed", "replicated"
Tables = dict[str, dict[int, bytes]]


def fill(say: Callable[..., object], person: Person, policy: bytes) -> ModelId:
    """Entries with secrets and without."""
    say(person.register())
    say(person.statement(DefinePolicy(policy)))
    for number in range(4):
        key = SecretBytes(bytes([number + 1]) * 32)
        published = PublishModel(f"model-{number}", 1, bytes([number]) * 32, key_commitment(key))
        say(person.statement(published), key)
    return ModelId(person.id, "model-0")


def removed(now: Tables, _old: Tables) -> None:
    """An entry from the middle."""
    del now["entries"][3]


def removed_and_closed_up(now: Tables, _old: Tables) -> None:
    """An entry from the middle, those after it moved up."""
    entries = now["entries"]
    last = max(entries)
    for index in range(3, last):
        entries[index] = entries[index + 1]
    del entries[last]


def cut_off(now: Tables, _old: Tables) -> None:
    """The newest entry, and its secret."""
    last = max(now["entries"])
    del now["entries"][last]
    now["secrets"].pop(last, None)


def cut_off_with_the_old_head(now: Tables, old: Tables) -> None:
    """The newest entries, under the head record of that time, but with the secrets of today."""
    now["entries"] = dict(old["entries"])
    now["head"] = dict(old["head"])


def reordered(now: Tables, _old: Tables) -> None:
    """Two entries."""
    now["entries"][3], now["entries"][4] = now["entries"][4], now["entries"][3]


def swapped_with_a_secret(now: Tables, _old: Tables) -> None:
    """An entry's record and the record of a secret."""
    index = max(now["secrets"])
    now["entries"][index], now["secrets"][index] = now["secrets"][index], now["entries"][index]


def secrets_swapped(now: Tables, _old: Tables) -> None:
    """The keys of two models."""
    first, second = sorted(now["secrets"])[:2]
    now["secrets"][first], now["secrets"][second] = now["secrets"][second], now["secrets"][first]


def one_old_record(now: Tables, old: Tables) -> None:
    """The head of an older time over the newer entries."""
    now["head"] = dict(old["head"])


CHANGES = {
    removed: "store-missing",
    removed_and_closed_up: "store-record",
    cut_off: "store-truncated",
    cut_off_with_the_old_head: "store-record",
    reordered: "store-record",
    swapped_with_a_secret: "store-record",
    secrets_swapped: "store-record",
    one_old_record: "store-head",
}


def without_snapshots(tables: Tables) -> None:
    """So that every entry is read at the start; test_s7_snapshots.py has the others."""
    for table in ("blocks", "snapshots"):
        tables.get(table, {}).clear()


@pytest.mark.parametrize("deployment", [ONE, WITNESSED])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_s7_changed_records_do_not_start(
    change: Callable[[Tables, Tables], None], deployment: str, tmp_path: Path
) -> None:
    clock, disk = FakeClock(), MemoryDisk()
    witnesses = local_witnesses(tmp_path, clock, root_of(SecretBytes(SEED)).log_key.public_key, 3)
    options = witnessed(witnesses, 2) if deployment == WITNESSED else {}
    ks = EmbeddedKeyService(clock=clock, disk=disk, seed=SEED, **options)
    old = disk.copy()
    fill(ks.say, Person(ks.id, clock), ks.runtime_tee.policy().encode())
    ks.close()
    change(disk.tables, old.tables)
    without_snapshots(disk.tables)
    with pytest.raises(CloisterError) as caught:
        EmbeddedKeyService(clock=clock, disk=disk, seed=SEED, runtime_tee=ks.runtime_tee, **options)
    assert (caught.value.family, caught.value.code) == ("tampered", CHANGES[change])


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_s7_a_replica_with_changed_records_does_not_start_and_the_others_go_on(
    change: Callable[[Tables, Tables], None], tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path)
    leader = cluster.leader()
    changed = next(number for number, ks in cluster.live.items() if ks is not leader)
    cluster.until(cluster.equal)
    old = cluster.live[changed].disk.copy()
    person = Person(leader.id, cluster.clock)
    fill(lambda *said: cluster.attempt(lambda: leader.say(*said)), person, cluster.platform.policy().encode())
    cluster.until(cluster.equal)
    cluster.crash(changed)
    change(cluster.disks[changed].tables, old.tables)
    without_snapshots(cluster.disks[changed].tables)
    with pytest.raises(CloisterError) as caught:
        cluster.start(changed, cluster.disks[changed])
    assert (caught.value.family, caught.value.code) == ("tampered", CHANGES[change])
    leader = cluster.leader()
    cluster.attempt(lambda: leader.say(person.statement(DefinePolicy(cluster.platform.policy().encode()))))
    cluster.start(changed, MemoryDisk(), empty=True)  # what an operator does: it gets everything anew
    cluster.until(cluster.equal)
    cluster.close()
