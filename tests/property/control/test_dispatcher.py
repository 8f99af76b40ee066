"""The dispatcher under any order of events: nothing lost, nothing answered twice, no slot leaked, bounds kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from cloister.control.dispatch import Command, Dispatcher, Halt, Launch, Preload, Send, Wake
from cloister.control.policies import BALANCERS, PACKERS, SCALERS, balancer, packer, scaler
from cloister.control.snapshot import Fleet, Model, Request, Stages

STAGES = Stages(200, 300, 100, 10, 50, 20, 40, 1, 80, 1)
MODELS = [
    Model("a-small", "ann", 100, STAGES, frozenset({"bob"})),
    Model("a-large", "ann", 300, STAGES),
    Model("a-other", "ann", 200, STAGES),  # too large beside a-large: memory keeps them apart
    Model("b-small", "bob", 100, STAGES, frozenset({"*"})),
    Model("c-alone", "cid", 150, STAGES),
]
FLEET = Fleet(max_instances=3, memory_mb=400, concurrency=2, keep_alive_s=20, slowdown=(1.0, 1.3))


class Fleeting(RuleBasedStateMachine):
    """Drives one dispatcher as a gateway would, with its own books beside it."""

    running: Bundle[str] = Bundle("running")

    @initialize(
        names=st.tuples(st.sampled_from(PACKERS), st.sampled_from(BALANCERS), st.sampled_from(SCALERS)),
        weight=st.sampled_from([0.0, 0.5, 1.0]),
        keyless=st.integers(0, 1),
    )
    def begin(self, names: tuple[str, str, str], weight: float, keyless: int) -> None:
        self.now = 0.0
        self.dispatcher = self._make(names, weight, keyless)
        self.twin = self._make(names, weight, keyless)  # given the same events, it must say the same
        self.waiting: dict[str, Request] = {}
        self.flying: dict[str, tuple[Request, str]] = {}
        self.answered: set[str] = set()
        self.starting: set[str] = set()
        self.up: set[str] = set()
        self.wakes: list[Wake] = []
        self.count = 0

    @staticmethod
    def _make(names: tuple[str, str, str], weight: float, keyless: int) -> Dispatcher:
        packing, balancing, scaling = names
        made = Dispatcher(
            FLEET, packer(packing, cost_weight=weight), balancer(balancing), scaler(scaling), keyless=keyless
        )
        for model in MODELS:
            made.add_model(model)
        return made

    def _do(self, name: str, *args: Any, **options: Any) -> list[Command]:
        out = getattr(self.dispatcher, name)(*args, **options)
        assert getattr(self.twin, name)(*args, **options) == out
        return out[0] if isinstance(out, tuple) else out

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Send):
                assert command.instance in self.up
                request = self.waiting.pop(command.request.id)
                assert request.id not in self.answered
                self.flying[request.id] = (request, command.instance)
            elif isinstance(command, Launch):
                assert command.instance not in self.up | self.starting
                self.starting.add(command.instance)
            elif isinstance(command, Halt):
                assert all(instance != command.instance for _, instance in self.flying.values())
                self.up.remove(command.instance)
            elif isinstance(command, Wake):
                self.wakes.append(command)
            else:
                assert isinstance(command, Preload)

    @rule(model=st.sampled_from(MODELS), pause=st.sampled_from([0.0, 0.01, 0.5, 30.0]))
    def arrive(self, model: Model, pause: float) -> None:
        self.now += pause
        self.count += 1
        request = Request(f"r{self.count}", model.id, "u", self.now)
        self.waiting[request.id] = request
        self._carry_out(self._do("arrive", self.now, request))

    @rule(pick=st.randoms(use_true_random=False))
    def start(self, pick: Any) -> None:
        if self.starting:
            instance = pick.choice(sorted(self.starting))
            self.starting.remove(instance)
            self.up.add(instance)
            self._carry_out(self._do("ready", self.now, instance, "host"))

    @rule(pick=st.randoms(use_true_random=False), loaded=st.booleans())
    def answer(self, pick: Any, loaded: bool) -> None:
        if self.flying:
            self._answer(pick.choice(sorted(self.flying)), loaded=loaded)

    def _answer(self, name: str, *, loaded: bool) -> None:
        self.now += 0.05
        _, instance = self.flying.pop(name)
        self.answered.add(name)
        self._carry_out(self._do("finished", self.now, name, instance, 0.05, loaded=loaded))

    @rule(pick=st.randoms(use_true_random=False))
    def cancel(self, pick: Any) -> None:
        if self.waiting:
            request = self.waiting.pop(pick.choice(sorted(self.waiting)))
            assert self.dispatcher.cancel(self.now, request)
            assert self.twin.cancel(self.now, request)

    @rule(pick=st.randoms(use_true_random=False))
    def die(self, pick: Any) -> None:
        alive = sorted(self.up | self.starting)
        if alive:
            instance = pick.choice(alive)
            self.up.discard(instance)
            self.starting.discard(instance)
            orphans = [name for name, (_, where) in self.flying.items() if where == instance]
            lost = [self.flying.pop(name)[0] for name in orphans]
            self._carry_out(self._do("lost", self.now, instance))
            for request in lost:
                self.waiting[request.id] = request
                self._carry_out(self._do("resubmit", self.now, request))

    @rule(pick=st.randoms(use_true_random=False), pressure=st.floats(0.0, 0.99))
    def press(self, pick: Any, pressure: float) -> None:
        if self.up:
            instance = pick.choice(sorted(self.up))
            self.dispatcher.pressed(instance, pressure)
            self.twin.pressed(instance, pressure)

    @rule(pause=st.sampled_from([0.1, 1.0, 25.0]))
    def tick(self, pause: float) -> None:
        self.now += pause
        self._wake()
        self._carry_out(self._do("tick", self.now))

    def _wake(self) -> None:
        due = [wake for wake in self.wakes if wake.at <= self.now]
        self.wakes = [wake for wake in self.wakes if wake.at > self.now]
        for wake in due:
            self._carry_out(self._do("wake", self.now, wake.model))

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        snapshot = self.dispatcher.snapshot
        assert snapshot.backlog == len(self.waiting)
        assert len(snapshot.order) <= FLEET.max_instances
        assert set(snapshot.order) == self.up | self.starting
        slots = 0
        for name in snapshot.order:
            there = snapshot.instances[name]
            mine = [request for request, where in self.flying.values() if where == name]
            assert there.in_flight == len(mine) == sum(there.running.values()) <= there.concurrency
            assert {request.model for request in mine} <= set(there.residents)
            assert there.used_mb == sum(r.memory_mb for r in there.residents.values()) <= there.memory_mb
            models = [snapshot.models[m] for m in there.residents]
            assert all(one.may_share(other) for one in models for other in models)
            assert all(name in snapshot.holders[m] for m in there.residents)
            slots += there.open_slots
        assert snapshot.open_slots == slots

    def teardown(self) -> None:
        """Whatever happened: if calls keep ending and instances keep starting, everything waiting is served."""
        if not hasattr(self, "dispatcher"):
            return
        for _ in range(400):
            if not (self.waiting or self.flying):
                break
            for instance in sorted(self.starting):
                self.starting.discard(instance)
                self.up.add(instance)
                self._carry_out(self._do("ready", self.now, instance, "host"))
            for name in sorted(self.flying):
                self._answer(name, loaded=True)
            self.now += 1.0
            self._wake()
            self._carry_out(self._do("tick", self.now))
        assert not self.waiting
        assert not self.flying
        assert len(self.answered) <= self.count


Fleeting.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_fleet = Fleeting.TestCase


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("instances", [1, 2])
def test_a_rare_model_is_served_while_a_busy_one_never_stops(name: str, instances: int) -> None:
    """Twice the load that fits, of one owner; one request of a model whose owner shares with nobody."""
    dispatcher = Dispatcher(
        replace(FLEET, max_instances=instances), packer(name), balancer("least-outstanding"), scaler("keep-alive")
    )
    for model in MODELS:
        dispatcher.add_model(model)
    now, flying, served = 0.0, [], None
    for step in range(3000):
        now += 0.05
        out: list[Command] = []
        for n in range(2):
            out += dispatcher.arrive(now, Request(f"busy-{step}-{n}", "a-large", "u", now))
        if step == 20:
            out += dispatcher.arrive(now, Request("rare", "c-alone", "v", now))
        if step % 20 == 0:
            out += dispatcher.tick(now)
        for request_id, instance in flying[: 2 * instances]:
            out += dispatcher.finished(now, request_id, instance, 0.08)
        flying = flying[2 * instances :]
        while out:
            command = out.pop(0)
            if isinstance(command, Launch):
                out += dispatcher.ready(now, command.instance)
            elif isinstance(command, Send):
                flying.append((command.request.id, command.instance))
                if command.request.id == "rare":
                    served = now
        if served is not None:
            break
    assert served is not None, f"{name} starves a rare model"


@pytest.mark.parametrize("name", PACKERS)
def test_where_everybody_waits_long_no_instance_is_stopped_for_anybody(name: str) -> None:
    """One instance, and a crowd of one owner that keeps it busy for several keep-alives: nobody is passed over."""
    dispatcher = Dispatcher(
        replace(FLEET, max_instances=1), packer(name), balancer("least-outstanding"), scaler("keep-alive")
    )
    for model in MODELS:
        dispatcher.add_model(model)
    out: list[Command] = []
    for n in range(400):
        out += dispatcher.arrive(0.0, Request(f"r{n}", "a-small", f"u{n % 3}", 0.0))
    now, flying, launched, served = 0.0, [], 0, 0
    while served < 400:
        now += 0.5
        for request_id, instance in flying:
            out += dispatcher.finished(now, request_id, instance, 0.5)
            served += 1
        flying = []
        out += dispatcher.tick(now)
        while out:
            command = out.pop(0)
            if isinstance(command, Launch):
                launched += 1
                out += dispatcher.ready(now, command.instance)
            elif isinstance(command, Send):
                flying.append((command.request.id, command.instance))
    assert now > 3 * FLEET.keep_alive_s
    assert launched == 1
