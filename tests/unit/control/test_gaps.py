"""What the gaps seen say of the next request."""

from __future__ import annotations

import pytest

from cloister.control.gaps import BINS, FORGET_AT, observed, returns_within


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
