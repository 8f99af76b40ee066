"""The simulated world: instances that start, load and infer as the profile says, under the real dispatcher.

Events are simpy's. A request's duration is fixed when it is sent: loading (unless the model is there), then inference,
slower by how many requests run in its instance and on its host at that moment, and by paging when the host's secure
memory is over-committed. That leaves out what happens while it runs, which is what keeps a million requests affordable.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import floor
from typing import Any
from zlib import crc32

import numpy as np
import simpy

from cloister.control.balancing.port import Balancer
from cloister.control.dispatch import Command, Dispatcher, Halt, Launch, Path, Preload, Send
from cloister.control.packing.port import Packer
from cloister.control.scaling.port import Scaler
from cloister.control.simulator.profile import Profile
from cloister.control.simulator.workload import Arrival
from cloister.control.snapshot import Model, Request

TICK_S = 1.0
STUCK_AFTER_S = 3600.0  # no answer for so long after the last arrival: what still waits is lost
QUIET_S, QUIET_KEEP_ALIVES = 60.0, 4.0  # an empty fleet is not looked at until so long before the next arrival
PAGES_PER_MB = 256
DRAWS = 65536


@dataclass(frozen=True, slots=True)
class Moment:
    """The fleet at a tick, or when an instance was started or stopped."""

    at: float
    instances: int
    busy: int
    in_flight: int
    waiting: int
    pressure: float


@dataclass(slots=True)
class Record:
    """What happened: one entry a request in ``latencies`` (ms) and ``slo`` (ms), in order of completion."""

    requests: int = 0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    slo: array[float] = field(default_factory=lambda: array("d"))
    arrived: array[float] = field(default_factory=lambda: array("d"))
    paths: dict[Path, int] = field(default_factory=lambda: dict.fromkeys(Path, 0))
    path_ms: dict[Path, float] = field(default_factory=lambda: dict.fromkeys(Path, 0.0))  # latencies summed
    models: dict[str, int] = field(default_factory=dict)
    gb_seconds: float = 0.0
    instances_max: int = 0
    launches: int = 0
    evictions: int = 0
    ended_at: float = 0.0
    timeline: list[Moment] = field(default_factory=list)


class _Draws:
    """Log-normal factors on durations, mean 1, by number: the same number gives the same factor."""

    def __init__(self, sigma: float, seed: int, stream: int) -> None:
        drawn = np.random.default_rng([seed, stream]).lognormal(-sigma * sigma / 2, sigma, DRAWS)
        self._drawn: list[float] = drawn.tolist()

    def at(self, number: int) -> float:
        """The factor of that number; they repeat after ``DRAWS``."""
        return self._drawn[number % DRAWS]


class World:
    """One run.

    :param keyless: size of the pool of attested instances without keys.
    :param queue: most requests that wait; those that come when it is full are lost.
    :param deadline_s: a request that waited so long without being sent is lost.
    """

    def __init__(
        self,
        profile: Profile,
        packer: Packer[Any],
        balancer: Balancer[Any],
        scaler: Scaler[Any],
        *,
        seed: int = 0,
        keyless: int = 0,
        queue: int | None = None,
        deadline_s: float | None = None,
    ) -> None:
        self._profile = profile
        self._queue, self._deadline_s = queue, deadline_s
        self._quiet_s = max(QUIET_S, QUIET_KEEP_ALIVES * profile.keep_alive_s)
        self._dispatcher = Dispatcher(profile.fleet, packer, balancer, scaler, keyless=keyless)
        self._env = simpy.Environment()
        # Each draw belongs to what it is for (this request, this start, this model's next load), so that two policies
        # under one seed meet the same luck and differ by what they decide.
        self._services, self._starts, self._loads = (_Draws(profile.jitter, seed, n) for n in range(3))
        self._luck: dict[str, float] = {}  # request -> factor on its service
        self._loaded: defaultdict[str, int] = defaultdict(int)  # model -> loads so far
        self._models: dict[str, Model] = {}
        self._overheads: dict[str, float] = {}  # what a request waits outside instances, seconds
        self._loading: dict[tuple[str, str], float] = {}
        self._host_of: dict[str, str] = {}
        self._launched: dict[str, float] = {}
        self._reserved: dict[str, float] = {}  # instance -> MB it really uses
        hosts = [f"host-{n:03d}" for n in range(profile.hosts.count)]
        self._host_fits = dict(zip(hosts, profile.hosts.secure_memory_mb, strict=True))
        self._host_used = dict.fromkeys(hosts, 0.0)
        self._host_instances = dict.fromkeys(hosts, 0)
        self._host_running = dict.fromkeys(hosts, 0)
        self._reloading: defaultdict[str, float] = defaultdict(float)
        self._stalled: dict[str, float] = {}  # host -> share of time lost to paging, as last measured
        self._paging: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # host -> lost, worked seconds
        self._open = 0
        self._more = True
        self.record = Record()

    # ---- running ---------------------------------------------------------------------------------------------------

    def run(self, arrivals: Iterable[Arrival]) -> Record:
        """Replay arrivals, which come in order of time, until each is answered."""
        source = iter(arrivals)
        env, record, dispatcher = self._env, self.record, self._dispatcher
        next_at = 0.0

        def next_arrival() -> None:
            nonlocal next_at
            item = next(source, None)
            if item is None:
                self._more = False
                return
            next_at = item.time_s
            self._at(item.time_s, lambda: arrive(item))

        def arrive(item: Arrival) -> None:
            if item.model not in self._models:
                self._models[item.model] = self._profile.model(item.model)
                self._overheads[item.model] = self._profile.overhead_s(item.model)
                dispatcher.add_model(self._models[item.model])
            record.requests += 1
            request = Request(str(record.requests), item.model, item.user, env.now)
            if self._queue is None or dispatcher.snapshot.backlog < self._queue:
                self._open += 1
                self._luck[request.id] = self._services.at(record.requests)
                self._carry_out(dispatcher.arrive(env.now, request))
                if self._deadline_s is not None:
                    self._at(env.now + self._deadline_s, lambda: self._expire(request))
            next_arrival()

        def tick() -> None:
            self._measure_pressure()
            self._carry_out(dispatcher.tick(env.now))
            self._sample()
            if self._more and not self._open and not self._launched:
                # Nothing happens until the next arrival; what scalers remember is older than the ticks before it.
                self._at(max(env.now + TICK_S, floor(next_at - self._quiet_s)), tick)
            elif self._more or (self._open and env.now < max(record.ended_at, next_at) + STUCK_AFTER_S):
                self._at(env.now + TICK_S, tick)

        next_arrival()
        self._at(TICK_S, tick)
        while (self._more or self._open) and env.peek() != float("inf"):
            env.step()
        for name, since in self._launched.items():
            self._bill(name, since, max(record.ended_at, since))
        self._sample()
        return record

    def _expire(self, request: Request) -> None:
        if self._dispatcher.cancel(self._env.now, request):
            self._open -= 1
            del self._luck[request.id]

    def _at(self, at: float, action: Callable[[], None]) -> None:
        event = self._env.timeout(max(0.0, at - self._env.now))
        event.callbacks.append(lambda _: action())

    # ---- commands --------------------------------------------------------------------------------------------------

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Send):
                self._send(command)
            elif isinstance(command, Launch):
                self._launch(command)
            elif isinstance(command, Halt):
                self._halt(command.instance)
            elif isinstance(command, Preload):
                self._load(command.instance, command.model)
            else:
                self._wake_at(command.at, command.model)

    def _wake_at(self, at: float, model: str) -> None:
        self._at(at, lambda: self._carry_out(self._dispatcher.wake(self._env.now, model)))

    def _launch(self, command: Launch) -> None:
        now = self._env.now
        host = min(self._host_instances, key=lambda h: (self._host_instances[h], h))
        self._host_of[command.instance] = host
        self._host_instances[host] += 1
        self._launched[command.instance] = now
        self._use(command.instance, self._profile.runtime_mb)
        self.record.launches += 1
        self.record.instances_max = max(self.record.instances_max, len(self._launched))
        named = [self._models[model] for model in command.models] or list(self._models.values())
        start_s = max((model.start_s for model in named), default=0.0) * self._starts.at(self.record.launches)
        name = command.instance
        self._at(now + start_s, lambda: self._carry_out(self._dispatcher.ready(self._env.now, name, host)))
        self._sample()

    def _halt(self, instance: str) -> None:
        self._bill(instance, self._launched.pop(instance), self._env.now)
        self._use(instance, 0.0)
        self._host_instances[self._host_of.pop(instance)] -= 1
        for key in [key for key in self._loading if key[0] == instance]:
            del self._loading[key]
        self._sample()

    def _bill(self, _instance: str, since: float, until: float) -> None:
        self.record.gb_seconds += (until - since) * self._profile.memory_mb / 1024

    def _use(self, instance: str, mb: float) -> None:
        self._host_used[self._host_of[instance]] += mb - self._reserved.get(instance, 0.0)
        self._reserved[instance] = mb

    def _load(self, instance: str, model: str) -> float:
        self._loaded[model] += 1
        took = self._models[model].load_s * self._loads.at(crc32(model.encode()) + self._loaded[model])
        ends: float = self._env.now + took
        self._loading[(instance, model)] = ends
        self._use(instance, self._profile.runtime_mb + self._dispatcher.snapshot.instances[instance].used_mb)
        return ends

    def _send(self, command: Send) -> None:
        now, request, name = self._env.now, command.request, command.instance
        model = self._models[request.model]
        host = self._host_of[name]
        self._host_running[host] += 1
        begins = now
        if command.load:
            begins = self._load(name, request.model)
            if command.evict:
                self.record.evictions += len(command.evict)
                self._reloading[name] += model.load_s
        elif (name, request.model) in self._loading:
            begins = max(now, self._loading[(name, request.model)])
            if begins <= now:
                del self._loading[(name, request.model)]
        running = self._dispatcher.snapshot.instances[name].in_flight
        slower = max(self._profile.fleet.slower(running), self._host_running[host] / self._profile.hosts.cores)
        worked = model.service_s * slower * self._luck.pop(request.id)
        lost = self._faults_s(host, model)
        paging = self._paging[host]
        paging[0] += lost
        paging[1] += worked
        ends = begins + worked + lost
        path = command.path
        self._at(ends, lambda: self._end(request, name, host, path, now))

    def _end(self, request: Request, instance: str, host: str, path: Path, sent_at: float) -> None:
        now, record = self._env.now, self.record
        self._host_running[host] -= 1
        self._open -= 1
        model = self._models[request.model]
        latency = (now - request.arrived + self._overheads[request.model]) * 1000
        record.latencies.append(latency)
        record.path_ms[path] += latency
        record.slo.append(model.slo_ms if model.slo_ms is not None else self._profile.slo_ms)
        record.arrived.append(request.arrived)
        record.paths[path] += 1
        record.models[request.model] = record.models.get(request.model, 0) + 1
        record.ended_at = now
        self._carry_out(self._dispatcher.finished(now, request.id, instance, now - sent_at))

    # ---- secure memory ---------------------------------------------------------------------------------------------

    def _faults_s(self, host: str, model: Model) -> float:
        """Time one inference loses when its host's secure memory is over-committed.

        The pages of the model are touched once; the share of the host's pages that does not fit must come back, and a
        host brings pages back for one request at a time.
        """
        used, fits = self._host_used[host], self._host_fits[host]
        if used <= fits:
            return 0.0
        missing = 1.0 - fits / used
        pages = model.memory_mb * PAGES_PER_MB * missing
        return pages * self._profile.hosts.page_fault_us / 1e6 * self._host_running[host]

    def _measure_pressure(self) -> None:
        """What a pressure source would read: paging by host, churn by instance, over the last tick."""
        shares = {host: lost / (lost + worked) for host, (lost, worked) in self._paging.items() if lost + worked > 0}
        self._paging.clear()
        for host in self._host_used:
            before = self._stalled.get(host, 0.0)
            self._stalled[host] = before + (shares.get(host, 0.0) - before) / 2
        for name in self._launched:
            churn = min(0.95, self._reloading.get(name, 0.0) / (TICK_S * self._profile.concurrency))
            self._dispatcher.pressed(name, min(0.99, max(churn, self._stalled[self._host_of[name]])))
        self._reloading.clear()

    def _sample(self) -> None:
        snapshot = self._dispatcher.snapshot
        up = [snapshot.instances[name] for name in snapshot.order]
        self.record.timeline.append(
            Moment(
                self._env.now,
                len(up),
                sum(i.in_flight > 0 for i in up),
                sum(i.in_flight for i in up),
                snapshot.backlog,
                max((i.pressure for i in up), default=0.0),
            )
        )
