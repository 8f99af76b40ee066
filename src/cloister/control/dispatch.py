"""The dispatcher: events in, commands out, no I/O and no clock. The gateway and the simulator both drive this class.

It owns the queues and asks the packer, the balancer and the scaler; it carries out what they say and holds the bounds
itself: never more instances than the fleet may have, never more requests in an instance than it serves at once, models
of different owners together only where both allow it, each request answered once.

Every method takes ``now`` (seconds, any monotonic origin) and returns commands in the order in which to carry them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from cloister.control.balancing.port import Balancer
from cloister.control.demand import DemandMeter
from cloister.control.ledger import Ledger
from cloister.control.packing.port import Assign, Decision, Packer, Start
from cloister.control.packing.room import to_evict
from cloister.control.scaling.port import Domain, Scale, Scaler
from cloister.control.snapshot import KEYLESS, Fleet, Instance, InstanceState, Model, Request, Snapshot

RETRY: Final = 8  # heads looked at again when something changed; the rest get their turn at the next change


class Path(Enum):
    """What a request finds: ARCHITECTURE.md, "Life of a request"."""

    COLD = "cold"
    WARM = "warm"
    HOT = "hot"


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request to the instance, which drops ``evict`` and loads the model if it lacks it."""

    request: Request
    instance: str
    path: Path
    load: bool
    evict: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Launch:
    """Start an instance; ``models`` are what it will be asked for first."""

    instance: str
    group: str
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Preload:
    """Ask the instance to load a model with nobody waiting; it may ignore this."""

    instance: str
    model: str


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop an idle instance."""

    instance: str


@dataclass(frozen=True, slots=True)
class Wake:
    """Call :meth:`Dispatcher.wake` with ``model`` at ``at``."""

    at: float
    model: str


Command = Send | Launch | Preload | Halt | Wake


class Dispatcher:
    """See the module.

    :param keyless: how many attested instances without keys to keep ready, beyond what the scaler asks for.
    :param new_id: makes ids of instances; by default they are numbered.
    """

    def __init__(
        self,
        fleet: Fleet,
        packer: Packer[Any],
        balancer: Balancer[Any],
        scaler: Scaler[Any],
        *,
        keyless: int = 0,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self.ledger = Ledger(fleet)
        self._packer, self._balancer, self._scaler = packer, balancer, scaler
        self._packing = packer.initial()
        self._balancing = balancer.initial()
        self._scaling: dict[str, Any] = {}
        self._meter = DemandMeter(per_model=packer.scope == "model")
        self._keyless = keyless
        self._count = 0
        self._new_id = new_id or self._numbered
        self.domains: tuple[Domain, ...] = ()  # what scales as one, as the last tick measured it
        self._wakes: dict[str, float] = {}
        self._draining_for: dict[str, str] = {}  # instance running empty -> the model that waits for its place
        self._relief: dict[str, str] = {}  # instance started in such a place -> the model it serves first
        self._newest_sent = 0.0  # when the youngest request sent so far arrived

    def _numbered(self) -> str:
        self._count += 1
        return f"i-{self._count:06d}"

    @property
    def snapshot(self) -> Snapshot:
        """The picture now."""
        return self.ledger.snapshot()

    def add_model(self, model: Model) -> None:
        """Add a model, or replace what is known of it (new measurements, new limits)."""
        self.ledger.set_model(model)

    # ---- requests --------------------------------------------------------------------------------------------------

    def arrive(self, now: float, request: Request) -> list[Command]:
        """A request came."""
        out: list[Command] = []
        self.ledger.arrived(request.model, now)
        self._meter.arrived(self.snapshot.models[request.model], now)
        self.ledger.enqueue(request)
        self._place(request.model, now, out)
        return out

    def resubmit(self, now: float, request: Request) -> list[Command]:
        """A request lost its instance before any byte of an answer: ahead of its queue again."""
        out: list[Command] = []
        self._meter.changed(request.model, 1, now)
        self.ledger.enqueue(request, first=True)
        self._place(request.model, now, out)
        return out

    def cancel(self, now: float, request: Request) -> bool:
        """A waiting request's client went away or its deadline passed; False when it was sent already."""
        if not self.ledger.is_waiting(request):
            return False
        self.ledger.dequeue(request)
        self._meter.changed(request.model, -1, now)
        return True

    def finished(
        self, now: float, request_id: str, instance: str, execution_s: float, *, loaded: bool = True
    ) -> list[Command]:
        """A request was answered, or failed: either way its slot is free.

        :param loaded: False when the instance could not load the model.
        """
        request = self.ledger.answered(request_id, now, execution_s, loaded=loaded)
        self._meter.changed(request.model, -1, now)
        out: list[Command] = []
        self._halt_if_drained(instance, now, out)
        if self.snapshot.backlog and instance in self.snapshot.instances:
            self._fill(instance, now, out)
        return out

    def wake(self, now: float, model: str) -> list[Command]:
        """A wait ran out."""
        out: list[Command] = []
        if self._wakes.get(model, now) <= now:
            self._wakes.pop(model, None)
        if self.snapshot.queued(model):
            self._place(model, now, out)
        return out

    # ---- instances -------------------------------------------------------------------------------------------------

    def ready(self, now: float, instance: str, host: str = "") -> list[Command]:
        """A launched instance, or one whose circuit closed again, takes requests."""
        there = self.snapshot.instances[instance]
        planned = there.planned
        if there.group == KEYLESS:
            self.ledger.update(instance, state=InstanceState.SPARE, host=host or None)
            return self._retry(now)
        self.ledger.update(instance, state=InstanceState.READY, host=host or None)
        out: list[Command] = []
        first = self._relief.pop(instance, None)
        if first is not None and self.snapshot.queued(first):
            self._assign(self.ledger.head(first), (instance,), now, out)
        if self.snapshot.backlog:
            self._fill(instance, now, out)
        for model in planned:
            self._preload(instance, model, now, out)
        return out

    def discovered(self, now: float, instance: Instance) -> list[Command]:
        """An instance that was running before this gateway did."""
        self.ledger.launched(instance)
        out: list[Command] = []
        if self.snapshot.backlog:
            self._fill(instance.id, now, out)
        return out

    def observed(
        self, now: float, instance: str, residents: frozenset[str], *, concurrency: int, memory_mb: float
    ) -> list[Command]:
        """What an instance says of itself, which may differ from what was expected of it (``/v1/status``)."""
        slots = self.snapshot.open_slots
        self.ledger.observed(instance, now, residents, concurrency=concurrency, memory_mb=memory_mb)
        return self._retry(now) if self.snapshot.open_slots > slots and self.snapshot.backlog else []

    def avoid(self, now: float, instance: str, state: InstanceState) -> list[Command]:
        """Send nothing new to an instance: its circuit opened (``BROKEN``), or it goes once empty (``DRAINING``)."""
        out: list[Command] = []
        self.ledger.update(instance, state=state)
        self._halt_if_drained(instance, now, out)
        out.extend(self._retry(now))
        return out

    def lost(self, now: float, instance: str) -> tuple[list[Command], tuple[Request, ...]]:
        """An instance died, or its start failed. Returns the requests it had: resubmit them, or answer them."""
        orphans = self.ledger.removed(instance)
        self._draining_for.pop(instance, None)
        self._relief.pop(instance, None)
        for request in orphans:
            self._meter.changed(request.model, -1, now)
        return self._retry(now), orphans

    def pressed(self, instance: str, pressure: float) -> None:
        """The pressure signal of an instance: the share of time that it loses, 0 to below 1."""
        self.ledger.pressed(instance, pressure)

    def reconfigure(self, now: float, fleet: Fleet, models: tuple[Model, ...] = ()) -> list[Command]:
        """New bounds and models, while requests run."""
        self.ledger.set_fleet(fleet)
        for model in models:
            self.ledger.set_model(model)
        return self._retry(now)

    def replace_policies(
        self, now: float, packer: Packer[Any], balancer: Balancer[Any], scaler: Scaler[Any], *, keyless: int
    ) -> list[Command]:
        """Other policies, while requests run; they remember nothing.

        Groups are the packer's: under another one, let what is there drain (:meth:`avoid`).
        """
        self._draining_for.clear()
        self._relief.clear()
        self._packer, self._balancer, self._scaler, self._keyless = packer, balancer, scaler, keyless
        self._packing, self._balancing, self._scaling = packer.initial(), balancer.initial(), {}
        self._meter = DemandMeter(per_model=packer.scope == "model")
        for model in self.snapshot.activity:
            here = self.snapshot.seen(model).in_flight + self.snapshot.queued(model)
            if here:
                self._meter.changed(model, here, now)
        return self._retry(now)

    # ---- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Command]:
        """About once a second: scale."""
        out = self._retry(now)
        retired, self._packing = self._packer.retire(self.snapshot, self._packing, now)
        self.domains = tuple(self._meter.domains(self.snapshot, now))
        for domain in self.domains:
            state = self._scaling.get(domain.name)
            state = self._scaler.initial() if state is None else state
            scale, self._scaling[domain.name] = self._scaler.decide(self.snapshot, state, domain, now)
            members = [i for i in domain.instances if i in self.snapshot.instances]
            top = self._meter.busiest(domain.name)
            for _ in range(min(scale.floor - len(members), self.snapshot.room)):
                if top is not None:
                    self._launch(Start(self._packer.group_of(self.snapshot, top), (top,)), now, out)
            self._trim(members, retired, scale, now, out)
        self._relieve(now, out)
        spare = len(self.snapshot.groups.get(KEYLESS) or ())
        for _ in range(min(self._keyless - spare, self.snapshot.room - self.snapshot.spares)):
            self._launch(Start(KEYLESS, ()), now, out)
        return out

    def _trim(self, members: list[str], retired: tuple[str, ...], scale: Scale, now: float, out: list[Command]) -> None:
        """Stop idle instances: those the packer gave up, down to the floor; then down to the ceiling.

        What is above the ceiling stays for one keep-alive after its start: a packer started it because a request needed
        it, and stopping it at once would only have it started again.
        """
        snapshot, count = self.snapshot, len(members)
        if count <= scale.floor:
            return
        up = [snapshot.instances[i] for i in members]
        idle = [there for there in up if not there.in_flight and there.state is InstanceState.READY]
        going = [i for i in retired if any(there.id == i for there in idle)][: count - scale.floor]
        for name in going:
            self._halt(name, out)
        count -= len(going)
        old = [
            there for there in idle if there.id not in going and now - there.expected_at >= snapshot.fleet.keep_alive_s
        ]
        old.sort(key=lambda there: (there.last_used, there.id))
        for there in old[: max(0, count - max(scale.ceiling, scale.floor))]:
            self._halt(there.id, out)

    # ---- carrying out ----------------------------------------------------------------------------------------------

    def _place(self, model: str, now: float, out: list[Command]) -> bool:
        request = self.ledger.head(model)
        decision: Decision
        decision, self._packing = self._packer.place(self.snapshot, self._packing, request, now)
        sent = False
        if isinstance(decision.action, Assign):
            sent = self._assign(request, decision.action.candidates, now, out)
        elif decision.action.until is not None:
            self._wake_at(decision.action.until, model, out)
        for name in decision.stop:
            self._halt(name, out)
        for start in decision.start:
            self._launch(start, now, out)
        for instance, wanted in decision.preload:
            self._preload(instance, wanted, now, out)
        return sent

    def _assign(self, request: Request, candidates: tuple[str, ...], now: float, out: list[Command]) -> bool:
        instance, self._balancing = self._balancer.choose(self.snapshot, self._balancing, candidates, request, now)
        snapshot = self.snapshot
        there = snapshot.instances[instance]
        model = snapshot.models[request.model]
        have = there.residents.get(model.id)
        evict: tuple[str, ...] = ()
        if have is None:
            going = self._packer.evict(snapshot, self._packing, instance, model.id, now)
            if going is None:
                return False
            evict = going
        path = Path.HOT
        if there.launched_at >= request.arrived:
            path = Path.COLD
        elif have is None or have.ready_at > now:
            path = Path.WARM
        self._packing = self._packer.sent(snapshot, self._packing, request, instance, now)
        self._newest_sent = max(self._newest_sent, request.arrived)
        self.ledger.dequeue(request)
        self.ledger.sent(request, instance, now, model.load_s if have is None else 0.0, evict)
        out.append(Send(request, instance, path, have is None, evict))
        return True

    def _fill(self, instance: str, now: float, out: list[Command]) -> None:
        """Give an instance's free slots to waiting requests; what is left over may need another instance."""
        while self.snapshot.backlog and self.snapshot.instances[instance].open_slots > 0:
            model, self._packing = self._packer.pull(self.snapshot, self._packing, instance, now)
            if model is None or not self._assign(self.ledger.head(model), (instance,), now, out):
                out.extend(self._retry(now))
                return

    def _retry(self, now: float) -> list[Command]:
        out: list[Command] = []
        for model in self.snapshot.waiting[:RETRY]:
            while self.snapshot.queued(model) and self._place(model, now, out):
                pass
        return out

    def _relieve(self, now: float, out: list[Command]) -> None:
        """No policy may let a request wait for ever: one passed over for a whole keep-alive gets an instance's place.

        Happens when every instance is busy without end with models that the request's may not join. The least busy one
        runs empty and goes, and the one started instead serves the waiting model first. Where all wait that long, and
        none that came so much later was sent, or where the model is served all the while, nobody is passed over, and
        stopping an instance would only lose its work.
        """
        snapshot, patience = self.snapshot, self.snapshot.fleet.keep_alive_s
        served = {*self._draining_for.values(), *self._relief.values()}
        for model in snapshot.waiting[:1]:
            arrived = snapshot.queues[model].head_arrived
            seen = snapshot.seen(model)
            if model in served or seen.in_flight or now - max(arrived, seen.last_completion) < patience:
                continue
            if self._newest_sent - arrived < patience and snapshot.open_slots <= 0 and snapshot.room <= 0:
                continue
            ready = [
                there for there in snapshot.instances.several(snapshot.order) if there.state is InstanceState.READY
            ]
            if snapshot.room > 0:
                self._launch(Start(self._packer.group_of(snapshot, model), (model,)), now, out, first=model)
            elif ready:
                there = min(ready, key=lambda i: (i.in_flight, i.id))
                self._draining_for[there.id] = model
                self.ledger.update(there.id, state=InstanceState.DRAINING)
                self._halt_if_drained(there.id, now, out)

    def _halt_if_drained(self, instance: str, now: float, out: list[Command]) -> None:
        there = self.snapshot.instances[instance]
        if there.state is not InstanceState.DRAINING or there.in_flight:
            return
        self.ledger.removed(instance)
        out.append(Halt(instance))
        model = self._draining_for.pop(instance, None)
        if model is not None and self.snapshot.queued(model):
            self._launch(Start(self._packer.group_of(self.snapshot, model), (model,)), now, out, first=model)

    def _launch(self, start: Start, now: float, out: list[Command], *, first: str | None = None) -> None:
        if start.group != KEYLESS and (warm := self._take_keyless(start)) is not None:
            if first is not None:
                self._relief[warm] = first
            out.extend(self.ready(now, warm))
            return
        snapshot = self.snapshot
        if len(snapshot.order) >= snapshot.fleet.max_instances:
            return
        expected = max((snapshot.models[m].start_s for m in start.models), default=0.0)
        fleet = snapshot.fleet
        instance = Instance(
            id=self._new_id(),
            group=start.group,
            state=InstanceState.STARTING,
            concurrency=fleet.concurrency,
            memory_mb=fleet.memory_mb,
            planned=start.models,
            launched_at=now,
            expected_at=now + expected,
            last_used=now,
        )
        if first is not None:
            self._relief[instance.id] = first
        self.ledger.launched(instance)
        out.append(Launch(instance.id, start.group, start.models))

    def _take_keyless(self, start: Start) -> str | None:
        snapshot = self.snapshot
        for name in snapshot.groups.get(KEYLESS) or ():
            there = snapshot.instances[name]
            if there.state is InstanceState.SPARE:
                self.ledger.removed(name)
                self.ledger.launched(there._replace(group=start.group, planned=start.models))
                return name
        return None

    def _halt(self, instance: str, out: list[Command]) -> None:
        there = self.snapshot.instances.get(instance)
        if there is not None and not there.in_flight and there.state is InstanceState.READY:
            self.ledger.removed(instance)
            out.append(Halt(instance))

    def _preload(self, instance: str, model: str, now: float, out: list[Command]) -> None:
        snapshot = self.snapshot
        there = snapshot.instances.get(instance)
        if there is None or there.state is not InstanceState.READY or model in there.residents:
            return
        if to_evict(snapshot, there, model, lambda _: 0.0) == ():
            self.ledger.preloading(instance, model, now, snapshot.models[model].load_s)
            out.append(Preload(instance, model))

    def _wake_at(self, at: float, model: str, out: list[Command]) -> None:
        known = self._wakes.get(model)
        if known is None or at < known:
            self._wakes[model] = at
            out.append(Wake(at, model))
