"""Our packer: the option with the least expected cost, from what the platform measured.

One exchange rate holds everything together. An operator who keeps an idle instance for ``keep_alive_s`` to spare
somebody a cold start of ``c`` seconds has said what a second of waiting is worth: at least ``keep_alive_s / c`` of an
instance's, since he also pays for the keep-alives in which nobody comes. The knob ``cost_weight`` w multiplies that by
1 / w^2 - 1: at 0 only waiting counts, at one half three times that rate, at 0.7 the rate itself, at 1 only memory. No
other constant decides anything.

* **Where** (:meth:`Adaptive.place`): wait for a hot instance, switch a warm one, or use an open slot: whichever adds
  the least delay, counting what it does to others: contention with requests running there, the slot that a load keeps
  from those who wait, and the models it pushes out, each weighed by how soon it is wanted again and by what loading it
  again costs. Nobody waits for a hot instance longer than a switch would have taken (rent or buy), so a rare model is
  never starved.
* **More** instances: every request adds the delay that one more instance would have spared it to an account that
  leaks with ``keep_alive_s``; when the account, without its largest crowd, is worth an instance kept that long, one is
  started (rent or buy again). One is also started when requests would be left over that no slot takes, of those there
  or starting; above one half of the knob only when they would wait for up to twice a cold start: the waiting work then
  keeps the instance busy for as long as starting it took, so it costs at most as much again.
* **Fewer** (:meth:`Adaptive.retire`): an instance pays rent, a second for each second, from the delay that it spared
  compared with the next best instance; the n-th started for a crowd begins with an n-th of what the first has. It is
  kept idle at least as long as its start took. Then it goes when it cannot pay, or when the gaps seen between requests
  of its models say that waiting for the next costs more than it spares.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, inf

from cloister.control.gaps import returns_within
from cloister.control.packing.accounts import Account, AdaptiveState, Rent
from cloister.control.packing.estimates import Regret, contention_s, left_over, slowed_s, waits_s
from cloister.control.packing.port import POOL, Assign, Decision, Start, Wait
from cloister.control.packing.room import can_take, fits_beside, to_evict
from cloister.control.snapshot import Instance, InstanceState, Model, Request, Snapshot
from cloister.control.table import Table

LOOK = 4  # places, or waiting models, weighed in detail for one decision: bounds its time in a large fleet
HORIZONS = tuple(2.0**-n for n in range(8))  # where keeping is weighed, as shares of the longest that could pay


@dataclass(frozen=True, slots=True)
class _Option:
    cost: float  # delay it adds, to the request and to others, in seconds
    avoidable: float  # the part that one more instance would have spared
    instances: tuple[str, ...]
    losing: tuple[str, ...] = ()  # models it pushes out


class Adaptive:
    """See the module.

    :param cost_weight: 0 (only latency counts) to 1 (only cost counts).
    """

    name = "adaptive"
    scope = "pool"

    def __init__(self, cost_weight: float = 0.5) -> None:
        self.cost_weight = min(max(cost_weight, 0.0), 1.0)
        weight = self.cost_weight
        self._tilt = inf if weight <= 0 else 1 / weight**2 - 1

    def initial(self) -> AdaptiveState:
        """Empty accounts."""
        return AdaptiveState(Account(), Table(), Table(), Table())

    # ---- prices ----------------------------------------------------------------------------------------------------

    def _worth(self, snapshot: Snapshot, model: Model) -> float:
        """Instance-seconds that a second of waiting is worth."""
        cold = model.start_s + model.load_s
        return self._tilt * snapshot.fleet.keep_alive_s / cold if cold > 0 else self._tilt

    # ---- options ---------------------------------------------------------------------------------------------------

    def _hot(self, snapshot: Snapshot, state: AdaptiveState, model: Model, now: float) -> _Option | None:
        best, found = inf, []
        avoidable = 0.0
        for there in snapshot.holding(model.id):
            if there.open_slots <= 0 or state.reserved.get(there.id, model.id) != model.id:
                continue
            contention = contention_s(snapshot, there, model)
            cost = max(0.0, there.residents[model.id].ready_at - now) + slowed_s(snapshot, there, model)
            if cost < best - 1e-9:
                best, avoidable, found = cost, contention, [there.id]
            elif cost <= best + 1e-9:
                found.append(there.id)
        return _Option(best, avoidable, tuple(found)) if found else None

    def _switch(
        self, snapshot: Snapshot, state: AdaptiveState, model: Model, now: float, below: float
    ) -> _Option | None:
        best, avoidable, found = below, 0.0, []
        losing: tuple[str, ...] = ()
        if snapshot.open_slots <= 0:
            return None
        for there in self._candidates(snapshot, state, model):
            cost = model.load_s + slowed_s(snapshot, there, model)
            if cost > best:
                continue
            loss = Regret(snapshot, there, now)
            going = to_evict(snapshot, there, model.id, loss.rate)
            if going is None:
                continue
            cost += sum(map(loss.delay, going))
            if cost < best - 1e-9:
                best, avoidable, found, losing = cost, cost - model.load_s, [there.id], going
            elif cost <= best + 1e-9:
                found.append(there.id)
            if best <= model.load_s:
                break  # nothing is better than an idle instance with room
        return _Option(best, avoidable, tuple(found), losing) if found else None

    @staticmethod
    def _candidates(snapshot: Snapshot, state: AdaptiveState, model: Model) -> list[Instance]:
        """Where to look for room: the least busy with free memory, and the least busy and least used without."""
        roomy: list[tuple[int, float, str]] = []
        full: list[tuple[int, float, str]] = []
        needs, reserved = model.memory_mb, state.reserved
        for there in snapshot.instances.several(snapshot.order):
            running = there.in_flight
            if running >= there.concurrency or there.state is not InstanceState.READY or model.id in there.residents:
                continue
            if reserved and reserved.get(there.id, model.id) != model.id:
                continue
            fits = there.used_mb + needs <= there.memory_mb
            (roomy if fits else full).append((running, there.last_used, there.id))
        chosen = sorted(roomy)[:LOOK] + sorted(full)[:LOOK]
        return snapshot.instances.several(name for _, _, name in chosen)

    # ---- the port --------------------------------------------------------------------------------------------------

    def place(
        self, snapshot: Snapshot, state: AdaptiveState, request: Request, now: float
    ) -> tuple[Decision, AdaptiveState]:
        """The option of least expected cost; one more instance when the account says that it pays."""
        model = snapshot.models[request.model]
        hot = self._hot(snapshot, state, model, now)
        if hot is not None and hot.cost <= 0.0:
            return Decision(Assign(hot.instances)), state
        best = hot
        if hot is None or hot.cost > model.load_s:
            best = self._switch(snapshot, state, model, now, inf if hot is None else hot.cost) or hot
        for_hot, for_any = waits_s(snapshot, model, now)
        waited = now - request.arrived
        if best is not None and (for_hot >= best.cost - waited or best is hot):
            return self._assign(snapshot, state, model, best, now)
        return self._wait(snapshot, state, model, request, min(for_hot, for_any), best, now)

    def _assign(
        self, snapshot: Snapshot, state: AdaptiveState, model: Model, option: _Option, now: float
    ) -> tuple[Decision, AdaptiveState]:
        action = Assign(option.instances)
        if option.avoidable <= 0.0 or snapshot.starting:
            return Decision(action), state
        tau, cold = snapshot.fleet.keep_alive_s, model.start_s + model.load_s
        chance = not option.losing  # models that push each other out do so whenever both are used
        own = (state.models.get(model.id) or Account()).plus(option.avoidable, now, tau, chance=chance, cold=cold)
        fleet = state.fleet.plus(option.avoidable, now, tau, chance=chance, cold=cold)
        preload: tuple[tuple[str, str], ...] = ()
        start: tuple[Start, ...] = ()
        if own.value >= model.load_s and (spare := self._spare(snapshot, state, model)) is not None:
            preload, own, fleet = ((spare, model.id),), Account(0.0, now), Account(0.0, now)
        elif snapshot.room > 0 and self._pays(snapshot, model, fleet):
            wanted = option.losing or (model.id,)
            if self._keeps(snapshot, wanted, option.avoidable, now):
                start, fleet = (Start(POOL, wanted),), Account(0.0, now)
                state = replace(state, promise=option.avoidable, share=1.0)
        state = replace(state, models=state.models.put(model.id, own), fleet=fleet)
        return Decision(action, start, preload=preload), state

    def _pays(self, snapshot: Snapshot, model: Model, account: Account) -> bool:
        if self._tilt == inf:
            return account.value > 0.0
        return account.recurring * self._worth(snapshot, model) >= model.start_s + snapshot.fleet.keep_alive_s

    def _spare(self, snapshot: Snapshot, state: AdaptiveState, model: Model) -> str | None:
        """An idle instance where one more copy of the model fits beside what is there."""
        for there in snapshot.instances.several(snapshot.order):
            if there.in_flight or there.state is not InstanceState.READY or model.id in there.residents:
                continue
            if there.id not in state.reserved and fits_beside(snapshot, there, model):
                return there.id
        return None

    def _wait(
        self,
        snapshot: Snapshot,
        state: AdaptiveState,
        model: Model,
        request: Request,
        expected: float,
        option: _Option | None,
        now: float,
    ) -> tuple[Decision, AdaptiveState]:
        fleet = snapshot.fleet
        cold = model.start_s + model.load_s
        waited = now - request.arrived
        pending = snapshot.starting * fleet.concurrency
        if snapshot.starting:
            each = model.service_s * fleet.slower(fleet.concurrency)
            beyond = max(0, snapshot.backlog - pending)
            expected = min(expected, cold + beyond * each / (len(snapshot.order) * fleet.concurrency))
        avoidable = max(0.0, expected - cold) if snapshot.starting else min(expected, fleet.keep_alive_s)
        account = state.fleet.plus(avoidable, now, fleet.keep_alive_s, chance=True, cold=cold)
        start: tuple[Start, ...] = ()
        none_up = len(snapshot.order) == snapshot.spares
        bound = max(0.0, 2 * self.cost_weight - 1) * 2 * cold
        full = left_over(snapshot, model, now) > 0
        crowded = full and (waited >= fleet.keep_alive_s or expected >= bound)
        pays = self._pays(snapshot, model, account)
        if snapshot.room > 0 and (none_up or crowded or pays):
            start, account = (Start(POOL, (model.id,)),), Account(0.0, now)
            share = 1.0 if pays else 1.0 / (len(snapshot.order) - snapshot.spares + 1)
            state = replace(state, share=share)
        patience = option.cost if option is not None else cold
        state = replace(state, fleet=account)
        if waited >= patience and snapshot.room <= 0 and option is None:
            state = self._reserve(snapshot, state, model, waited)
        until = request.arrived + patience
        if until <= now:
            until = now + max(cold, model.service_s)
        return Decision(Wait(until), start), state

    def _reserve(self, snapshot: Snapshot, state: AdaptiveState, model: Model, waited: float) -> AdaptiveState:
        """Every instance is full of what may not go: let the least busy one run empty for this model.

        Not before its requests together waited as long as that makes others wait (rent or buy once more): the instance
        runs empty, loads this model and afterwards what it had, and meanwhile its share of the others' queue stands.
        """
        if any(state.reserved[i] == model.id for i in state.reserved):
            return state
        ready = [
            there
            for there in snapshot.instances.several(snapshot.order)
            if there.state is InstanceState.READY and there.id not in state.reserved and model.id not in there.residents
        ]
        if not ready:
            return state
        chosen = min(ready, key=lambda i: (i.in_flight, i.id))
        running = [snapshot.models[name] for name in chosen.running]
        empty = max((there.service_s for there in running), default=0.0) * snapshot.fleet.slower(chosen.in_flight)
        stands = empty + model.load_s + sum(there.load_s for there in running)
        own, each = snapshot.queued(model.id), model.service_s * snapshot.fleet.slower(snapshot.fleet.concurrency)
        others = (snapshot.backlog - own) / len(ready) + waited * snapshot.fleet.concurrency / each
        if own * waited < stands * others:
            return state
        return replace(state, reserved=state.reserved.put(chosen.id, model.id))

    def pull(
        self, snapshot: Snapshot, state: AdaptiveState, instance: str, now: float
    ) -> tuple[str | None, AdaptiveState]:
        """The waiting model whose head is due first: its arrival, plus its service, plus what loading it here costs.

        Short ones go ahead of long ones of the same age, which is what keeps the mean low; age wins in the end. A model
        for which there is room is due when it came: its load pushes nobody out, and the other slots work meanwhile.
        """
        there = snapshot.instances[instance]
        wanted = state.reserved.get(instance)
        if wanted is not None:
            if snapshot.queued(wanted):
                return (wanted if can_take(snapshot, there, wanted) else None), state
            state = replace(state, reserved=state.reserved.drop(instance))
        best: str | None = None
        looked = 0
        due = (inf, 0)  # when, and by how many instances it is served already
        for name in snapshot.waiting:
            queue = snapshot.queues[name]
            if queue.head_arrived > due[0]:
                break
            short = snapshot.models[name].service_s
            holders = len(snapshot.holders.get(name) or ())
            have = there.residents.get(name)
            if have is not None:
                here = (round(queue.head_arrived + short + max(0.0, have.ready_at - now), 6), holders)
                if here < due:
                    best, due = name, here
                continue
            cost = self._cost_here(snapshot, there, name, now) if (looked := looked + 1) <= LOOK else None
            if cost is None:
                continue
            pushes = not fits_beside(snapshot, there, snapshot.models[name])
            here = (round(queue.head_arrived + (short + cost if pushes else 0.0), 6), holders)  # rounded: ties
            if here >= due or self._stays(snapshot, snapshot.models[name], cost, now - queue.head_arrived, now):
                continue
            best, due = name, here
        return best, state

    def _stays(self, snapshot: Snapshot, model: Model, cost: float, waited: float, now: float) -> bool:
        """True when waiting for a hot instance costs less than a load here, which keeps a slot from those who wait."""
        slots = (len(snapshot.order) - snapshot.starting) * snapshot.fleet.concurrency
        others = model.load_s * (snapshot.backlog - 1) / slots
        return waits_s(snapshot, model, now)[0] < cost + others - waited

    def _cost_here(self, snapshot: Snapshot, there: Instance, name: str, now: float) -> float | None:
        loss = Regret(snapshot, there, now)
        going = to_evict(snapshot, there, name, loss.rate)
        return None if going is None else snapshot.models[name].load_s + sum(map(loss.delay, going))

    def evict(
        self, snapshot: Snapshot, state: AdaptiveState, instance: str, model: str, now: float
    ) -> tuple[str, ...] | None:
        """What is least likely to be missed, per MB."""
        there = snapshot.instances[instance]
        return to_evict(snapshot, there, model, Regret(snapshot, there, now).rate)

    def sent(
        self, snapshot: Snapshot, state: AdaptiveState, request: Request, instance: str, now: float
    ) -> AdaptiveState:
        """Credit the instance with the delay that it spared, compared with the next best."""
        model = snapshot.models[request.model]
        there = snapshot.instances[instance]
        if state.reserved.get(instance) == model.id and snapshot.queued(model.id) <= 1:
            state = replace(state, reserved=state.reserved.drop(instance))
        spared = self._next_best(snapshot, there, model, now) - contention_s(snapshot, there, model)
        return self._credit(snapshot, state, there, model, max(0.0, spared), now)

    def _next_best(self, snapshot: Snapshot, there: Instance, model: Model, now: float) -> float:
        others = [i for i in snapshot.holding(model.id) if i.id != there.id and i.open_slots > 0]
        if others:
            return min(contention_s(snapshot, i, model) for i in others)
        if snapshot.open_slots > there.open_slots:
            return model.load_s if model.id in there.residents else 0.0
        if len(snapshot.order) - snapshot.starting > 1:
            return min(model.start_s + model.load_s, min(waits_s(snapshot, model, now)) + model.service_s)
        return model.start_s + model.load_s

    def _credit(
        self, snapshot: Snapshot, state: AdaptiveState, there: Instance, model: Model, spared: float, now: float
    ) -> AdaptiveState:
        if self._tilt == inf:
            return state
        longest = snapshot.fleet.keep_alive_s * self._tilt
        rent = self._rent(snapshot, state, there)
        earned = spared * self._worth(snapshot, model)
        balance = min(longest, max(0.0, rent.balance - (now - rent.at)) + earned)
        left = exp(-(now - rent.at) / snapshot.fleet.keep_alive_s)
        rent = Rent(balance, now, rent.spared * left + spared, rent.uses * left + 1.0)
        return replace(state, rents=state.rents.put(there.id, rent))

    def retire(self, snapshot: Snapshot, state: AdaptiveState, now: float) -> tuple[tuple[str, ...], AdaptiveState]:
        """Instances that no longer pay their rent; of those used lately at most one at a time."""
        for name in state.rents:
            if name not in snapshot.instances:
                state = replace(state, rents=state.rents.drop(name), reserved=state.reserved.drop(name))
        if self._tilt == inf or snapshot.backlog:
            return (), state
        ready = [there for there in snapshot.instances.several(snapshot.order) if there.state is InstanceState.READY]
        idle = [
            there
            for there in ready
            if not there.in_flight
            and there.id not in state.reserved
            and now - max(there.last_used, there.expected_at) >= there.expected_at - there.launched_at
        ]
        going: list[tuple[float, str]] = []
        surplus: list[tuple[float, str]] = []
        for there in idle:
            rent = self._rent(snapshot, state, there)
            balance = rent.balance - (now - rent.at)
            if not self._hopeful(snapshot, there, rent, now, last=len(ready) == 1):
                going.append((balance, there.id))
            elif balance <= 0:
                surplus.append((balance, there.id))
        going.sort()
        if not going and surplus:
            going = [min(surplus)]
        if going and len(going) == len(ready):  # the last one spares a cold start to whoever comes next
            there = snapshot.instances[going.pop()[1]]
            unused = now - max(there.last_used, there.expected_at)
            if unused >= snapshot.fleet.keep_alive_s * self._tilt or not self._hopeful(
                snapshot, there, self._rent(snapshot, state, there), now, last=True
            ):
                going.append((0.0, there.id))
        return tuple(name for _, name in going), state

    def _rent(self, snapshot: Snapshot, state: AdaptiveState, there: Instance) -> Rent:
        """What is known of an instance; a new one has rent for as long as one is kept for a cold start."""
        rent = state.rents.get(there.id)
        if rent is not None:
            return rent
        spared = max(state.promise, there.expected_at - there.launched_at)
        kept = snapshot.fleet.keep_alive_s * self._tilt * state.share
        return Rent(kept, max(there.expected_at, there.launched_at), spared, 1.0)

    def _hopeful(self, snapshot: Snapshot, there: Instance, rent: Rent, now: float, *, last: bool) -> bool:
        """False when no time of waiting for its next request would pay."""
        if not there.residents:
            return True
        each, rate = rent.spared / rent.uses, rent.uses / snapshot.fleet.keep_alive_s
        return self._keeps(snapshot, tuple(there.residents), each, now, rate=rate, last=last)

    def _keeps(
        self,
        snapshot: Snapshot,
        names: tuple[str, ...],
        spared: float,
        now: float,
        *,
        rate: float = 0.0,
        last: bool = False,
    ) -> bool:
        """True when for some horizon an idle instance with these models spares more than it costs.

        :param spared: delay spared per request; ``rate``: requests a second once they come.
        """
        model = snapshot.models[names[0]]
        restart = model.start_s + model.load_s
        each = spared * self._worth(snapshot, model)
        if last:
            each = max(each, model.start_s * self._worth(snapshot, model))
        if each == inf:
            return True
        longest = each + restart + snapshot.fleet.keep_alive_s * self._tilt
        for share in HORIZONS:
            horizon = longest * share
            value = restart + each * max(1.0, rate * horizon)
            missed = 1.0
            if last:
                traffic = snapshot.traffic
                missed = 1.0 - returns_within(traffic.gaps, now - traffic.last_arrival, horizon)
            else:
                for name in names:
                    seen = snapshot.seen(name)
                    copies = len(snapshot.holders.get(name) or ()) or 1
                    missed *= 1.0 - returns_within(seen.gaps, now - seen.last_arrival, horizon) / copies
            if (1.0 - missed) * value >= horizon * (1.0 + missed) / 2:
                return True
        return False

    def group_of(self, snapshot: Snapshot, model: str) -> str:
        """One pool."""
        return POOL
