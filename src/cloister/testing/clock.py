"""A clock that moves when told to."""

from __future__ import annotations

from cloister.base.clock import Clock


class FakeClock:
    """``cloister.base.clock.Clock`` for tests."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> float:
        """Seconds since the Unix epoch, as set."""
        return self._now

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds
        self._monotonic += seconds

    def set(self, now: float) -> None:
        """Set the wall clock, backwards too, as a host can; the monotonic clock stays."""
        self._now = now


class ShiftedClock:
    """``cloister.base.clock.Clock``: another one's, so many seconds ahead (or behind, below zero)."""

    def __init__(self, clock: Clock, ahead_s: float) -> None:
        self._clock = clock
        self.ahead_s = ahead_s

    def now(self) -> float:
        """As shifted."""
        return self._clock.now() + self.ahead_s

    def monotonic(self) -> float:
        """The other's."""
        return self._clock.monotonic()
