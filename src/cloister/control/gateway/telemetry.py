"""What an operator may see of the gateway: metrics without users, and nothing of what requests hold (S10)."""

from __future__ import annotations

import re
from typing import Final

from cloister.adapters.metrics import SECONDS, Registry

# A runtime's own stages, as its /metrics has them: only these two lines are read.
_STAGE: Final = re.compile(
    r'^cloister_stage_seconds_(sum|count)\{stage="([a-z_]{1,32})",path="(cold|warm|hot)"\} ([0-9.e+-]{1,32})$',
    re.MULTILINE,
)
FINE: Final = (0.0005, 0.001, 0.0025, 0.005, *SECONDS[3:])


class Telemetry:
    """Metrics of one gateway."""

    def __init__(self) -> None:
        self.registry = registry = Registry()
        self._requests = registry.counter(
            "cloister_gateway_requests_total",
            "Requests by outcome (ok, or the error's code) and path (cold, warm, hot, or none when never sent).",
            ("outcome", "path"),
        )
        self._seconds = registry.histogram(
            "cloister_gateway_request_seconds",
            "Time from a request's arrival to the end of its answer, by path.",
            ("path",),
            bounds=FINE,
        )
        self._waits = registry.histogram(
            "cloister_gateway_wait_seconds", "Time in the queue of requests that were sent.", bounds=FINE
        )
        self._starts = registry.histogram(
            "cloister_gateway_instance_start_seconds", "From the command to start an instance until it answers."
        )
        self._slo = registry.counter(
            "cloister_gateway_slo_requests_total",
            "Requests for models with a declared bound, by whether they were answered within it.",
            ("model", "met"),
        )
        self._retries = registry.counter("cloister_gateway_retries_total", "Attempts after the first.")
        self._circuits = registry.counter("cloister_gateway_circuits_opened_total", "Circuits that opened.")
        self._stages = registry.counter(
            "cloister_gateway_stage_seconds_total", "Time in each stage, over all instances.", ("stage", "path")
        )
        self._stage_counts = registry.counter(
            "cloister_gateway_stages_total", "Passes of each stage, over all instances.", ("stage", "path")
        )
        self._instances = registry.gauge("cloister_gateway_instances", "Instances by state.", ("state",))
        self._last: dict[str, dict[tuple[str, str, str], float]] = {}

    def ended(self, outcome: str, path: str, seconds: float) -> None:
        """A request is over."""
        self._requests.add(outcome, path)
        if path != "none":
            self._seconds.observe(seconds, path)

    def attained(self, model: str, *, met: bool) -> None:
        """A request for a model with a declared bound is over."""
        self._slo.add(model, "true" if met else "false")

    def sent(self, waited_s: float) -> None:
        """A request left the queue."""
        self._waits.observe(waited_s)

    def started(self, seconds: float) -> None:
        """An instance came up."""
        self._starts.observe(seconds)

    def retried(self) -> None:
        """One more attempt."""
        self._retries.add()

    def opened(self) -> None:
        """A circuit."""
        self._circuits.add()

    def instances(self, states: dict[str, int]) -> None:
        """How many are in each state now."""
        for state, count in states.items():
            self._instances.set(count, state)

    def stages(self, instance: str, text: str) -> None:
        """An instance's own metrics: its stages are added to the sums of all, which outlive it."""
        last = self._last.setdefault(instance, {})
        for kind, stage, path, value in _STAGE.findall(text):
            try:
                now = float(value)
            except ValueError:
                continue
            more = now - last.get((kind, stage, path), 0.0)
            last[(kind, stage, path)] = now
            if more > 0:
                (self._stages if kind == "sum" else self._stage_counts).add(stage, path, amount=more)

    def forget(self, alive: set[str]) -> None:
        """Drop what is remembered of instances that are gone."""
        for instance in [name for name in self._last if name not in alive]:
            del self._last[instance]
