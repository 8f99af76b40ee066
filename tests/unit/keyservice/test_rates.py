"""Token buckets: what is let through, when exactly the next one is, and that memory is bounded for nobody's gain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.base.errors import InvalidInput, Unavailable
from cloister.keyservice.limiting.rates import Buckets, Rate, Rates, read_rates


@given(
    st.floats(0.01, 1000.0),
    st.integers(1, 50),
    st.lists(st.floats(0.0, 20.0), min_size=1, max_size=200),
)
def test_no_more_than_the_burst_and_the_rate_get_through(per_s: float, burst: int, pauses: list[float]) -> None:
    """Counted over every window of time, as a definition of the bucket that has nothing in common with the code."""
    buckets, taken, now = Buckets[str](Rate(per_s, burst)), list[float](), 0.0
    for pause in pauses:
        now += pause
        wait = buckets.wait("a", now)
        if not wait:
            buckets.take("a", now)
            taken.append(now)
        else:
            assert buckets.wait("a", now + wait) == 0.0  # exact, and
            assert buckets.wait("a", now + wait * 0.99 - 1e-3 / per_s) > 0.0  # no later than it need be
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - start) * per_s + 1e-3


def test_a_reserve_is_left_to_others() -> None:
    buckets = Buckets[str](Rate(1.0, 100))
    for _ in range(50):
        assert buckets.wait("a", 0.0, 0.5) == 0.0
        buckets.take("a", 0.0)
    assert buckets.wait("a", 0.0, 0.5) == pytest.approx(1.0)
    assert buckets.wait("a", 0.0) == 0.0
    assert buckets.room("a", 0.0) == pytest.approx(0.5)


def test_memory_is_bounded_and_who_floods_forgets_others_to_their_gain_only() -> None:
    buckets = Buckets[int](Rate(1.0, 10), limit=64)
    for _ in range(9):
        buckets.take(-1, 0.0)  # somebody who has nearly spent all of it
    for key in range(1_000):
        buckets.take(key, 0.0)
        assert len(buckets) <= 64
    buckets.take(-1, 0.0)
    assert buckets.wait(-1, 0.0) > 0.0, "a flood of other names gave the budget back"
    assert all(buckets.wait(key, 0.0) == 0.0 for key in range(1_000)), "somebody forgotten lost what he had"


def test_full_buckets_are_forgotten_first() -> None:
    buckets = Buckets[int](Rate(1.0, 10), limit=64)
    for key in range(60):
        buckets.take(key, 0.0)
    for _ in range(5):
        buckets.take(-1, 1.0)
    for key in range(100, 110):
        buckets.take(key, 1.5)
    assert len(buckets) == 11
    assert buckets.rate.burst - 10 * buckets.room(-1, 1.5) == pytest.approx(4.5)


def test_a_rate_of_nothing_lets_nothing_through() -> None:
    assert Buckets[str](Rate(0.0, 5)).wait("a", 0.0) == float("inf")


@pytest.mark.parametrize(
    "values",
    [
        {"unknown": {"per_s": 1, "burst": 1}},
        {"queries": 5},
        {"queries": {"per_s": 1}},
        {"queries": {"per_s": 1, "burst": 1, "more": 1}},
        {"queries": {"per_s": -1, "burst": 1}},
        {"queries": {"per_s": 0, "burst": 1}},
        {"queries": {"per_s": 1e9, "burst": 1}},
        {"queries": {"per_s": float("nan"), "burst": 1}},
        {"queries": {"per_s": True, "burst": 1}},
        {"queries": {"per_s": "1", "burst": 1}},
        {"queries": {"per_s": 1, "burst": 0}},
        {"queries": {"per_s": 1, "burst": 1.5}},
        {"queries": {"per_s": 1, "burst": True}},
        {"queries": {"per_s": 1, "burst": 10**10}},
    ],
)
def test_limits_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        Rates.read(values)
    assert caught.value.code == "rates-malformed"


def test_limits_of_a_file(tmp_path: Path) -> None:
    assert read_rates(None) == Rates()
    file = tmp_path / "limits.toml"
    with pytest.raises(Unavailable) as away:
        read_rates(file)
    assert away.value.code == "rates-unreadable"
    file.write_text("[queries]\nper_s = 3\nburst = 7\n[registrations]\nper_s = 0\nburst = 1\n")
    assert read_rates(file) == Rates(queries=Rate(3.0, 7), registrations=Rate(0.0, 1))
    for data in (b"queries", b"\xff", b"#" * 20_000):
        file.write_bytes(data)
        with pytest.raises(InvalidInput) as caught:
            read_rates(file)
        assert caught.value.code == "rates-malformed"
