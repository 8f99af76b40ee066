"""Room in an instance: what must go before a model can come in, by memory and by its owner's co-tenancy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cloister.control.snapshot import Instance, InstanceState, Model, Snapshot

DOUBTFUL_MB: Final = 1e-6  # closer than this, sums in another order might differ: they are then done in the same order


def strangers(snapshot: Snapshot, instance: Instance, model: Model) -> tuple[str, ...]:
    """Residents that may not be in one instance with ``model``."""
    if not instance.owners or instance.owners == {model.owner}:
        return ()
    return tuple(name for name in instance.residents if not model.may_share(snapshot.models[name]))


def fits_beside(snapshot: Snapshot, instance: Instance, model: Model) -> bool:
    """True when nothing has to go for the model, which the instance does not have."""
    if instance.used_mb + model.memory_mb - instance.memory_mb > 0:
        return False
    return not strangers(snapshot, instance, model)


def to_evict(
    snapshot: Snapshot, instance: Instance, model_id: str, worth: Callable[[str], float]
) -> tuple[str, ...] | None:
    """Residents to drop, least worth per MB first; ``None`` when those in use leave no room.

    :param worth: of keeping a resident; compared per MB, ties go to the name.
    """
    if model_id in instance.residents:
        return ()
    model = snapshot.models[model_id]
    going = strangers(snapshot, instance, model)
    if any(name in instance.running for name in going):
        return None
    need = instance.used_mb + model.memory_mb - instance.memory_mb
    need -= sum(instance.residents[name].memory_mb for name in going)
    if need <= 0:
        return going
    running = instance.running
    idle = [
        (worth(name) / resident.memory_mb, name, resident.memory_mb)
        for name, resident in instance.residents.items()
        if name not in running and name not in going
    ]
    idle.sort()
    dropped = []
    for _, name, memory_mb in idle:
        if need <= 0:
            break
        dropped.append(name)
        need -= memory_mb
    if need > 0:
        return None
    return (*going, *dropped)


def least_recent(snapshot: Snapshot, instance_id: str, model_id: str) -> tuple[str, ...] | None:
    """What a runtime drops by itself: the least recently used."""
    instance = snapshot.instances[instance_id]
    return to_evict(
        snapshot,
        instance,
        model_id,
        lambda name: instance.residents[name].last_used * instance.residents[name].memory_mb,
    )


def can_take(snapshot: Snapshot, instance: Instance, model_id: str) -> bool:
    """True when the instance has a free slot and could hold the model now."""
    if instance.open_slots <= 0:
        return False
    residents, running = instance.residents, instance.running
    if model_id in residents:
        return True
    model = snapshot.models[model_id]
    going = strangers(snapshot, instance, model)
    if any(name in running for name in going):
        return False
    missing = sum(residents[name].memory_mb for name in running) + model.memory_mb - instance.memory_mb
    if abs(missing) > DOUBTFUL_MB:
        return missing < 0
    return least_recent(snapshot, instance.id, model_id) is not None


def pending_slots(snapshot: Snapshot, group: str) -> int:
    """Slots of a group's instances that are still starting."""
    return sum(i.concurrency for i in snapshot.members(group) if i.state is InstanceState.STARTING)


def idle_to_stop(snapshot: Snapshot, *, spare_group: str) -> tuple[str, ...]:
    """At the cap: the instance of another group that has been idle longest, if there is one."""
    if snapshot.room > 0:
        return ()
    idle = [
        i
        for i in snapshot.instances.several(snapshot.order)
        if i.state is InstanceState.READY and not i.in_flight and i.group != spare_group
    ]
    return (min(idle, key=lambda i: (i.last_used, i.id)).id,) if idle else ()
