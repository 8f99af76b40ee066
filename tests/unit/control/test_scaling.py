"""Scalers at their edges: windows, bounds, zero, pressure, no flapping."""

from __future__ import annotations

import pytest

from cloister.control.ledger import Ledger
from cloister.control.scaling.concurrency import Concurrency
from cloister.control.scaling.port import Bounds, Domain, Scale
from cloister.control.scaling.slo import Slo, erlang_c
from cloister.control.snapshot import Fleet, Instance, InstanceState, Snapshot

FLEET = Fleet(max_instances=50, memory_mb=1000, concurrency=4, keep_alive_s=60, slowdown=(1.0, 1.1, 1.6, 2.2))


def snapshot(count: int, pressure: float = 0.0) -> Snapshot:
    ledger = Ledger(FLEET)
    for n in range(count):
        ledger.launched(Instance(f"i{n:03d}", "pool", InstanceState.READY, 4, 1000, pressure=pressure))
    return ledger.snapshot()


def domain(there: Snapshot, *, concurrency: float = 0.0, arrivals: int = 0, queued: int = 0) -> Domain:
    return Domain("pool", there.order, queued, concurrency, arrivals, 1.0, 0.05, 0.1, 0.5, 0.5)


def test_concurrency_follows_the_stable_window() -> None:
    scaler, there = Concurrency(), snapshot(4)
    state = scaler.initial()
    scale = Scale(0, 0)
    for now in range(1, 120):
        scale, state = scaler.decide(there, state, domain(there, concurrency=8.0, arrivals=80), float(now))
    assert scale == Scale(3, 3)


def test_panic_scales_out_at_once_and_not_in_for_a_stable_window() -> None:
    scaler, calm = Concurrency(), snapshot(1)
    state = scaler.initial()
    for now in range(1, 60):
        _, state = scaler.decide(calm, state, domain(calm, concurrency=0.5, arrivals=5), float(now))
    for now in range(60, 66):
        scale, state = scaler.decide(calm, state, domain(calm, concurrency=40.0, arrivals=400), float(now))
    assert scale.floor >= 10
    crowded = snapshot(scale.floor)
    for now in range(66, 120):
        after, state = scaler.decide(crowded, state, domain(crowded), float(now))
        assert after.floor >= scale.floor
    for now in range(120, 300):
        after, state = scaler.decide(crowded, state, domain(crowded), float(now))
    assert after.floor < scale.floor


def test_both_go_to_zero_when_idle_and_keep_their_bounds() -> None:
    for least in (0, 2):
        for scaler in (Concurrency(bounds=Bounds(least, 5)), Slo(bounds=Bounds(least, 5))):
            there, state = snapshot(2), scaler.initial()
            scale, state = scaler.decide(there, state, domain(there, concurrency=400.0, arrivals=9000), 1.0)
            assert scale.floor <= 5
            for now in range(2, 400):
                scale, state = scaler.decide(there, state, domain(there), float(now))
                there = snapshot(min(len(there.order), scale.ceiling))
            assert scale.floor == scale.ceiling == least


def test_slo_needs_more_instances_for_more_load_and_for_more_pressure() -> None:
    def needed(rate: int, pressure: float) -> int:
        scaler, there = Slo(), snapshot(4, pressure)
        state = scaler.initial()
        scale = Scale(0, 0)
        for now in range(1, 30):
            scale, state = scaler.decide(there, state, domain(there, concurrency=1.0, arrivals=rate), float(now))
        return scale.floor

    assert 1 <= needed(10, 0.0) < needed(200, 0.0) < needed(800, 0.0)
    assert needed(200, 0.0) < needed(200, 0.6)


def test_slo_does_not_flap_when_load_swings_faster_than_the_cool_down() -> None:
    scaler, there = Slo(cool_down_s=60), snapshot(8)
    state = scaler.initial()
    ceilings = []
    for now in range(1, 300):
        rate = 400 if now % 20 < 10 else 20
        scale, state = scaler.decide(there, state, domain(there, concurrency=5.0, arrivals=rate), float(now))
        assert scale.floor <= scale.ceiling
        ceilings.append(scale.ceiling)
    assert max(ceilings[60:]) - min(ceilings[60:]) <= 1


def test_more_instances_never_predict_a_longer_tail() -> None:
    there = snapshot(4)
    for rate in range(1, 400, 3):
        tails = [Slo().predicted_p99_s(there, domain(there), n, float(rate), 0.0) for n in range(1, 30)]
        assert tails == sorted(tails, reverse=True)


@pytest.mark.parametrize(("servers", "load", "waits"), [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (3, 4.0, 1.0)])
def test_erlang_c_is_the_textbook_value(servers: int, load: float, waits: float) -> None:
    assert erlang_c(servers, load) == pytest.approx(waits)
