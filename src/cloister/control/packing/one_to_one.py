"""One function per model: the first baseline of the papers, and what plain serverless does."""

from __future__ import annotations

from cloister.control.packing.port import Assign, Decision, Start, Wait
from cloister.control.packing.room import idle_to_stop, least_recent, pending_slots
from cloister.control.snapshot import Request, Snapshot


class OneToOne:
    """A function per model, as plain serverless does it: no instance ever serves another model."""

    name = "one-to-one"
    scope = "model"

    def initial(self) -> None:
        """Nothing to remember."""

    def place(self, snapshot: Snapshot, state: None, request: Request, now: float) -> tuple[Decision, None]:
        """A free slot of the model's own instances; otherwise one more instance, at the cap in place of an idle one."""
        group = request.model
        open_ones = tuple(i.id for i in snapshot.members(group) if i.open_slots > 0)
        if open_ones:
            return Decision(Assign(open_ones)), state
        if snapshot.queued(group) <= pending_slots(snapshot, group):
            return Decision(Wait()), state
        stop = idle_to_stop(snapshot, spare_group=group)
        if snapshot.room <= 0 and not stop:
            return Decision(Wait()), state
        return Decision(Wait(), (Start(group, (request.model,)),), stop), state

    def pull(self, snapshot: Snapshot, state: None, instance: str, now: float) -> tuple[str | None, None]:
        """Only its own model."""
        group = snapshot.instances[instance].group
        return (group if snapshot.queued(group) else None), state

    def evict(self, snapshot: Snapshot, state: None, instance: str, model: str, now: float) -> tuple[str, ...] | None:
        """Never anything to evict."""
        return least_recent(snapshot, instance, model)

    def sent(self, snapshot: Snapshot, state: None, request: Request, instance: str, now: float) -> None:
        """Nothing to remember."""

    def retire(self, snapshot: Snapshot, state: None, now: float) -> tuple[tuple[str, ...], None]:
        """Left to the scaler."""
        return (), state

    def group_of(self, snapshot: Snapshot, model: str) -> str:
        """A group per model."""
        return model
