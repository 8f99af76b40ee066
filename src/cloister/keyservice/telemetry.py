"""What the KeyService counts: calls by kind, their time, and whether the service itself was fit to answer.

The operator reads this, and is not trusted: no identity, no name, and not whether a call was granted or refused nor
why, for that travels sealed (S10).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from cloister.adapters.metrics import Registry
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, Unavailable
from cloister.keyservice.anchors.majority import MajorityAnchor
from cloister.keyservice.anchors.port import Anchor
from cloister.keyservice.backup.writing import BackupHistory
from cloister.keyservice.keeper import Keeper
from cloister.keyservice.replication.replica import LEADER, Replica


@dataclass(slots=True)
class Outcome:
    """Of one call: ``answered``, or the code of what made the service unfit to answer."""

    code: str = "answered"

    def of(self, error: CloisterError) -> None:
        """The call ended with this error, which goes back sealed."""
        if isinstance(error, Unavailable):
            self.code = error.code


@final
class Telemetry:
    """Metrics of one KeyService."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self.registry = registry
        self._clock = clock
        self._calls = registry.counter(
            "cloister_keyservice_calls_total", "Calls, by kind and outcome.", ("kind", "outcome")
        )
        self._refused = registry.counter(
            "cloister_keyservice_unauthenticated_total", "Calls refused before they authenticated.", ("code",)
        )
        self._limited = registry.counter(
            "cloister_keyservice_limited_total", "Calls that were too many, by kind.", ("kind",)
        )
        self._seconds = registry.histogram(
            "cloister_keyservice_call_seconds", "Time to the reply, durable write included.", ("kind",)
        )

    def refused(self, code: str) -> None:
        """A call failed before it authenticated."""
        self._refused.add(code)

    def limited(self, kind: str) -> None:
        """A call was one too many."""
        self._limited.add(kind)

    @contextmanager
    def timed(self, kind: str) -> Iterator[Outcome]:
        """One call; set the code of its outcome."""
        outcome = Outcome()
        began = self._clock.monotonic()
        yield outcome
        self._seconds.observe(self._clock.monotonic() - began, kind)
        self._calls.add(kind, outcome.code)


def observe_anchor(registry: Registry, anchor: Anchor) -> None:
    """How old the confirmation of the log's head is; nothing where nothing confirms."""
    if not anchor.protects:
        return

    def age() -> float:
        found = anchor.state().age_s
        return -1.0 if found is None else found

    name = "cloister_keyservice_confirmed"
    registry.gauge(f"{name}_age_seconds", "Since witnesses confirmed the log's head; -1: not since the start.", ask=age)
    registry.gauge(f"{name}_entries", "Entries of the newest confirmed head.", ask=lambda: anchor.state().size)
    registry.gauge(f"{name}", "Whether keys are released: heads are being confirmed.", ask=lambda: anchor.state().open)
    registry.gauge(
        f"{name}_witnesses",
        "Witnesses that co-signed when they were asked last.",
        ask=lambda: sum(word == "confirmed" for word in anchor.state().outcomes.values()),
    )


def observe_keeper(registry: Registry, keeper: Keeper) -> None:
    """What a start would read, and what of the store was read since this one."""
    name = "cloister_keyservice"
    registry.gauge(f"{name}_snapshot_entries", "Entries in the newest snapshot.", ask=lambda: keeper.saved)
    registry.gauge(
        f"{name}_scrubbed_entries",
        "Entries before the start's snapshot that were read since.",
        ask=lambda: keeper.scrubbed,
    )
    registry.gauge(f"{name}_unscrubbed_entries", "Those that are still to be read.", ask=lambda: keeper.unscrubbed)


def observe_replica(registry: Registry, replica: Replica, anchor: MajorityAnchor) -> None:
    """Which of several replicas this is."""
    name = "cloister_keyservice_replica"
    registry.gauge(f"{name}_leads", "Whether this replica leads.", ask=lambda: replica.role == LEADER)
    registry.gauge(
        f"{name}_lag_entries",
        "Entries that this replica lacks; -1 while it knows of none that leads.",
        ask=lambda: -1 if replica.behind is None else replica.behind,
    )
    registry.gauge(
        f"{name}_alive", "Of one that leads: replicas that follow, with itself; 0 of others.", ask=anchor.heard
    )


def observe_backup(registry: Registry, history: BackupHistory, clock: Clock) -> None:
    """How old the newest backup is that an operator's command kept."""

    def age() -> float:
        newest = history.newest
        return -1.0 if newest is None else max(0.0, clock.now() - newest[0])

    registry.gauge("cloister_keyservice_backup_age_seconds", "Since a backup was made and kept; -1: none was.", ask=age)
