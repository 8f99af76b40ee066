"""How many instances are wanted: by the gateway as it runs, and by scaling policies that only look on. Pure.

For whoever else scales (an external scaler, Prometheus, a person). The gateway's own number is what it has and waits
for: its packer and the scaler of ``[pool]`` decided it. The others say what a policy would decide from the same demand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from cloister.control import policies
from cloister.control.gateway.configuration import PoolSettings
from cloister.control.scaling.port import Bounds, Domain, Scale, Scaler
from cloister.control.scaling.slo import Slo
from cloister.control.snapshot import Snapshot

GATEWAY: Final = "gateway"
ADVISERS: Final = ("slo", "concurrency")
POLICIES: Final = (GATEWAY, *ADVISERS)
MAX_DOMAINS: Final = 50  # a look at one takes a quarter of a millisecond of the gateway's loop, once a second


class _Adviser:
    """One policy with its state for each domain."""

    def __init__(self, scaler: Scaler[Any]) -> None:
        self.scaler = scaler
        self.states: dict[str, Any] = {}
        self.scales: dict[str, Scale] = {}

    def tick(self, snapshot: Snapshot, domains: Sequence[Domain], now: float) -> None:
        states, self.states, self.scales = self.states, {}, {}
        for domain in domains:
            state = states.get(domain.name)
            state = self.scaler.initial() if state is None else state
            self.scales[domain.name], self.states[domain.name] = self.scaler.decide(snapshot, state, domain, now)


class Advice:
    """See the module. :meth:`tick` after each tick of the dispatcher."""

    def __init__(self, pool: PoolSettings) -> None:
        self.reconfigure(pool)

    def reconfigure(self, pool: PoolSettings) -> None:
        """Other bounds; what was seen is forgotten."""
        bounds = Bounds(pool.min_instances, pool.max_instances)
        self._most = pool.max_instances
        self._advisers = {
            name: _Adviser(policies.scaler(name, bounds=bounds, slo_ms=pool.slo_ms, window_s=pool.window_s))
            for name in ADVISERS
        }
        self._alive = self._waiting = 0
        self._advised = True
        self._predicted: dict[str, float] = {}

    def tick(self, snapshot: Snapshot, domains: Sequence[Domain], now: float) -> None:
        """What happened since the last tick, domain by domain."""
        self.look(snapshot)
        # The tick may have stopped some.
        domains = [replace(d, instances=tuple(i for i in d.instances if i in snapshot.instances)) for d in domains]
        domains = domains if len(domains) <= MAX_DOMAINS else []
        self._advised = bool(domains) or not self._alive
        for adviser in self._advisers.values():
            adviser.tick(snapshot, domains, now)
        slo = self._advisers["slo"]
        assert isinstance(slo.scaler, Slo)  # noqa: S101  # as ADVISERS names it
        self._predicted = {
            domain.name: slo.scaler.expected_p99_s(snapshot, slo.states[domain.name], domain, now)
            for domain in domains
            if domain.instances
        }

    def look(self, snapshot: Snapshot) -> None:
        """Between two ticks: a request that came just now starts an instance just now."""
        self._alive, self._waiting = len(snapshot.order), snapshot.backlog

    def wanted(self, policy: str) -> int:
        """Instances that ``policy``, one of :data:`POLICIES`, wants there to be.

        With more than :data:`MAX_DOMAINS` domains, as where each of many models scales for itself, no policy looks on:
        then it is the gateway's own number.
        """
        if policy == GATEWAY or not self._advised:
            return self._alive
        return min(self._most, sum(scale.floor for scale in self._advisers[policy].scales.values()))

    def active(self, policy: str) -> bool:
        """Whether there must be any instance at all."""
        return self.wanted(policy) > 0 or self._alive > 0 or self._waiting > 0

    def predicted_p99_s(self) -> dict[str, float]:
        """p99 latency that the ``slo`` policy expects of the instances there are, by domain; infinite when too few."""
        return dict(self._predicted)
