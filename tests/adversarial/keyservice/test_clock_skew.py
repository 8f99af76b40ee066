"""Clocks of replicas and witnesses that are off: by as much as is tolerated, and by more (protocol.md, 13.21.3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from cloister.base.errors import CloisterError, Refused
from cloister.base.ids import ModelId
from cloister.base.limits import CLOCK_SKEW_S
from cloister.base.secret import SecretBytes
from cloister.log.receipt import check_statement_receipt
from cloister.log.witness import require_quorum
from cloister.testing.clock import ShiftedClock
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person
from cloister.testing.permission_links import LinkCaller
from cloister.testing.replicas import Cluster
from cloister.wire.log_keys import LogKeys
from cloister.wire.provisioning import ReleaseRequest
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
LIFETIME_S = 300  # of a statement, as clients sign them
T = TypeVar("T")


class World:
    """A grant that ends after an hour, and a consent; callers' clocks are right."""

    def __init__(self, folder: Path, ahead_s: dict[int, float]) -> None:
        self.cluster = Cluster(folder, ahead_s=ahead_s)
        self.leader = self.cluster.leader()
        self.person = Person(self.leader.id, self.cluster.clock)
        self.model = ModelId(self.person.id, "model")
        self.until = int(self.cluster.clock.now()) + 3600

    def set_the_scene(self) -> None:
        policy = self.cluster.platform.policy()
        self.say(self.leader, self.person.register(lifetime=LIFETIME_S))
        self.say(self.leader, self.person.statement(DefinePolicy(policy.encode()), lifetime=LIFETIME_S))
        published = PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))
        self.say(self.leader, self.person.statement(published, lifetime=LIFETIME_S), MODEL_KEY)
        self.grant = Grant("model", self.person.id, policy.digest, Validity(0, self.until), 0)
        self.say(self.leader, self.person.statement(self.grant, lifetime=LIFETIME_S))
        consent = Consent(self.model, policy.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
        self.say(self.leader, self.person.statement(consent, lifetime=LIFETIME_S), REQUEST)

    def attempt(self, call: Callable[[], T]) -> T:
        return self.cluster.attempt(call)

    def caller(self, ks: EmbeddedKeyService) -> LinkCaller:
        """One who believes nothing unseen, by the right time."""
        assert ks.bundle is not None
        return LinkCaller(ks, bundle=ks.bundle, clock=self.cluster.clock, tee=self.cluster.platform)

    def say(self, ks: EmbeddedKeyService, statement: bytes, *keys: SecretBytes) -> None:
        caller = self.caller(ks)
        self.attempt(lambda: caller.say(statement, keys))

    def release(self, ks: EmbeddedKeyService) -> None:
        caller = self.caller(ks)
        request = ReleaseRequest(self.person.id, self.model, REQUEST_KEY, key_commitment(REQUEST))
        assert self.attempt(lambda: caller.release(request)).key == REQUEST

    def off(self, ks: EmbeddedKeyService) -> float:
        """By how much the KeyService's time is ahead."""
        return ks.assembled.ledger.now() - self.cluster.clock.now()

    def next_leader(self) -> EmbeddedKeyService:
        self.cluster.crash(self.cluster.number(self.leader))
        self.leader = self.cluster.leader()
        return self.leader


@pytest.mark.parametrize(
    "ahead_s", [{0: 60.0, 1: -60.0, 2: 0.0}, {0: -60.0, 1: 60.0, 2: 60.0}, {0: 60.0, 1: -60.0, 2: -60.0}]
)
def test_s5_s7_clocks_that_differ_by_the_bound_change_nothing(ahead_s: dict[int, float], tmp_path: Path) -> None:
    assert max(map(abs, ahead_s.values())) == CLOCK_SKEW_S
    world = World(tmp_path, ahead_s)
    world.set_the_scene()
    world.release(world.leader)
    before = int(world.leader.assembled.ledger.now())  # entries hold whole seconds
    second = world.next_leader()
    assert second.assembled.ledger.now() >= before  # whoever leads next: it never goes back
    world.say(second, world.person.statement(world.grant, lifetime=LIFETIME_S))
    world.release(second)
    world.cluster.close()


def test_s5_a_clock_far_behind_is_carried_by_the_witnesses_and_revives_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, {0: -3000.0, 1: -3000.0, 2: -3000.0})
    world.set_the_scene()
    world.release(world.leader)
    assert abs(world.off(world.leader)) < CLOCK_SKEW_S
    world.cluster.clock.advance(3590)  # ten seconds before the grant ends
    world.cluster.until(lambda: bool(world.cluster.leading()))
    world.leader = world.cluster.leader()
    world.cluster.clock.advance(11)
    world.cluster.until(lambda: any(world.off(ks) > -CLOCK_SKEW_S / 6 for ks in world.cluster.leading()))
    world.cluster.clock.advance(CLOCK_SKEW_S / 6)
    world.cluster.until(lambda: any(world.off(ks) > -CLOCK_SKEW_S / 6 for ks in world.cluster.leading()))
    world.leader = world.cluster.leader()
    session = world.attempt(lambda: world.leader.attest(world.cluster.platform))
    request = ReleaseRequest(world.person.id, world.model, REQUEST_KEY, key_commitment(REQUEST))
    with pytest.raises(Refused, match="release-refused"):
        world.attempt(lambda: session.release(request))
    world.cluster.close()


def test_s8_a_clock_further_ahead_is_refused_by_callers_and_makes_things_expire_early(tmp_path: Path) -> None:
    world = World(tmp_path, {0: float(LIFETIME_S + 1)})
    with pytest.raises(Refused, match="simulation-not-yet-valid"):  # of TEEs whose evidence says when it was made
        world.set_the_scene()
    with pytest.raises(Refused, match="statement-expired"):  # and otherwise
        world.attempt(lambda: world.leader.say(world.person.register(lifetime=LIFETIME_S)))
    before = int(world.leader.assembled.ledger.now())  # entries hold whole seconds
    longest = world.person.register(sequence=1)  # such a statement is still in time
    world.attempt(lambda: world.leader.say(longest))
    second = world.next_leader()  # whose clock is right; the log's time is not behind the entry's
    assert second.assembled.ledger.now() >= before
    assert LIFETIME_S - CLOCK_SKEW_S < world.off(second) <= LIFETIME_S + 1
    world.cluster.clock.advance(LIFETIME_S)  # it waits until its clock says the same
    world.leader = second = world.cluster.leader()
    assert world.off(second) < CLOCK_SKEW_S
    world.person.sequence = 1
    policy = world.cluster.platform.policy()
    world.say(second, world.person.statement(DefinePolicy(policy.encode()), lifetime=LIFETIME_S))
    world.cluster.close()


@pytest.mark.parametrize("ahead_s", [-121.0, 61.0])
def test_s7_one_witness_with_a_wrong_clock_is_outvoted_and_two_are_noticed(ahead_s: float, tmp_path: Path) -> None:
    world = World(tmp_path, {})
    world.set_the_scene()
    wrong = ShiftedClock(world.cluster.clock, ahead_s)

    def restart(number: int) -> None:
        witness = world.cluster.witnesses[number]
        witness.clock = wrong
        witness.restart()

    def says() -> str:
        statement = world.person.statement(world.grant)
        result = world.attempt(lambda: world.leader.say(statement))
        receipt = check_statement_receipt(result, statement, LogKeys(world.cluster.log_key))
        keys = [witness.key for witness in world.cluster.witnesses]
        try:
            require_quorum(world.leader.id, receipt.head, witnesses=keys, threshold=2, now=world.cluster.clock.now())
        except CloisterError as error:
            return error.code
        return "acknowledged"

    restart(0)
    answers = {says() for _ in range(5)}
    assert answers <= {"acknowledged", "keyservice-unconfirmed"}  # whichever two were quicker
    restart(1)
    world.cluster.witnesses[2].away = True
    world.cluster.clock.advance(200)  # a witness does not go back in time, so it takes a while to be behind
    world.leader = world.cluster.leader()
    assert says() == "keyservice-unconfirmed"
    assert abs(world.off(world.leader)) <= CLOCK_SKEW_S + 1
    world.cluster.close()
