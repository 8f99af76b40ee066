"""How long until the next request of a model: a histogram of gaps, and what it says.

Gaps are counted in bins that double, from 1/64 s to about nine hours. When few were seen, the estimate leans on one
imagined observation without a time scale of its own, P(gap > t) falling as 1/t. With nothing else known, a policy that
uses it keeps an idle thing exactly as long as replacing it would cost, which is the classic rent-or-buy answer.
"""

from __future__ import annotations

from math import frexp
from typing import Final

FINEST_EXPONENT: Final = -6  # first bin: up to 2**-6 s
BINS: Final = 22
FORGET_AT: Final = 128.0  # counts are halved here, so the estimate follows a model that changes its habits
NONE_SEEN: Final[tuple[float, ...]] = (0.0,) * BINS


EDGES: Final = tuple(2.0 ** (FINEST_EXPONENT + n) for n in range(BINS))  # upper end of each bin


def _bin(gap_s: float) -> int:
    if gap_s <= 0:
        return 0
    index: int = frexp(gap_s)[1] - FINEST_EXPONENT
    if index < 0:
        return 0
    return index if index < BINS else BINS - 1


def observed(gaps: tuple[float, ...], gap_s: float) -> tuple[float, ...]:
    """The histogram with one more gap, in seconds."""
    counts = list(gaps or NONE_SEEN)
    counts[_bin(gap_s)] += 1.0
    if sum(counts) > FORGET_AT:
        counts = [count / 2 for count in counts]
    return tuple(counts)


def _seen_within(counts: tuple[float, ...], until_s: float) -> float:
    """Gaps of at most ``until_s``; inside a bin they are taken to be spread evenly."""
    index = _bin(until_s)
    upper = EDGES[index]
    lower = upper / 2 if index else 0.0
    share = (until_s - lower) / (upper - lower)
    return sum(counts[:index]) + min(1.0, share) * counts[index]


def returns_within(gaps: tuple[float, ...], idle_s: float, horizon_s: float) -> float:
    """Probability that a model idle for ``idle_s`` has a request within the next ``horizon_s``."""
    if horizon_s <= 0:
        return 0.0
    prior = horizon_s / (max(idle_s, 0.0) + horizon_s)
    if not gaps:
        return prior
    before = _seen_within(gaps, idle_s)
    total = sum(gaps)
    return (_seen_within(gaps, idle_s + horizon_s) - before + prior) / (total - before + 1.0)


def return_rate(gaps: tuple[float, ...], idle_s: float) -> float:
    """Returns a second, of a model idle for ``idle_s``, over the time for which keeping it is worth most.

    The highest of P(return within h) / h. What is kept in a full cache is worth this much per second of its place.
    """
    idle_s = max(idle_s, EDGES[0] / 2)
    if not gaps:
        return 1.0 / idle_s
    before = _seen_within(gaps, idle_s)
    index, left = _bin(idle_s), sum(gaps) - before + 1.0
    best, seen = 1.0 / (idle_s * left), -before + sum(gaps[:index])
    for n in range(index, BINS):
        if not gaps[n]:
            continue
        seen += gaps[n]
        ahead = max(EDGES[n] - idle_s, EDGES[n] / 4)  # of the bin it is in: no less than half of it
        best = max(best, (seen / ahead + 1.0 / (idle_s + ahead)) / left)
    return best
