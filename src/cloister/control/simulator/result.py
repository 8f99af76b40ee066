"""What a run showed, in the figures that the command prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cloister.control.dispatch import Path
from cloister.control.simulator.world import Record


@dataclass(frozen=True, slots=True)
class Result:
    """Figures of one run; names are those of ``cloister simulate --json``.

    Latency runs from a request's arrival to its answer. GB-seconds are reserved memory times the life of each instance,
    idle time included, up to the last answer. ``slo_attainment`` is the share of all requests answered in time; a lost
    one was not.
    """

    requests: int
    lost: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cold: int
    warm: int
    hot: int
    gb_seconds: float
    instances_max: int
    slo_attainment: float

    def as_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        return {name: getattr(self, name) for name in self.__slots__}


def summarise(record: Record) -> Result:
    """Figures of a record."""
    latencies = np.asarray(record.latencies, dtype=float)
    answered = len(latencies)
    p50, p95, p99 = (float(v) for v in np.percentile(latencies, [50, 95, 99])) if answered else (0.0, 0.0, 0.0)
    in_time = int(np.count_nonzero(latencies <= np.asarray(record.slo, dtype=float))) if answered else 0
    return Result(
        requests=record.requests,
        lost=record.requests - answered,
        mean_ms=round(float(latencies.mean()), 3) if answered else 0.0,
        p50_ms=round(p50, 3),
        p95_ms=round(p95, 3),
        p99_ms=round(p99, 3),
        cold=record.paths[Path.COLD],
        warm=record.paths[Path.WARM],
        hot=record.paths[Path.HOT],
        gb_seconds=round(record.gb_seconds, 3),
        instances_max=record.instances_max,
        slo_attainment=round(in_time / record.requests, 6) if record.requests else 1.0,
    )
