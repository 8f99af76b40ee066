"""One function for all models: the second baseline of the papers."""

from __future__ import annotations

from cloister.control.packing.port import POOL, Assign, Decision, Start, Wait
from cloister.control.packing.room import can_take, least_recent, pending_slots
from cloister.control.snapshot import Request, Snapshot


class AllInOne:
    """One function for all models: any instance serves any request, loading and dropping models as they come."""

    name = "all-in-one"
    scope = "pool"

    def initial(self) -> None:
        """Nothing to remember."""

    def place(self, snapshot: Snapshot, state: None, request: Request, now: float) -> tuple[Decision, None]:
        """Any instance with a free slot that can hold the model; otherwise one more."""
        if snapshot.open_slots > 0:
            able = tuple(
                i.id for i in snapshot.instances.several(snapshot.order) if can_take(snapshot, i, request.model)
            )
            if able:
                return Decision(Assign(able)), state
        if snapshot.backlog <= pending_slots(snapshot, POOL) or snapshot.room <= 0:
            return Decision(Wait()), state
        return Decision(Wait(), (Start(POOL, (request.model,)),)), state

    def pull(self, snapshot: Snapshot, state: None, instance: str, now: float) -> tuple[str | None, None]:
        """The longest waiting request that it can take."""
        there = snapshot.instances[instance]
        for model in snapshot.waiting:
            if can_take(snapshot, there, model):
                return model, state
        return None, state

    def evict(self, snapshot: Snapshot, state: None, instance: str, model: str, now: float) -> tuple[str, ...] | None:
        """The least recently used."""
        return least_recent(snapshot, instance, model)

    def sent(self, snapshot: Snapshot, state: None, request: Request, instance: str, now: float) -> None:
        """Nothing to remember."""

    def retire(self, snapshot: Snapshot, state: None, now: float) -> tuple[tuple[str, ...], None]:
        """Left to the scaler."""
        return (), state

    def group_of(self, snapshot: Snapshot, model: str) -> str:
        """One group."""
        return POOL
