"""What was answered already: a bounded memory of requests (S6; spec/protocol.md, clause 8.7).

Only requests that authenticated are remembered, so nobody fills it without a key. Two generations, each one window
long: an entry lives at least one window, and forgetting costs nothing.
"""

from __future__ import annotations

import threading
from typing import Final

from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import REQUEST_FRESHNESS_S

_NAME: Final = 16  # bytes of a request's digest that are kept: 2^-64 odds of a false alarm at 2^32 requests
_WINDOW_S: Final = 2 * REQUEST_FRESHNESS_S  # from "issued ahead of our clock" to "too old"
CAPACITY: Final = 262_144  # a generation; about 30 MB


def check_fresh(issued_at: int, now: float) -> None:
    """:raises InvalidInput: ``request-stale``, when issued further from our clock than the protocol allows."""
    if abs(now - issued_at) > REQUEST_FRESHNESS_S:
        raise InvalidInput(
            "request-stale", f"the request was not issued within {REQUEST_FRESHNESS_S} s of this runtime's time"
        )


class ReplayCache:
    """Remembers requests for as long as they would still count as fresh. Safe for many threads."""

    def __init__(self, clock: Clock, *, capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._capacity = capacity
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()
        self._since = clock.monotonic()
        self._lock = threading.Lock()

    def admit(self, request_digest: bytes) -> None:
        """Remember an authenticated request.

        :raises InvalidInput: ``request-replayed``.
        :raises Unavailable: ``replay-memory-full``: forgetting early would let a replay through.
        """
        name = request_digest[:_NAME]
        with self._lock:
            now = self._clock.monotonic()
            if now - self._since > _WINDOW_S:
                self._old = self._young if now - self._since <= 2 * _WINDOW_S else set()
                self._young = set()
                self._since = now
            if name in self._young or name in self._old:
                raise InvalidInput("request-replayed", "this request was answered already")
            if len(self._young) >= self._capacity:
                wait = _WINDOW_S - (now - self._since)
                raise Unavailable("replay-memory-full", "too many requests in a short time", retry_after=max(1.0, wait))
            self._young.add(name)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
