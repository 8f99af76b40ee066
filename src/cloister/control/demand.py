"""Measures the demand of each scaling domain between two ticks: average concurrency, arrivals, what a request costs."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister.control.packing.port import POOL
from cloister.control.scaling.port import Domain
from cloister.control.snapshot import KEYLESS, Model, Snapshot

FORGET_MIX_S = 60.0  # how long a model counts in its domain's mix of services after its last request


@dataclass(slots=True)
class _Gauge:
    level: int = 0
    area: float = 0.0
    since: float = 0.0
    ticked: float = 0.0
    arrivals: int = 0
    mix: dict[str, tuple[float, float]] = field(default_factory=dict)  # model -> (last arrival, decayed count)

    def move(self, by: int, now: float) -> None:
        self.area += self.level * (now - self.since)
        self.level += by
        self.since = now


class DemandMeter:
    """Mutable; owned by one dispatcher.

    :param per_model: a domain per model instead of one for the pool.
    """

    def __init__(self, *, per_model: bool) -> None:
        self._per_model = per_model
        self._gauges: dict[str, _Gauge] = {}

    def _gauge(self, model: str, now: float) -> _Gauge:
        name = model if self._per_model else POOL
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = self._gauges[name] = _Gauge(since=now, ticked=now)
        return gauge

    def arrived(self, model: Model, now: float) -> None:
        """A request came and is in the system until :meth:`changed` takes it out."""
        gauge = self._gauge(model.id, now)
        gauge.move(1, now)
        gauge.arrivals += 1
        _, count = gauge.mix.get(model.id, (now, 0.0))
        gauge.mix[model.id] = (now, count + 1.0)

    def changed(self, model: str, by: int, now: float) -> None:
        """The number of requests sent or waiting changed."""
        self._gauge(model, now).move(by, now)

    def busiest(self, domain: str) -> str | None:
        """The model with most requests lately."""
        gauge = self._gauges.get(domain)
        if gauge is None or not gauge.mix:
            return None
        return min(gauge.mix, key=lambda name: (-gauge.mix[name][1], name))

    def domains(self, snapshot: Snapshot, now: float) -> list[Domain]:
        """What happened since the last call, domain by domain; domains with nothing left are forgotten."""
        out = []
        for name in sorted(self._gauges):
            gauge = self._gauges[name]
            members = (snapshot.groups.get(name) or ()) if self._per_model else _pool(snapshot)
            if not members and not gauge.arrivals and not gauge.level and not gauge.mix:
                del self._gauges[name]
                continue
            gauge.move(0, now)
            elapsed = now - gauge.ticked
            gauge.mix = {
                model: (last, count * 0.9)
                for model, (last, count) in gauge.mix.items()
                if now - last < FORGET_MIX_S and model in snapshot.models
            }
            out.append(_domain(snapshot, name, members, gauge, elapsed, per_model=self._per_model))
            gauge.area, gauge.ticked, gauge.arrivals = 0.0, now, 0
        return out


def _pool(snapshot: Snapshot) -> tuple[str, ...]:
    return tuple(i for i in snapshot.order if snapshot.instances[i].group != KEYLESS)


def _domain(
    snapshot: Snapshot, name: str, members: tuple[str, ...], gauge: _Gauge, elapsed: float, *, per_model: bool
) -> Domain:
    models = [(snapshot.models[model], count) for model, (_, count) in gauge.mix.items()]
    total = sum(count for _, count in models) or 1.0
    bounds = [model.slo_ms / 1000 for model, _ in models if model.slo_ms is not None]
    return Domain(
        name=name,
        instances=members,
        queued=snapshot.queued(name) if per_model else snapshot.backlog,
        concurrency=gauge.area / elapsed if elapsed > 0 else float(gauge.level),
        arrivals=gauge.arrivals,
        elapsed_s=elapsed,
        service_s=sum(model.service_s * count for model, count in models) / total,
        slowest_s=max((model.service_s for model, _ in models), default=0.0),
        start_s=max((model.start_s + model.load_s for model, _ in models), default=0.0),
        slo_s=min(bounds, default=None),
    )
