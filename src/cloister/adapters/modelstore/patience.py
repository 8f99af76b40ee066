"""How long a store is waited for: so many attempts, pauses that grow, one deadline for all of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from cloister.base.clock import Clock
from cloister.base.errors import Unavailable

RETRIED: Final = "store-unavailable"  # cut off, timed out, overloaded; everything else will not change by itself
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """Repeats what failed for want of an answer.

    :param attempts: at most, all told. :param deadline_s: no attempt begins after it.
    :param attempt_s: for each: a connection that drips must not take the whole deadline.
    :param first_s: the first pause; each is twice the one before, at most ``longest_s``, and up to a half shorter at
        random, so that many runtimes do not come back at once.
    """

    clock: Clock
    attempts: int = 8
    deadline_s: float = 60.0
    attempt_s: float = 20.0
    first_s: float = 0.1
    longest_s: float = 5.0
    pause: Callable[[float], None] = time.sleep

    def brief(self) -> Patience:
        """For what somebody waits for who can as well ask again."""
        return replace(self, attempts=min(2, self.attempts), deadline_s=min(10.0, self.deadline_s))

    def insist(self, act: Callable[[float], T]) -> T:
        """The result of ``act``, which is told how many seconds it may take.

        :raises CloisterError: what it raised last.
        """
        until = self.clock.monotonic() + self.deadline_s
        for attempt in range(1, self.attempts + 1):
            try:
                return act(min(self.attempt_s, max(0.001, until - self.clock.monotonic())))
            except Unavailable as error:
                wait = min(self.longest_s, self.first_s * 2 ** (attempt - 1)) * (1 - secrets.randbelow(512) / 1024)
                late = self.clock.monotonic() + wait >= until
                if error.code != RETRIED or attempt == self.attempts or late:
                    raise
            self.pause(wait)
        raise AssertionError  # the last attempt returns or raises
