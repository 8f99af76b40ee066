"""What policies that look on want, and when they stop looking."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.control.gateway import configuration as config
from cloister.control.gateway.advice import MAX_DOMAINS, POLICIES, Advice
from cloister.control.ledger import Ledger
from cloister.control.scaling.port import Domain
from cloister.control.snapshot import Fleet, Instance, InstanceState, Snapshot

POOL = config.parse(b"[platform]\ncommand = ['x']\n[pool]\nmax_instances = 8\nslo_ms = 100\nconcurrency = 1").pool
BUSY = Domain(
    name="pool", instances=(), queued=0, concurrency=3.0, arrivals=60, elapsed_s=1.0, service_s=0.05, slowest_s=0.05,
    start_s=1.0, slo_s=None,
)  # fmt: skip


def snapshot(instances: int, pressure: float = 0.0) -> Snapshot:
    """Of a fleet that only stands there."""
    ledger = Ledger(Fleet(8, 2048.0, 1))
    for number in range(instances):
        ledger.launched(Instance(f"i-{number}", "pool", InstanceState.READY, 1, 2048.0, pressure=pressure))
    return ledger.snapshot()


def settled(instances: int, pressure: float = 0.0, domains: int = 1) -> Advice:
    """After ten seconds of sixty requests a second."""
    advice, there = Advice(POOL), snapshot(instances, pressure)
    busy = replace(BUSY, instances=there.order)
    for second in range(10):
        advice.tick(there, [busy, *(replace(BUSY, name=f"m-{n}") for n in range(domains - 1))], float(second))
    return advice


def test_each_policy_answers_from_the_same_demand() -> None:
    advice = settled(2)
    assert advice.wanted("gateway") == 2
    assert advice.wanted("slo") > 3  # three are busy without a queue: that is no p99
    assert 4 <= advice.wanted("concurrency") <= 8
    assert all(advice.active(policy) for policy in POLICIES)
    (predicted,) = advice.predicted_p99_s().values()
    assert predicted == float("inf")  # two cannot keep up


def test_pressure_asks_for_more_before_a_latency_shows_it() -> None:
    calm, pressed = settled(8), settled(8, pressure=0.4)
    assert pressed.wanted("slo") > calm.wanted("slo")
    assert pressed.predicted_p99_s()["pool"] > calm.predicted_p99_s()["pool"]


def test_nothing_wants_nothing() -> None:
    advice = Advice(POOL)
    advice.tick(snapshot(0), [], 0.0)
    assert [advice.wanted(policy) for policy in POLICIES] == [0, 0, 0]
    assert not any(advice.active(policy) for policy in POLICIES)


@pytest.mark.parametrize("policy", ["slo", "concurrency"])
def test_with_very_many_domains_nobody_looks_on(policy: str) -> None:
    assert settled(2, domains=MAX_DOMAINS + 1).wanted(policy) == 2
    assert settled(2, domains=2).wanted(policy) > 2


def test_an_instance_that_went_in_the_same_tick_is_none() -> None:
    advice = Advice(POOL)
    advice.tick(snapshot(1), [replace(BUSY, instances=("i-0", "i-gone"))], 0.0)
    assert advice.wanted("slo") >= 1
