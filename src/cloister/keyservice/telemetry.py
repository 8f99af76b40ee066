"""What the KeyService counts: calls by kind and code, their time, releases, sizes. No identity, no name (S10)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from cloister.adapters.metrics import Registry
from cloister.base.clock import Clock


@dataclass(slots=True)
class Outcome:
    """Of one call; ``ok`` unless said otherwise."""

    code: str = "ok"


@final
class Telemetry:
    """Metrics of one KeyService."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self.registry = registry
        self._clock = clock
        self._calls = registry.counter(
            "cloister_keyservice_calls_total", "Calls answered, by kind and code.", ("kind", "code")
        )
        self._refused = registry.counter(
            "cloister_keyservice_unauthenticated_total", "Calls refused before they authenticated.", ("code",)
        )
        self._seconds = registry.histogram(
            "cloister_keyservice_call_seconds", "Time to the reply, durable write included.", ("kind",)
        )

    def refused(self, code: str) -> None:
        """A call failed before it authenticated."""
        self._refused.add(code)

    @contextmanager
    def timed(self, kind: str) -> Iterator[Outcome]:
        """One call; set the code of its outcome."""
        outcome = Outcome()
        began = self._clock.monotonic()
        yield outcome
        self._seconds.observe(self._clock.monotonic() - began, kind)
        self._calls.add(kind, outcome.code)
