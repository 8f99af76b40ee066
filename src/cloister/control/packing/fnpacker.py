"""SeSeMI's FnPacker, by its published rules (arXiv 2412.11640 and its public code), without its faults.

A pool of identical functions. Per function: an exclusive owner and whether it is busy. Per model: the last function,
how many requests are in flight, when the last one ended and how long it took. To place a request of model *m*:

1. with two or more of *m* in flight, stay on its last function, and with exactly two claim that function for *m*;
2. otherwise take the first function, from index 0, that is not busy and that is unowned, or owned by *m*, or whose
   owner's last request ended longer ago than twice what it took.

Faults not copied: a failed call freed no slot (here the ledger counts, and a failure ends a request like a success),
and "all busy" was an error (here the request waits). A function that serves more than an instance's concurrency has
more instances behind it, as on OpenWhisk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cloister.control.packing.port import Assign, Decision, Start, Wait
from cloister.control.packing.room import can_take, idle_to_stop, least_recent, pending_slots
from cloister.control.snapshot import InstanceState, Request, Snapshot
from cloister.control.table import Table

CLAIM_AT = 2  # in flight at once
STALE_AFTER = 2.0  # times the owner's last execution


@dataclass(frozen=True, slots=True)
class FnPackerState:
    """Function to its exclusive owner; model to its last function; model to the function it waits for."""

    owners: Table[str]
    last: Table[str]
    bound: Table[str]


def _function(index: int) -> str:
    return f"fn-{index:04d}"


class FnPacker:
    """See the module."""

    name = "fnpacker"
    scope = "pool"

    def initial(self) -> FnPackerState:
        """No function owned, no model seen."""
        return FnPackerState(Table(), Table(), Table())

    def _pick(self, snapshot: Snapshot, state: FnPackerState, model: str, now: float) -> tuple[str | None, bool]:
        """The function, and whether the model claims it."""
        in_flight = snapshot.seen(model).in_flight + snapshot.queued(model)
        last = state.last.get(model)
        if in_flight >= CLAIM_AT and last is not None:
            return last, in_flight == CLAIM_AT
        for index in range(snapshot.fleet.max_instances):
            function = _function(index)
            if self._busy(snapshot, state, function, model):
                continue
            owner = state.owners.get(function)
            if owner is None or owner == model:
                return function, False
            seen = snapshot.seen(owner)
            if now - seen.last_completion > STALE_AFTER * seen.execution_s and not seen.in_flight:
                return function, False
        return None, False

    def _busy(self, snapshot: Snapshot, state: FnPackerState, function: str, model: str) -> bool:
        waiting_for = state.bound.get(function)
        if waiting_for is not None and waiting_for != model and snapshot.queued(waiting_for):
            return True
        return any(
            i.in_flight or (i.state is InstanceState.STARTING and i.planned != (model,))
            for i in snapshot.members(function)
        )

    def place(
        self, snapshot: Snapshot, state: FnPackerState, request: Request, now: float
    ) -> tuple[Decision, FnPackerState]:
        """Pick a function; start an instance for it when it has none free."""
        model = request.model
        function, claim = self._pick(snapshot, state, model, now)
        if function is None:
            return Decision(Wait()), state
        owner = state.owners.get(function)
        owners = state.owners
        if claim:
            owners = owners.put(function, model)
        elif owner is not None and owner != model and snapshot.seen(model).in_flight + snapshot.queued(model) <= 1:
            owners = owners.drop(function)  # the owner went away
        state = replace(state, owners=owners, last=state.last.put(model, function))
        free = tuple(i.id for i in snapshot.members(function) if can_take(snapshot, i, model))
        if free:
            return Decision(Assign(free)), state
        state = replace(state, bound=state.bound.put(function, model))
        if snapshot.queued(model) <= pending_slots(snapshot, function):
            return Decision(Wait()), state
        stop = idle_to_stop(snapshot, spare_group=function)
        if snapshot.room <= 0 and not stop:
            return Decision(Wait()), state
        return Decision(Wait(), (Start(function, (model,)),), stop), state

    def pull(
        self, snapshot: Snapshot, state: FnPackerState, instance: str, now: float
    ) -> tuple[str | None, FnPackerState]:
        """First the model that waits for this function, then the longest waiting one that would pick it."""
        there = snapshot.instances[instance]
        bound = state.bound.get(there.group)
        if bound is not None and snapshot.queued(bound) and can_take(snapshot, there, bound):
            return bound, state
        for model in snapshot.waiting:
            if can_take(snapshot, there, model) and self._would_go(snapshot, state, model, there.group, now):
                return model, replace(state, last=state.last.put(model, there.group))
        return None, state

    def _would_go(self, snapshot: Snapshot, state: FnPackerState, model: str, function: str, now: float) -> bool:
        last = state.last.get(model)
        if last is not None and snapshot.seen(model).in_flight + snapshot.queued(model) >= CLAIM_AT:
            return last == function or (snapshot.room <= 0 and last not in snapshot.groups)
        if any(i.in_flight for i in snapshot.members(function)):
            return last == function
        owner = state.owners.get(function)
        if owner is None or owner == model:
            return True
        seen = snapshot.seen(owner)
        return now - seen.last_completion > STALE_AFTER * seen.execution_s or not snapshot.queued(owner)

    def evict(
        self, snapshot: Snapshot, state: FnPackerState, instance: str, model: str, now: float
    ) -> tuple[str, ...] | None:
        """The least recently used."""
        return least_recent(snapshot, instance, model)

    def sent(
        self, snapshot: Snapshot, state: FnPackerState, request: Request, instance: str, now: float
    ) -> FnPackerState:
        """The function's waiting model has been served."""
        group = snapshot.instances[instance].group
        if state.bound.get(group) == request.model and snapshot.queued(request.model) <= 1:
            return replace(state, bound=state.bound.drop(group))
        return state

    def retire(self, snapshot: Snapshot, state: FnPackerState, now: float) -> tuple[tuple[str, ...], FnPackerState]:
        """Left to the scaler."""
        return (), state

    def group_of(self, snapshot: Snapshot, model: str) -> str:
        """The first function without an instance."""
        for index in range(snapshot.fleet.max_instances):
            if _function(index) not in snapshot.groups:
                return _function(index)
        return _function(0)
