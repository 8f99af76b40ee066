"""The scaler port.

A packer may start an instance because a request needs one now. A scaler works ahead of requests and behind them: at
every tick it bounds how many instances a domain has. Only idle instances are ever stopped. Between the two bounds the
packer's own opinion (``Packer.retire``) decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from cloister.control.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Domain:
    """What scales as one: a model's instances, or the pool. Figures are for the time since the last tick.

    :param concurrency: time average of requests sent or waiting.
    :param arrivals: requests that came.
    :param service_s: mean time a request of this domain takes alone; ``slowest_s`` that of its slowest model seen.
    :param start_s: expected time from a start to the first answer, service not included.
    :param slo_s: the tightest declared bound of p99 latency among its models.
    """

    name: str
    instances: tuple[str, ...]
    queued: int
    concurrency: float
    arrivals: int
    elapsed_s: float
    service_s: float
    slowest_s: float
    start_s: float
    slo_s: float | None


@dataclass(frozen=True, slots=True)
class Scale:
    """Have at least ``floor`` instances; stop idle ones beyond ``ceiling``."""

    floor: int
    ceiling: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one domain: never fewer, never more."""

    least: int = 0
    most: int = 1_000_000

    def clip(self, count: int) -> int:
        """``count`` within the bounds."""
        return min(max(count, self.least), self.most)


S = TypeVar("S")


class Scaler(Protocol[S]):
    """A scaling policy with state ``S``, one state for each domain."""

    @property
    def name(self) -> str:
        """As on the command line and in configuration."""

    def initial(self) -> S:
        """State of a domain before its first tick."""

    def decide(self, snapshot: Snapshot, state: S, domain: Domain, now: float) -> tuple[Scale, S]:
        """Bounds for the domain until the next tick."""
