"""What the adaptive packer weighs: delays from running beside others, from waiting, from having dropped a model.

Pure functions of a snapshot; seconds throughout.
"""

from __future__ import annotations

from math import inf

from cloister.control.gaps import return_rate, returns_within
from cloister.control.snapshot import NO_ACTIVITY, Instance, InstanceState, Model, Snapshot


def contention_s(snapshot: Snapshot, instance: Instance, model: Model) -> float:
    """Delay from running beside others: its own, and what it adds to theirs, which are half done on average."""
    running = instance.in_flight
    if not running:
        return 0.0
    slower = snapshot.fleet.slower
    own = slower(running + 1) - 1.0
    others = running * max(0.0, slower(running + 1) - slower(running)) / 2
    return (own + others) * model.service_s


def slowed_s(snapshot: Snapshot, instance: Instance, model: Model) -> float:
    """Delay beyond running alone: contention, and the share of its time that the instance loses to pressure."""
    lost = model.service_s * instance.pressure / max(1e-3, 1.0 - instance.pressure) if instance.pressure else 0.0
    return contention_s(snapshot, instance, model) + lost


def waits_s(snapshot: Snapshot, model: Model, now: float) -> tuple[float, float]:
    """Expected wait for an instance that has the model, and for any (with loading it there)."""
    fleet = snapshot.fleet
    each = model.service_s * fleet.slower(fleet.concurrency)
    hot, soonest = 0, inf
    for there in snapshot.holding(model.id):
        if there.state is not InstanceState.READY:
            continue
        hot += there.concurrency
        free = (
            now
            if there.open_slots > 0
            else min((there.residents[name].ready_at for name in there.running), default=now)
        )
        soonest = min(soonest, max(free, there.residents[model.id].ready_at) - now)
    ready = (len(snapshot.order) - snapshot.starting) * fleet.concurrency
    for_hot = max(0.0, soonest) + snapshot.queued(model.id) * each / hot if hot else inf
    for_any = snapshot.backlog * each / ready + model.load_s if ready > 0 else inf
    return for_hot, for_any


def left_over(snapshot: Snapshot, model: Model, now: float) -> float:
    """How many requests will wait for an instance started now that slots open now, or starting already, do not take.

    A crowd that grows is expected to grow on at its rate, but not for long when few requests tell the rate: for as many
    times the time seen as there are beyond two. Meanwhile the first of the starting instances works. That one takes as
    many as it has slots, the others what adds to their work in a second: a crowd is over sooner in more instances than
    in more slots that only slow each other down.
    """
    fleet, starting, waiting = snapshot.fleet, snapshot.starting, snapshot.backlog - snapshot.open_slots
    since = min((snapshot.queues[name].head_arrived for name in snapshot.waiting[:1]), default=now)
    if not starting or now <= since or len(fleet.slowdown) < fleet.concurrency or model.service_s <= 0:
        return waiting - starting * fleet.concurrency
    useful = max(k / fleet.slower(k) for k in range(1, fleet.concurrency + 1))
    there = snapshot.instances.several(snapshot.order)
    first = min(other.expected_at for other in there if other.state is InstanceState.STARTING)
    done = max(0.0, now + model.start_s - max(first, now)) * useful / model.service_s
    comes = snapshot.backlog * min(max(0, snapshot.backlog - 2), model.start_s / (now - since))
    return waiting + comes - done - fleet.concurrency - (starting - 1) * useful


class Regret:
    """What it would cost to have dropped a model's copy from an instance.

    It counts only if the model is wanted before it would have been dropped anyway; what has been idle longest there
    shows how long a model lasts.
    """

    def __init__(self, snapshot: Snapshot, there: Instance, now: float) -> None:
        oldest = min((resident.last_used for resident in there.residents.values()), default=now)
        self._lasts = min(now - oldest, snapshot.fleet.keep_alive_s)
        self._snapshot, self._there, self._now = snapshot, there, now
        self._known: dict[str, float] = {}  # each is asked for when residents are compared, and again for the sum

    def rate(self, name: str) -> float:
        """Expected delay per second of keeping it, by which residents are compared."""
        value = self._known.get(name)
        if value is None:
            snapshot = self._snapshot
            seen, model = snapshot.activity.get(name) or NO_ACTIVITY, snapshot.models[name]
            value = return_rate(seen.gaps, self._now - seen.last_arrival) * model.load_s
            others = len(snapshot.holders.get(name) or ()) - 1
            if others > 0:  # missed only when so many come together that the other copies are busy
                value *= returns_within(seen.gaps, 0.0, model.service_s) ** (others * self._there.concurrency)
            self._known[name] = value
        return value

    def delay(self, name: str) -> float:
        """Expected delay in all."""
        snapshot = self._snapshot
        seen = snapshot.activity.get(name) or NO_ACTIVITY
        wanted = returns_within(seen.gaps, self._now - seen.last_arrival, self._lasts) * snapshot.models[name].load_s
        return min(wanted, self.rate(name) * self._lasts)
