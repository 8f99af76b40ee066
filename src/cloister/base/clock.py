"""The time, handed in: nothing below ``adapters`` reads a clock by itself."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Port. Real: ``cloister.adapters.clock.SystemClock``. Fake: ``cloister.testing.clock.FakeClock``."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""
