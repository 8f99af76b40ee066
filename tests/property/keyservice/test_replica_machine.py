"""Replicas that crash, lose their network, or get an old disk back, against a model: the one confirmed history.

Never two answers from different histories; and with a minority's disks lost, everything that was answered is there.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cloister.base.errors import Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.keyservice.replication.replica import LEADER
from cloister.log.receipt import check_statement_receipt
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person, simulation_policy
from cloister.testing.replicas import Cluster
from cloister.testing.rows import MemoryDisk
from cloister.wire.calls import LogHead
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
numbers = st.integers(0, 2)


class ReplicaMachine(RuleBasedStateMachine):
    """The model: leaves of entries that somebody was told of, by their place; and whose disk lost something."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.cluster = Cluster(Path(self.folder.name), patience_s=0.3, block_entries=4)
        self.leaves: dict[int, bytes] = {}
        self.heads: list[LogHead] = []
        self.old: list[tuple[int, MemoryDisk]] = []
        self.lost: int | None = None
        self.count = 0
        self.acknowledged: list[bytes] = []
        leader = self.cluster.leader()
        self.owner = Person(leader.id, self.cluster.clock, b"o" * 32)
        policy = self.cluster.platform.policy()
        self.model = ModelId(self.owner.id, "model")
        for statement, *keys in (
            (self.owner.register(),),
            (self.owner.statement(DefinePolicy(policy.encode())),),
            (
                self.owner.statement(PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))),
                MODEL_KEY,
            ),
            (self.owner.statement(Grant("model", self.owner.id, policy.digest, Validity(), 0)),),
            (
                self.owner.statement(
                    Consent(self.model, policy.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
                ),
                REQUEST,
            ),
        ):
            assert isinstance(statement, bytes)
            self.insist(statement, *keys)  # type: ignore[arg-type]
        self.request = ReleaseRequest(self.owner.id, self.model, REQUEST_KEY, key_commitment(REQUEST))

    # --- what is answered ---

    def leading(self, number: int) -> EmbeddedKeyService | None:
        """This one, or the next, if it answers by itself; those that follow pass on what they are asked."""
        for other in (number, (number + 1) % 3, (number + 2) % 3):
            ks = self.cluster.live.get(other)
            if ks is not None and ks.replica.role == LEADER:
                return ks
        return None

    def say_to(self, ks: EmbeddedKeyService, statement: bytes, *keys: SecretBytes) -> None:
        result = self.cluster.attempt(lambda: ks.say(statement, *keys))
        receipt = check_statement_receipt(result, statement, LogKeys(self.cluster.log_key))
        self.told(ks, receipt.head, receipt.index)

    def insist(self, statement: bytes, *keys: SecretBytes) -> None:
        """The very same statement until one that leads acknowledges it, as the SDK does."""
        for _ in range(50):
            try:
                return self.say_to(self.cluster.leader(), statement, *keys)
            except Unavailable as error:  # this machine is slow, or another one takes over
                last = error
        raise AssertionError(last, [self.describe(ks) for ks in self.cluster.live.values()])

    def describe(self, ks: EmbeddedKeyService) -> object:
        (size, link), standing = ks.assembled.ledger.position(), ks.replica.standing()
        head = standing.head.size if standing.head else None
        return ks.replica.role, size, link.hex()[:8], standing.able, standing.confirming, head, ks.replica.behind

    def told(self, ks: EmbeddedKeyService, head: LogHead, index: int) -> None:
        """Somebody heard of this entry under this head."""
        tree = ks.assembled.ledger._tree
        assert len(head.cosignatures) >= 2
        assert tree.root(head.size) == head.root
        self.heads.append(head)
        for place in range(head.size):
            leaf = tree.leaf(place)
            assert self.leaves.setdefault(place, leaf) == leaf, "two histories were answered from"
        assert index < head.size

    @rule(number=numbers)
    def say(self, number: int) -> None:
        """A statement, to whichever replica: only one that leads acknowledges it."""
        ks = self.leading(number)
        if ks is None:
            return
        self.count += 1
        statement = self.owner.statement(DefinePolicy(simulation_policy(self.count.to_bytes(48, "big")).encode()))
        with contextlib.suppress(Unavailable):
            self.say_to(ks, statement)
            self.acknowledged.append(statement)

    @rule(number=numbers)
    def release(self, number: int) -> None:
        ks = self.leading(number)
        if ks is None:
            return
        with contextlib.suppress(Unavailable):
            found = self.cluster.attempt(lambda: ks.attest(self.cluster.platform).release(self.request))
            self.told(ks, found.head, found.head.size - 1)

    @rule(crash=st.booleans())
    def leave_unconfirmed(self, *, crash: bool) -> None:
        """One that leads writes what no other gets, and may be gone with it."""
        for number, ks in list(self.cluster.live.items()):
            if ks.replica.role == LEADER:
                self.part(number)
                self.count += 1
                body = DefinePolicy(simulation_policy(self.count.to_bytes(48, "big")).encode())
                with contextlib.suppress(Unavailable):
                    self.say_to(ks, self.owner.statement(body))
                if crash:
                    self.crash(number)
                self.heal()

    @rule()
    def settle(self) -> None:
        """Let one take over, if enough run."""
        for _ in range(60):
            if self.cluster.leading():
                return
            self.go_on(1)
            time.sleep(0.002)  # witnesses answer on threads of their own

    # --- what happens to them ---

    @rule(number=numbers)
    def crash(self, number: int) -> None:
        if number in self.cluster.live:
            self.cluster.crash(number)

    @rule(number=numbers)
    def start(self, number: int) -> None:
        if number not in self.cluster.live:
            self.cluster.start(number)

    @rule(number=numbers)
    def snapshot(self, number: int) -> None:
        """Whoever leads or follows: of entries that may yet be replaced it does not become the newest."""
        ks = self.cluster.live.get(number)
        if ks is not None and ks.assembled.ledger.position()[0]:
            keeper, lasting = ks.assembled.keeper, ks.assembled.ledger.lasting
            assert keeper.save() == (ks.assembled.ledger.position()[0] <= lasting)

    @rule(number=numbers)
    def back_up(self, number: int) -> None:
        ks = self.cluster.live.get(number)
        if ks is not None and len(self.old) < 3:
            with ks.assembled.ledger._lock:
                self.old.append((number, ks.disk.copy()))

    @rule(which=st.integers(0, 2), empty=st.booleans())
    def restore(self, which: int, *, empty: bool) -> None:
        """An old disk, or an empty one, comes back: one at a time, for that is the minority."""
        if which >= len(self.old) or self.lost not in (None, self.old[which][0]):
            return
        number, disk = self.old[which]
        self.lost = number
        self.crash(number)
        self.cluster.start(number, MemoryDisk() if empty else disk.copy())

    @rule(number=numbers)
    def repeat(self, number: int) -> None:
        """What was acknowledged, again, byte for byte: acknowledged, or not now, and never applied twice."""
        ks = self.leading(number)
        if ks is None or not self.acknowledged:
            return
        size = ks.assembled.ledger.position()[0]
        with contextlib.suppress(Unavailable):
            self.say_to(ks, self.acknowledged[-1])
        assert ks.assembled.ledger.position()[0] == size

    @rule(alone=numbers)
    def part(self, alone: int) -> None:
        self.cluster.part([alone], [number for number in range(3) if number != alone])

    @rule()
    def heal(self) -> None:
        self.cluster.part()

    @rule(which=numbers)
    def witness(self, which: int) -> None:
        """One witness goes away, or comes back."""
        for number, other in enumerate(self.cluster.witnesses):
            other.away = number == which and not other.away

    @rule(rounds=st.integers(1, 40))
    def go_on(self, rounds: int) -> None:
        for _ in range(rounds):
            self.cluster.step(seconds=0.25)

    @invariant()
    def a_lost_disk_is_whole_again_when_all_hold_the_same(self) -> None:
        """What witnesses confirmed and nobody was told of counts too, so what was told says too little."""
        if len(self.cluster.live) == 3 and self.cluster.leading() and self.cluster.equal():
            self.lost = None

    def teardown(self) -> None:
        """Everything comes back: what was answered is there, and it goes on."""
        self.cluster.part()
        for witness in self.cluster.witnesses:
            witness.away = False
        for number in range(3):
            self.start(number)
        try:
            leader = self.cluster.leader()
            tree = leader.assembled.ledger._tree
            for place, leaf in self.leaves.items():
                assert tree.leaf(place) == leaf
            self.insist(self.owner.statement(DefinePolicy(simulation_policy(b"e" * 48).encode())))
            self.cluster.until(self.cluster.equal)
        finally:
            self.cluster.close()
            self.folder.cleanup()


TestReplicas = ReplicaMachine.TestCase
TestReplicas.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
