"""The book of instances and queues: takes events, gives snapshots. No I/O, no clock, no decisions.

Each event replaces the few frozen records that it touches; :meth:`Ledger.snapshot` binds them together. Asking for what
cannot be (a second answer to a request, a slot that was never taken) is a bug of the caller and raises
``AssertionError``, because a leaked slot is a lost instance.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from cloister.control.gaps import observed
from cloister.control.line import Line
from cloister.control.snapshot import (
    QUEUE_WINDOW,
    Activity,
    Fleet,
    Holding,
    Instance,
    InstanceState,
    Model,
    Queue,
    Request,
    Resident,
    Snapshot,
)
from cloister.control.table import Table


def _must(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


class Ledger:
    """Mutable; owned by one dispatcher."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._models: Table[Model] = Table()
        self._instances: Table[Instance] = Table()
        self._order: tuple[str, ...] = ()
        self._holders: Table[tuple[str, ...]] = Table()
        self._groups: Table[tuple[str, ...]] = Table()
        self._activity: Table[Activity] = Table()
        self._traffic = Activity()
        self._queues: Table[Queue] = Table()
        self._waiting: dict[str, Line] = {}
        self._heads: list[tuple[int, str]] = []  # (sequence of the head, model), sorted: longest waiting first
        self._sequence = 0
        self._backlog = 0
        self._open_slots = 0
        self._starting = 0
        self._spares = 0
        self._sent: dict[str, tuple[Request, str]] = {}  # request id -> request, instance
        self._on: defaultdict[str, dict[str, Request]] = defaultdict(dict)  # instance -> requests in flight
        self._snapshot: Snapshot | None = None

    # ---- views -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The picture now; the same object until something changes."""
        if self._snapshot is None:
            self._snapshot = Snapshot(
                self._fleet,
                self._models,
                self._instances,
                self._order,
                self._holders,
                self._groups,
                self._activity,
                self._queues,
                tuple(model for _, model in self._heads[:QUEUE_WINDOW]),
                self._backlog,
                self._open_slots,
                self._starting,
                self._traffic,
                self._spares,
            )
        return self._snapshot

    def head(self, model: str) -> Request:
        """The request whose turn it is, of a model that has one waiting: fair to users (``cloister.control.line``)."""
        return self._waiting[model].head()[1]

    def in_flight_on(self, instance_id: str) -> tuple[Request, ...]:
        """Requests sent to an instance and not answered, oldest first."""
        return tuple(self._on[instance_id].values()) if instance_id in self._on else ()

    def is_waiting(self, request: Request) -> bool:
        """True while the request is in the queue."""
        line = self._waiting.get(request.model)
        return line is not None and request in line

    # ---- configuration ---------------------------------------------------------------------------------------------

    def set_fleet(self, fleet: Fleet) -> None:
        """New bounds; instances that are up keep theirs until they are replaced."""
        self._fleet = fleet
        self._snapshot = None

    def set_model(self, model: Model) -> None:
        """Add a model, or replace what is known of it."""
        self._models = self._models.put(model.id, model)
        self._snapshot = None

    # ---- requests --------------------------------------------------------------------------------------------------

    def arrived(self, model: str, now: float) -> None:
        """Note an arrival, for the estimate of the next."""
        self._activity = self._activity.put(model, _came(self._activity.get(model) or Activity(), now))
        self._traffic = _came(self._traffic, now)
        self._snapshot = None

    def enqueue(self, request: Request, *, first: bool = False) -> None:
        """Put a request into its model's queue; ``first`` puts one that lost its instance ahead of the others."""
        line = self._waiting.get(request.model)
        if line is None:
            line = self._waiting[request.model] = Line()
        _must(request not in line and request.id not in self._sent, f"request {request.id} is already here")
        before = line.head()[0] if line else None
        self._sequence += 1
        line.add(-self._sequence if first else self._sequence, request, first=first)
        self._backlog += 1
        self._line_changed(request.model, before)

    def dequeue(self, request: Request) -> None:
        """Take a request out of the queue: it is sent, its client went away, or its deadline passed."""
        line = self._waiting[request.model]
        before = line.head()[0]
        line.remove(request)
        if not line:
            del self._waiting[request.model]
        self._backlog -= 1
        self._line_changed(request.model, before)

    def _line_changed(self, model: str, before: int | None) -> None:
        line = self._waiting.get(model)
        after, head = line.head() if line else (None, None)
        if before != after:
            if before is not None:
                del self._heads[bisect_left(self._heads, (before, model))]
            if after is not None:
                insort(self._heads, (after, model))
        if line and head is not None:
            self._queues = self._queues.put(model, Queue(len(line), head.arrived))
        else:
            self._queues = self._queues.drop(model)
        self._snapshot = None

    def sent(self, request: Request, instance_id: str, now: float, load_s: float, evict: tuple[str, ...]) -> None:
        """A request goes to an instance, which drops ``evict`` and, if it lacks the model, loads it in ``load_s``."""
        _must(request.id not in self._sent, f"request {request.id} is in flight")
        old = self._instances[instance_id]
        _must(old.open_slots > 0, f"instance {instance_id} has no free slot")
        model = self._models[request.model]
        residents = dict(old.residents)
        for name in evict:
            _must(not old.running.get(name), f"model {name} is in use in {instance_id}")
            del residents[name]
            self._unhold(name, instance_id)
        have = residents.get(model.id)
        if have is None:
            residents[model.id] = Resident(model.memory_mb, Holding.SESSION, now + load_s, now)
            self._holders = self._holders.put(model.id, (*(self._holders.get(model.id) or ()), instance_id))
        else:
            residents[model.id] = Resident(have.memory_mb, have.holding, have.ready_at, now)
        running = dict(old.running)
        running[model.id] = running.get(model.id, 0) + 1
        changed = evict or have is None
        self._put(
            old,
            old._replace(
                in_flight=old.in_flight + 1,
                running=running,
                residents=residents,
                used_mb=sum(r.memory_mb for r in residents.values()) if changed else old.used_mb,
                owners=frozenset(self._models[name].owner for name in residents) if changed else old.owners,
                last_used=now,
            ),
        )
        self._sent[request.id] = (request, instance_id)
        self._on[instance_id][request.id] = request
        seen = self._activity[request.model]
        self._activity = self._activity.put(request.model, _flying(seen, 1))

    def preloading(self, instance_id: str, model_id: str, now: float, load_s: float) -> None:
        """An instance loads a model that fits beside what it has, with no request for it yet."""
        old = self._instances[instance_id]
        _must(model_id not in old.residents, f"{model_id} is in {instance_id}")
        model = self._models[model_id]
        residents = {**old.residents, model_id: Resident(model.memory_mb, Holding.SESSION, now + load_s, now)}
        self._holders = self._holders.put(model_id, (*(self._holders.get(model_id) or ()), instance_id))
        used, owners = old.used_mb + model.memory_mb, old.owners | {model.owner}
        self._put(old, old._replace(residents=residents, used_mb=used, owners=owners))

    def answered(self, request_id: str, now: float, execution_s: float, *, loaded: bool = True) -> Request:
        """A request ended, well or not: its slot is free either way.

        :param loaded: False when the instance said that it could not load the model, so does not hold it.
        """
        _must(request_id in self._sent, f"request {request_id} is not in flight")
        request, instance_id = self._sent.pop(request_id)
        del self._on[instance_id][request_id]
        old = self._instances[instance_id]
        running = dict(old.running)
        running[request.model] -= 1
        if not running[request.model]:
            del running[request.model]
        have = old.residents[request.model]
        residents = dict(old.residents)
        residents[request.model] = Resident(have.memory_mb, have.holding, min(have.ready_at, now), now)
        new = old._replace(in_flight=old.in_flight - 1, running=running, residents=residents, last_used=now)
        if not loaded and request.model not in running:
            del residents[request.model]
            self._unhold(request.model, instance_id)
            owners = frozenset(self._models[name].owner for name in residents)
            new = new._replace(used_mb=sum(r.memory_mb for r in residents.values()), owners=owners)
        self._put(old, new)
        seen = self._activity[request.model]
        self._activity = self._activity.put(
            request.model,
            Activity(seen.arrivals, seen.last_arrival, seen.gaps, seen.in_flight - 1, now, execution_s),
        )
        return request

    # ---- instances -------------------------------------------------------------------------------------------------

    def launched(self, instance: Instance) -> None:
        """An instance is being started, or was found running after a restart of the gateway."""
        _must(instance.id not in self._instances, f"instance {instance.id} exists")
        self._order = (*self._order, instance.id)
        self._groups = self._groups.put(instance.group, (*(self._groups.get(instance.group) or ()), instance.id))
        for name in instance.residents:
            self._holders = self._holders.put(name, (*(self._holders.get(name) or ()), instance.id))
        self._put(None, instance)

    def update(self, instance_id: str, *, state: InstanceState, host: str | None = None) -> None:
        """An instance changed its state."""
        old = self._instances[instance_id]
        self._put(old, old._replace(state=state, host=old.host if host is None else host, planned=()))

    def pressed(self, instance_id: str, pressure: float) -> None:
        """The pressure signal of an instance."""
        old = self._instances[instance_id]
        if abs(old.pressure - pressure) > 1e-6:
            self._put(old, old._replace(pressure=pressure))

    def observed(
        self, instance_id: str, now: float, residents: frozenset[str], *, concurrency: int, memory_mb: float
    ) -> None:
        """What an instance says of itself: known models that are there; those in use or on their way stay."""
        old = self._instances[instance_id]
        kept = {
            name: have
            for name, have in old.residents.items()
            if name in residents or name in old.running or have.ready_at > now
        }
        found = {name for name in residents if name not in kept and name in self._models}
        if len(kept) == len(old.residents) and not found:
            if (old.concurrency, old.memory_mb) != (concurrency, memory_mb):
                self._put(old, old._replace(concurrency=concurrency, memory_mb=memory_mb))
            return
        for name in old.residents:
            if name not in kept:
                self._unhold(name, instance_id)
        for name in sorted(found):
            kept[name] = Resident(self._models[name].memory_mb, Holding.SESSION, now, now)
            self._holders = self._holders.put(name, (*(self._holders.get(name) or ()), instance_id))
        self._put(old, old._replace(concurrency=concurrency, memory_mb=memory_mb, residents=kept, **self._totals(kept)))

    def _totals(self, residents: Mapping[str, Resident]) -> dict[str, Any]:
        owners = frozenset(self._models[name].owner for name in residents)
        return {"used_mb": sum(have.memory_mb for have in residents.values()), "owners": owners}

    def removed(self, instance_id: str) -> tuple[Request, ...]:
        """An instance is gone; returns the requests it had not answered, which are then nowhere."""
        old = self._instances[instance_id]
        self._order = tuple(i for i in self._order if i != instance_id)
        members = tuple(i for i in self._groups[old.group] if i != instance_id)
        self._groups = self._groups.put(old.group, members) if members else self._groups.drop(old.group)
        for name in old.residents:
            self._unhold(name, instance_id)
        self._put(old, None)
        orphans = tuple(self._on.pop(instance_id, {}).values())
        for request in orphans:
            del self._sent[request.id]
            self._activity = self._activity.put(request.model, _flying(self._activity[request.model], -1))
        return orphans

    def _unhold(self, model: str, instance_id: str) -> None:
        left = tuple(i for i in self._holders[model] if i != instance_id)
        self._holders = self._holders.put(model, left) if left else self._holders.drop(model)

    def _put(self, old: Instance | None, new: Instance | None) -> None:
        if old is not None:
            self._open_slots -= old.open_slots
            self._starting -= old.state is InstanceState.STARTING
            self._spares -= old.state is InstanceState.SPARE
        if new is not None:
            self._open_slots += new.open_slots
            self._starting += new.state is InstanceState.STARTING
            self._spares += new.state is InstanceState.SPARE
            self._instances = self._instances.put(new.id, new)
        elif old is not None:
            self._instances = self._instances.drop(old.id)
        self._snapshot = None


def _came(seen: Activity, now: float) -> Activity:
    gaps = observed(seen.gaps, now - seen.last_arrival) if seen.arrivals else ()
    return Activity(seen.arrivals + 1, now, gaps, seen.in_flight, seen.last_completion, seen.execution_s)


def _flying(seen: Activity, change: int) -> Activity:
    return Activity(
        seen.arrivals, seen.last_arrival, seen.gaps, seen.in_flight + change, seen.last_completion, seen.execution_s
    )
