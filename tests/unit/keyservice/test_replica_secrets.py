"""Keys that were ended elsewhere, or by an entry that is replaced: no replica is lost for want of one (13.17.3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.base.errors import Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.keyservice.vault import Doomed
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person
from cloister.testing.replicas import Cluster
from cloister.testing.rows import MemoryDisk
from cloister.wire.provisioning import ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Consent,
    DefinePolicy,
    Grant,
    PublishModel,
    RevokeConsent,
    Validity,
    key_commitment,
)

KEYS = [SecretBytes(bytes([number]) * 32) for number in range(1, 6)]


class World:
    """A consent whose key is entry ``self.entry``, at all three replicas."""

    def __init__(self, folder: Path) -> None:
        self.cluster = Cluster(folder)
        leader = self.cluster.leader()
        self.person = Person(leader.id, self.cluster.clock)
        policy = self.cluster.platform.policy()
        self.model, self.policy = ModelId(self.person.id, "model"), policy.digest
        self.say(leader, self.person.register())
        self.say(leader, self.person.statement(DefinePolicy(policy.encode())))
        published = PublishModel("model", 1, b"1" * 32, key_commitment(KEYS[0]))
        self.say(leader, self.person.statement(published), KEYS[0])
        self.say(leader, self.person.statement(Grant("model", self.person.id, policy.digest, Validity(), 0)))
        self.entry = self.say(leader, self.consent(1), KEYS[1])
        self.cluster.until(self.cluster.equal)

    def consent(self, number: int) -> bytes:
        key = key_commitment(KEYS[number])
        return self.person.statement(Consent(self.model, self.policy, None, REQUEST_KEY, key, Validity()))

    def say(self, ks: EmbeddedKeyService, statement: bytes, *keys: SecretBytes) -> int:
        return int(self.cluster.attempt(lambda: ks.say(statement, *keys))["entry"])

    def release(self, ks: EmbeddedKeyService, number: int) -> SecretBytes:
        request = ReleaseRequest(self.person.id, self.model, REQUEST_KEY, key_commitment(KEYS[number]))
        return self.cluster.attempt(lambda: ks.attest(self.cluster.platform).release(request)).key

    def held(self, number: int) -> bool:
        """Whether the replica's disk has the key."""
        return self.entry in self.cluster.live[number].disk.tables["secrets"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.cluster.close()


def test_one_that_dies_while_it_catches_up_starts_again_and_leads(world: World) -> None:
    """What it lacks then was destroyed elsewhere, by entries that it does not have yet."""
    leader = world.cluster.leader()
    behind = next(number for number, ks in world.cluster.live.items() if ks is not leader)
    world.cluster.crash(behind)
    disk = MemoryDisk()  # an empty one: it joins anew
    world.say(leader, world.person.statement(RevokeConsent(world.model)))
    world.say(leader, world.consent(2), KEYS[2])
    leader.assembled.ledger.sweep()
    assert not world.held(world.cluster.number(leader))
    joined = world.cluster.start(behind, disk, empty=True)
    joined.assembled.ledger.absorb(leader.assembled.ledger.sealed(0)[: world.entry + 1], b"")
    with pytest.raises(Tampered, match="secret-missing"):
        joined.assembled.ledger.lead()
    joined.assembled.ledger.follow()
    world.cluster.crash(behind)
    world.cluster.start(behind, empty=True)  # and here it used to stay down for good
    world.cluster.until(world.cluster.equal)
    world.cluster.crash(world.cluster.number(world.cluster.leader()))
    world.cluster.until(lambda: bool(world.cluster.leading()))
    assert world.release(world.cluster.leader(), 2) == KEYS[2]


def test_a_key_outlives_an_entry_that_is_replaced(world: World) -> None:
    """It is revoked by an entry that only the one that led has, and that is dropped: the key is still in use."""
    cluster = world.cluster
    first = cluster.leader()
    number = cluster.number(first)
    others = [other for other in cluster.live if other != number]
    cluster.part([number], others)
    with pytest.raises(Unavailable):
        cluster.attempt(lambda: first.say(world.person.statement(RevokeConsent(world.model))))
    for _ in range(3):
        first.assembled.ledger.sweep()  # it may not yet
    assert world.held(number)
    cluster.until(lambda: any(cluster.number(ks) != number for ks in cluster.leading()))
    second = next(ks for ks in cluster.leading() if ks is not first)
    assert world.release(second, 1) == KEYS[1]
    cluster.part()
    cluster.until(lambda: cluster.equal() and len(cluster.leading()) == 1)
    assert world.held(number)
    cluster.crash(number)
    cluster.start(number, empty=True)
    cluster.until(cluster.equal)
    first = cluster.live[number]
    first.assembled.ledger.follow()
    first.assembled.ledger.lead()  # raises when it lacks a key
    assert world.held(number)


def test_it_is_destroyed_once_that_entry_lasts(world: World) -> None:
    leader = world.cluster.leader()
    world.say(leader, world.person.statement(RevokeConsent(world.model)))
    world.cluster.until(world.cluster.equal)
    for ks in world.cluster.live.values():
        ks.assembled.ledger.sweep()
    world.cluster.step()
    for ks in world.cluster.live.values():
        ks.assembled.ledger.sweep()
    assert [world.held(number) for number in world.cluster.live] == [False] * 3


def test_what_is_doomed_waits_and_is_not_starved() -> None:
    doomed = Doomed()
    assert doomed.due((3,), 10, 10) == (3,)  # everything lasts
    assert doomed.due((3,), 10, 9) == ()  # the newest entry may have ended it
    assert doomed.due((3, 5), 14, 9) == ()
    assert doomed.due((3, 5), 15, 12) == (3,)  # under load the newest entry never lasts; those of last time do
    assert doomed.due((5, 7), 20, 14) == ()
    assert doomed.due((5, 7), 21, 15) == (5,)
    assert doomed.due((7,), 21, 21) == (7,)
