"""Room in an instance: what must go before a model can come in, by memory and by its owner's co-tenancy."""

from __future__ import annotations

from collections.abc import Callable

from cloister.control.snapshot import Instance, InstanceState, Model, Snapshot


def strangers(snapshot: Snapshot, instance: Instance, model: Model) -> tuple[str, ...]:
    """Residents that may not be in one instance with ``model``."""
    if not instance.owners or instance.owners == {model.owner}:
        return ()
    return tuple(name for name in instance.residents if not model.may_share(snapshot.models[name]))


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
    idle = [name for name in instance.residents if name not in instance.running and name not in going]
    idle.sort(key=lambda name: (worth(name) / instance.residents[name].memory_mb, name))
    dropped = []
    for name in idle:
        if need <= 0:
            break
        dropped.append(name)
        need -= instance.residents[name].memory_mb
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
    return model_id in instance.residents or least_recent(snapshot, instance.id, model_id) is not None


def pending_slots(snapshot: Snapshot, group: str) -> int:
    """Slots of a group's instances that are still starting."""
    return sum(i.concurrency for i in snapshot.members(group) if i.state is InstanceState.STARTING)


def idle_to_stop(snapshot: Snapshot, *, spare_group: str) -> tuple[str, ...]:
    """At the cap: the instance of another group that has been idle longest, if there is one."""
    if snapshot.room > 0:
        return ()
    idle = [
        i
        for i in map(snapshot.instances.__getitem__, snapshot.order)
        if i.state is InstanceState.READY and not i.in_flight and i.group != spare_group
    ]
    return (min(idle, key=lambda i: (i.last_used, i.id)).id,) if idle else ()
