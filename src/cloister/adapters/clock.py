"""The operating system's clock: the only place that reads it."""

from __future__ import annotations

import time


class SystemClock:
    """``cloister.base.clock.Clock`` on this machine."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()  # noqa: TID251  # the one adapter that reads the clock

    def monotonic(self) -> float:
        """Seconds on the monotonic clock."""
        return time.monotonic()
