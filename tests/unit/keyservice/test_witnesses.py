"""Rounds of witnesses: who is late, who is slow, how long an entry waits (spec/protocol.md, 13.10)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import CONFIRM_INTERVAL_S, CONFIRM_PATIENCE_S
from cloister.crypto.sign import SigningKey
from cloister.keyservice.anchors.witnesses import WitnessAnchor
from cloister.log.merkle import MerkleTree, leaf_hash
from cloister.log.witness import require_quorum
from cloister.testing.clock import FakeClock
from cloister.testing.logs import MemoryLog
from cloister.testing.witness import LocalWitness, local_witnesses
from cloister.wire.calls import LogHead, keyservice_id
from cloister.wire.log_keys import LogKeys

LOG = SigningKey.generate()
KS = keyservice_id(LOG.public_key)


class Bench:
    """A log in memory, and an anchor over three witnesses of which two must sign."""

    def __init__(self, folder: Path, patience_s: float = 30.0) -> None:
        self.clock = FakeClock()
        self.tree = MerkleTree([leaf_hash(b"0")])
        self.lock = threading.Lock()
        self.witnesses: list[LocalWitness] = local_witnesses(folder, self.clock, LOG.public_key, 3)
        self.anchor = WitnessAnchor(
            self.witnesses,
            keys=[witness.key for witness in self.witnesses],
            threshold=2,
            keyservice=KS,
            log_key=LOG,
            log_keys=LogKeys(LOG.public_key),
            clock=self.clock,
            events=MemoryLog(),
            patience_s=patience_s,
        )

    def head(self) -> LogHead:
        with self.lock:
            return LogHead(self.tree.size, self.tree.root(), int(self.clock.now()))

    def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        with self.lock:
            return self.tree.consistency(first, second)

    def write(self) -> int:
        with self.lock:
            return self.tree.append(leaf_hash(b"%d" % self.tree.size)) + 1

    def quorum(self, head: LogHead | None) -> None:
        assert head is not None
        keys = [witness.key for witness in self.witnesses]
        require_quorum(KS, head, witnesses=keys, threshold=2, now=self.clock.now())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for witness in bench.witnesses:
        if witness.hold is not None:
            witness.hold.set()
    bench.anchor.close()


def test_many_entries_share_rounds(bench: Bench) -> None:
    bench.anchor.start(bench)
    heads: list[LogHead | None] = []

    def one() -> None:
        heads.extend(bench.anchor.confirm(bench.write()) for _ in range(20))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(heads) == 160
    for head in heads:
        bench.quorum(head)
    rounds = {head.size for head in heads if head}
    assert len(rounds) < 160
    assert bench.anchor.state().size == 161


def test_a_head_that_is_confirmed_already_costs_nothing(bench: Bench) -> None:
    bench.anchor.start(bench)
    bench.quorum(bench.anchor.confirm(1))
    asked = sum(len(witness.seen) for witness in bench.witnesses)
    assert asked <= 3
    bench.anchor.confirm(1)
    bench.clock.advance(CONFIRM_INTERVAL_S - 1)
    bench.anchor.tick()
    assert bench.anchor.confirmed() is not None
    assert bench.anchor.state().age_s == CONFIRM_INTERVAL_S - 1


def test_an_idle_log_is_confirmed_anew(bench: Bench) -> None:
    bench.anchor.start(bench)
    first = bench.anchor.confirm(1)
    assert first is not None
    bench.clock.advance(CONFIRM_INTERVAL_S + 500)
    bench.anchor.tick()
    with bench.anchor._changed:
        assert bench.anchor._changed.wait_for(lambda: bench.anchor.state().age_s == 0, 30)
    later = bench.anchor.confirmed()
    assert later is not None
    assert (later.size, later.root) == (first.size, first.root)
    bench.quorum(later)


def test_a_round_that_lasted_is_begun_anew_so_that_times_are_alike(bench: Bench) -> None:
    for witness in bench.witnesses[:2]:
        witness.away = True
    bench.anchor.start(bench)
    with pytest.raises(Unavailable):
        bench.anchor.require()
    bench.clock.advance(CONFIRM_PATIENCE_S + 1000)
    for witness in bench.witnesses:
        witness.away = False
    bench.anchor.tick()
    with bench.anchor._changed:
        assert bench.anchor._changed.wait_for(lambda: bench.anchor.state().open, 30)
    bench.quorum(bench.anchor.confirmed())


def test_nothing_waits_for_ever(tmp_path: Path) -> None:
    bench = Bench(tmp_path, patience_s=0.05)
    for witness in bench.witnesses[1:]:
        witness.hold = threading.Event()
    bench.anchor.start(bench)
    with pytest.raises(Unavailable) as caught:
        bench.anchor.confirm(bench.write())
    assert caught.value.code == "keyservice-unconfirmed"
    with pytest.raises(Unavailable):
        bench.anchor.require()
    for witness in bench.witnesses[1:]:
        assert witness.hold is not None
        witness.hold.set()
    with bench.anchor._changed:
        assert bench.anchor._changed.wait_for(lambda: bench.anchor.state().open, 30)
    bench.anchor.close()
    with pytest.raises(Unavailable) as closed:
        bench.anchor.confirm(99)
    assert closed.value.code == "keyservice-closing"


def test_too_few_addresses_are_refused(bench: Bench) -> None:
    with pytest.raises(InvalidInput) as caught:
        WitnessAnchor(
            bench.witnesses[:1],
            keys=[witness.key for witness in bench.witnesses],
            threshold=2,
            keyservice=KS,
            log_key=LOG,
            log_keys=LogKeys(LOG.public_key),
            clock=bench.clock,
            events=MemoryLog(),
        )
    assert caught.value.code == "witness-addresses"
