"""S2, S7: custodians of a KeyService with replicas: each disk has what they need, and any one disk is enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.attest.bundle import TrustBundle
from cloister.base.errors import Unavailable
from cloister.base.secret import SecretBytes
from cloister.crypto.hpke import HpkePrivateKey
from cloister.crypto.sign import SigningKey
from cloister.keyservice.root import root_of
from cloister.keyservice.storage.port import HEAD, RECOVERY_ROW
from cloister.testing.custody import AskingTransport, LocalCustodian, restoring
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person
from cloister.testing.replicas import SEED, Cluster
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.wire.custody import CustodyRecord


class World:
    """Three replicas of a KeyService, and three custodians, of whom two bring it back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = [HpkePrivateKey.generate() for _ in range(3)]
        named = [key.public_key for key in self.keys]
        self.cluster = Cluster(folder, custodian_keys=named, custodian_threshold=2)
        leader = self.cluster.leader()
        self.owner = Person(leader.id, self.cluster.clock)
        self.cluster.attempt(lambda: leader.say(self.owner.register()))
        self.maintain(leader)
        self.cluster.until(self.cluster.equal)

    def maintain(self, ks: EmbeddedKeyService) -> None:
        """What it does every few seconds."""
        self.cluster.attempt(ks.service.maintain)

    def records(self) -> list[bytes]:
        """What lies in the clear on each disk."""
        return [ks.disk.tables[HEAD].get(RECOVERY_ROW, b"") for _, ks in sorted(self.cluster.live.items())]

    def bring_back(self, disk: MemoryDisk, like: EmbeddedKeyService) -> TrustBundle:
        """On this disk, on a platform of its own, with the custodians, who judge by this bundle."""
        fresh = replace(like.tee, key=SigningKey.generate())
        assert like.bundle is not None
        keys = (self.cluster.platform.key.public_key, fresh.key.public_key)
        bundle = replace(like.bundle, version=like.bundle.version + 1, simulation_keys=keys)
        clock = like.clock
        attempt = restoring(self.folder / "fresh", MemoryRows(disk), fresh, like.settings, bundle=bundle, clock=clock)
        transport = AskingTransport(attempt.asking)
        for key in self.keys[1:]:
            LocalCustodian(bundle, clock, key).answer(transport)
        assert attempt.finish()[0].secret == root_of(SecretBytes(SEED)).secret
        disk.locked = False
        return bundle

    def restart(self, disk: MemoryDisk, bundle: TrustBundle) -> None:
        """The one that was brought back, and two that join it with nothing."""
        self.cluster.start(0, disk, bundle=bundle)
        for number in (1, 2):
            self.cluster.start(number, MemoryDisk(), bundle=bundle)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.cluster.close()


def test_s7_every_disk_has_the_newest_record_and_only_the_one_that_leads_makes_it(world: World) -> None:
    first = world.records()
    assert len(set(first)) == 1
    leader = world.cluster.leader()
    for ks in world.cluster.live.values():
        ks.assembled.service._custody._renew = True  # type: ignore[union-attr]  # as `run --reshare` says to each
    for ks in world.cluster.live.values():
        if ks is not leader:
            world.maintain(ks)
    assert world.records() == first
    world.maintain(leader)
    world.cluster.until(lambda: world.cluster.equal() and len(set(world.records())) == 1)
    second = world.records()
    assert CustodyRecord.decode(second[0]).set != CustodyRecord.decode(first[0]).set
    for ks in world.cluster.live.values():
        assert first[0] not in ks.disk.tables[HEAD].values()


def test_s7_a_replica_that_missed_a_set_has_a_record_all_the_time(world: World) -> None:
    """It learns of a set whose record was destroyed meanwhile, and goes on with what it has until the newest comes."""
    world.cluster.crash(2)
    leader = world.cluster.leader()
    for _ in range(2):
        leader.assembled.service._custody._renew = True  # type: ignore[union-attr]
        world.maintain(leader)
    world.maintain(leader)  # what was replaced is destroyed
    assert len(leader.disk.tables["secrets"]) == 1
    behind = world.cluster.start(2, bundle=leader.bundle).assembled.ledger
    behind.follow()
    source, seen = leader.assembled.ledger, []
    while (at := behind.position()[0]) < source.position()[0]:
        behind.absorb(source.sealed(at)[:1], b"")  # one at a time: the worst of all batches
        seen.append(world.cluster.live[2].disk.tables[HEAD].get(RECOVERY_ROW, b""))
    assert all(seen)
    assert seen[-1] == leader.disk.tables[HEAD][RECOVERY_ROW] != seen[0]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_s2_s7_all_replicas_are_lost_and_one_disk_of_any_of_them_is_enough(world: World, number: int) -> None:
    like = world.cluster.live[number]
    world.cluster.close()
    disk = world.cluster.disks[number].copy()
    used = CustodyRecord.decode(disk.tables[HEAD][RECOVERY_ROW]).set
    world.restart(disk, world.bring_back(disk, like))
    leader = world.cluster.leader()
    assert "confirmed" in world.cluster.attempt(lambda: leader.ask(world.owner, "whoami"))
    world.maintain(leader)  # the set was used: another one
    world.cluster.until(lambda: world.cluster.equal() and len(set(world.records())) == 1)
    assert CustodyRecord.decode(world.records()[0]).set != used


def test_s7_a_disk_that_lagged_behind_is_brought_back_and_leads_nobody(world: World) -> None:
    """It lacks what witnesses co-signed: custodians or not, it is an old store."""
    lagging, like = world.cluster.live[2], world.cluster.live[0]
    world.cluster.crash(2)
    leader = world.cluster.leader()
    other = Person(leader.id, world.cluster.clock)
    world.cluster.attempt(lambda: leader.say(other.register()))
    disk = world.cluster.disks[2].copy()
    world.cluster.close()
    assert lagging.settings == like.settings
    world.restart(disk, world.bring_back(disk, like))
    with pytest.raises(AssertionError):
        world.cluster.until(lambda: bool(world.cluster.leading()), rounds=60)
    for ks in world.cluster.live.values():
        with pytest.raises(Unavailable):
            world.cluster.attempt(lambda ks=ks: ks.say(world.owner.register()))
