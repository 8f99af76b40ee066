"""Counters, gauges and histograms in Prometheus' text format (0.0.4): what the services export on ``/metrics``.

Written here because it is small and the KeyService and Runtime are the trusted base, which would otherwise grow by
prometheus_client (figures in docs/adr/0003-http.md). A metric never holds more than ``MAX_SERIES`` label combinations;
further ones are counted together under ``other``.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cloister.base.errors import InvalidInput

MAX_SERIES: Final = 1000
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


class _Metric:
    kind = ""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self.name = name
        self.text = text
        self.labels = tuple(labels)
        self.lock = threading.Lock()
        self._known: set[tuple[str, ...]] = set()

    def key(self, values: tuple[str, ...]) -> tuple[str, ...]:
        """The series of these label values, with the lock held."""
        if len(values) != len(self.labels):
            msg = f"{self.name} has the labels {self.labels}"
            raise AssertionError(msg)
        if values not in self._known:
            if len(self._known) >= MAX_SERIES:
                return ("other",) * len(self.labels)
            self._known.add(values)
        return values

    def pairs(self, key: tuple[str, ...], *more: str) -> str:
        """``{name="value",...}`` or nothing."""
        pairs = [f'{name}="{_escape(value)}"' for name, value in zip(self.labels, key, strict=True)]
        joined = ",".join((*pairs, *more))
        return f"{{{joined}}}" if joined else ""

    def lines(self) -> list[str]:
        """The samples."""
        raise NotImplementedError


class Counter(_Metric):
    """Only grows."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, text, labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Count ``amount`` more."""
        with self.lock:
            key = self.key(labels)
            self._values[key] = self._values.get(key, 0.0) + amount

    def value(self, *labels: str) -> float:
        """As counted so far."""
        return self._values.get(labels, 0.0)

    def lines(self) -> list[str]:
        with self.lock:
            return [f"{self.name}{self.pairs(key)} {_number(value)}" for key, value in sorted(self._values.items())]


class Gauge(Counter):
    """Goes up and down. Set it, add to it, or hand it a function that is asked when somebody looks."""

    kind = "gauge"

    def __init__(
        self, name: str, text: str, labels: Sequence[str] = (), *, ask: Callable[[], float] | None = None
    ) -> None:
        super().__init__(name, text, labels)
        self._ask = ask

    def set(self, value: float, *labels: str) -> None:
        """It is ``value`` now."""
        with self.lock:
            self._values[self.key(labels)] = value

    def lines(self) -> list[str]:
        if self._ask is not None:
            return [f"{self.name} {_number(self._ask())}"]
        return super().lines()


class Family(_Metric):
    """Gauges whose series come and go with what they are of: all of them are asked for when somebody looks."""

    kind = "gauge"

    def __init__(
        self, name: str, text: str, labels: Sequence[str], ask: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        super().__init__(name, text, labels)
        self._ask = ask

    def lines(self) -> list[str]:
        found = sorted(self._ask().items())[:MAX_SERIES]
        return [f"{self.name}{self.pairs(key)} {_number(value)}" for key, value in found]


class Histogram(_Metric):
    """How often a value lay below each bound; bounds in seconds by default."""

    kind = "histogram"

    def __init__(self, name: str, text: str, labels: Sequence[str] = (), *, bounds: Sequence[float] = SECONDS) -> None:
        super().__init__(name, text, labels)
        self.bounds = tuple(bounds)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, value: float, *labels: str) -> None:
        """One more value."""
        with self.lock:
            key = self.key(labels)
            counts = self._counts.get(key)
            if counts is None:
                counts = self._counts[key] = [0] * (len(self.bounds) + 1)
            counts[bisect_left(self.bounds, value)] += 1
            self._sums[key] = self._sums.get(key, 0.0) + value

    def count(self, *labels: str) -> int:
        """How many values so far."""
        return sum(self._counts.get(labels, ()))

    def total(self, *labels: str) -> float:
        """Their sum."""
        return self._sums.get(labels, 0.0)

    def lines(self) -> list[str]:
        lines = []
        with self.lock:
            for key, counts in sorted(self._counts.items()):
                running = 0
                for bound, count in zip((*map(_number, self.bounds), "+Inf"), counts, strict=True):
                    running += count
                    edge = f'le="{bound}"'
                    lines.append(f"{self.name}_bucket{self.pairs(key, edge)} {running}")
                lines.append(f"{self.name}_sum{self.pairs(key)} {_number(self._sums[key])}")
                lines.append(f"{self.name}_count{self.pairs(key)} {running}")
        return lines


class Registry:
    """The metrics of one process; handed to whoever counts, never global."""

    def __init__(self) -> None:
        self._metrics: dict[str, _Metric] = {}

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        """A new counter; its name ends in ``_total``."""
        metric = Counter(name, text, labels)
        self._add(metric)
        return metric

    def gauge(
        self, name: str, text: str, labels: Sequence[str] = (), *, ask: Callable[[], float] | None = None
    ) -> Gauge:
        """A new gauge."""
        metric = Gauge(name, text, labels, ask=ask)
        self._add(metric)
        return metric

    def family(
        self, name: str, text: str, labels: Sequence[str], ask: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        """New gauges, whose labels and values are asked for each time; :data:`MAX_SERIES` of them at most."""
        self._add(Family(name, text, labels, ask))

    def histogram(
        self, name: str, text: str, labels: Sequence[str] = (), *, bounds: Sequence[float] = SECONDS
    ) -> Histogram:
        """A new histogram."""
        metric = Histogram(name, text, labels, bounds=bounds)
        self._add(metric)
        return metric

    def exposition(self) -> bytes:
        """The page that Prometheus reads; serve it with :data:`CONTENT_TYPE`."""
        lines = []
        for metric in self._metrics.values():
            lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return ("\n".join(lines) + "\n").encode()

    def _add(self, metric: _Metric) -> None:
        if metric.name in self._metrics:
            raise InvalidInput("metric-repeated", f"there is a metric {metric.name} already")
        self._metrics[metric.name] = metric
