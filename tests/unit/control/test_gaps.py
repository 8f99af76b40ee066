"""What the gaps seen say of the next request."""

from __future__ import annotations

import pytest

from cloister.control.gaps import BINS, FORGET_AT, observed, return_rate, returns_within


def test_with_nothing_seen_the_odds_are_those_of_rent_or_buy() -> None:
    assert returns_within((), 30.0, 30.0) == pytest.approx(0.5)
    assert returns_within((), 30.0, 0.0) == 0.0


def test_a_model_that_comes_every_minute_comes_within_the_next() -> None:
    gaps: tuple[float, ...] = ()
    for _ in range(50):
        gaps = observed(gaps, 60.0)
    assert returns_within(gaps, 20.0, 60.0) > 0.9
    assert returns_within(gaps, 1.0, 10.0) < 0.1


def test_old_gaps_are_forgotten() -> None:
    gaps: tuple[float, ...] = ()
    for gap in [1.0] * 200 + [100.0] * 300:
        gaps = observed(gaps, gap)
    assert len(gaps) == BINS
    assert sum(gaps) <= FORGET_AT
    assert returns_within(gaps, 4.0, 20.0) < 0.05


def test_what_comes_often_returns_at_its_rate() -> None:
    often: tuple[float, ...] = ()
    for _ in range(100):
        often = observed(often, 0.5)
    assert 1.0 < return_rate(often, 0.1) < 4.0  # bins double
    assert return_rate(often, 0.1) > 10 * return_rate((), 60.0)


def test_of_what_was_never_seen_again_the_last_one_seen_is_worth_most() -> None:
    rates = [return_rate((), idle) for idle in (0.1, 1.0, 10.0, 100.0)]
    assert rates == sorted(rates, reverse=True)


def test_a_pause_longer_than_any_gap_seen_leaves_little_hope() -> None:
    gaps: tuple[float, ...] = ()
    for _ in range(100):
        gaps = observed(gaps, 1.0)
    assert return_rate(gaps, 0.5) > 0.5
    assert return_rate(gaps, 50.0) < 0.03
