"""The model cache as a state machine: whatever is asked in whatever order, its promises hold."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from cloister.adapters.metrics import Registry
from cloister.adapters.modelstore.port import Place
from cloister.base.errors import Refused, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.runtime import models
from cloister.runtime.models import ModelCache, Pin
from cloister.runtime.stages import StageMetrics
from cloister.testing.clock import FakeClock

BUDGET = 100
SIZES = {0: 30, 1: 30, 2: 40, 3: 60, 4: 101}
BROKEN = 5


class AtOnce(Executor):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        fn(*args, **kwargs)
        return Future()


class FakeModel:
    def __init__(self, index: int) -> None:
        self.index = index
        self.memory = SIZES[index]
        self.closed = 0
        self.call: Callable[[], None] | None = None

    def when_settled(self, call: Callable[[], None]) -> None:
        self.call = call

    def settle(self) -> None:
        if self.call is not None:
            self.call()
            self.memory = SIZES[self.index] // 2

    def close(self) -> None:
        self.closed += 1


class FakeFile:
    size = 1


class FakePlan:
    """Enough of a plan for the cache, which looks at its memory and its files' sizes only."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.peak = SIZES[index]
        self.memory = SIZES[index] // 2
        self.held = 0
        self.manifest = self.variant = self
        self.files = ("weights",)

    def file(self, name: str) -> FakeFile:
        del name
        return FakeFile()


class FakeLoader:
    def __init__(self) -> None:
        self.made: list[FakeModel] = []

    def plan(self, place: Place, release: Any, timings: Any) -> Any:
        del release, timings
        index = place.digest[0]
        if index == BROKEN:
            raise Tampered("manifest-digest", "another manifest")
        return FakePlan(index)

    def load(self, plan: Any, release: Any, timings: Any) -> Any:
        del release, timings
        model = FakeModel(plan.index)
        self.made.append(model)
        return model

    def drop(self, plan: Any) -> None:
        del plan


def place(index: int) -> Place:
    return Place(ModelId(b"o" * 32, "m"), bytes([index]) * 32)


class Cache(RuleBasedStateMachine):
    pins = Bundle("pins")

    def __init__(self) -> None:
        super().__init__()
        self.loader = FakeLoader()
        self.clock = FakeClock()
        self.cache = ModelCache(
            self.loader, budget=BUDGET, executor=AtOnce(), clock=self.clock, metrics=StageMetrics(Registry())
        )
        self.held: list[Pin] = []

    @rule(index=st.integers(0, BROKEN))
    def load(self, index: int) -> None:
        held = sum(pin.model.memory for pin in {id(p.model): p for p in self.held}.values())
        self.clock.advance(models.FRESH_S)
        already = self.cache.pin(place(index))
        if already is not None:
            already.release()
            return
        if SIZES.get(index, 0) <= BUDGET < held + SIZES.get(index, 0):
            return  # would wait for requests to end; tried with threads elsewhere
        error = self.cache.obtain(place(index), None).exception(0)  # type: ignore[arg-type]
        if index == BROKEN:
            assert isinstance(error, Tampered)
        elif SIZES[index] > BUDGET:
            assert isinstance(error, Refused)
        else:
            assert error is None or isinstance(error, Unavailable)

    @rule(target=pins, index=st.integers(0, BROKEN))
    def pin(self, index: int) -> Pin | None:
        pin = self.cache.pin(place(index))
        if pin is not None:
            self.held.append(pin)
        return pin

    @rule(pin=consumes(pins), twice=st.booleans())
    def release(self, pin: Pin | None, twice: bool) -> None:
        if pin is not None:
            pin.release()
            self.held.remove(pin)
            if twice:
                pin.release()

    @rule(index=st.integers(0, BROKEN))
    def discard(self, index: int) -> None:
        self.cache.discard(place(index))

    @rule(number=st.integers(0, 100))
    def settle(self, number: int) -> None:
        """A model gives back what only its load needed; also late, or twice."""
        if self.loader.made:
            self.loader.made[number % len(self.loader.made)].settle()

    @rule()
    def forget(self) -> None:
        if not self.held:
            self.cache.forget()
            assert self.cache.used == 0
            assert not self.cache.resident()

    @invariant()
    def nothing_held_is_closed_and_nothing_closes_twice(self) -> None:
        assert all(pin.model.closed == 0 for pin in self.held)  # type: ignore[attr-defined]
        assert all(model.closed <= 1 for model in self.loader.made)

    @invariant()
    def the_budget_holds_and_is_what_is_open(self) -> None:
        assert self.cache.used == sum(model.memory for model in self.loader.made if not model.closed) <= BUDGET

    @invariant()
    def one_copy_of_each(self) -> None:
        resident = [p.digest[0] for p in self.cache.resident()]
        assert len(resident) == len(set(resident))

    def teardown(self) -> None:
        for pin in self.held:
            pin.release()
        self.cache.close()
        assert all(model.closed == 1 for model in self.loader.made)
        assert self.cache.used == 0


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
