"""A clock that moves when told to."""

from __future__ import annotations


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
