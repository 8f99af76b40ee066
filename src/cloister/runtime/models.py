"""Which models are resident: loaded once, pinned while in use, evicted least recently used, within a budget.

The cache never holds more than its budget: memory is reserved before anything large is fetched, and a model waits
until running requests let go of what must make room. Waiting is on conditions; nothing spins.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Final, Protocol

from cloister.adapters.modelstore.port import Place
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, Refused, Unavailable
from cloister.runtime.loaded import LoadedModel, Plan
from cloister.runtime.stages import StageMetrics, Timings
from cloister.wire.provisioning import Release

ROOM_WAIT_S: Final = 30.0  # for running requests to let go of a model that must make room
FRESH_S: Final = (
    1.0  # a model just loaded stays so long for whoever wanted it, or loads could evict each other for ever
)
MAX_LOADS: Final = 64  # under way or waiting at once


class ModelLoader(Protocol):
    """What the cache needs of ``loader.Loader``."""

    def plan(self, place: Place, release: Release, timings: Timings) -> Plan: ...

    def load(self, plan: Plan, release: Release, timings: Timings) -> LoadedModel: ...

    def drop(self, plan: Plan) -> None: ...


class _Entry:
    __slots__ = ("doomed", "fresh_until", "held", "model", "pins")

    def __init__(self, model: LoadedModel, held: int, now: float) -> None:
        self.model = model
        self.held = held
        self.pins = 0
        self.doomed = False
        self.fresh_until = now + FRESH_S


class Pin:
    """A model that stays while this is held; :meth:`release` once."""

    __slots__ = ("_cache", "_entry", "model")

    def __init__(self, cache: ModelCache, entry: _Entry) -> None:
        self._cache: ModelCache | None = cache
        self._entry = entry
        self.model = entry.model

    def release(self) -> None:
        """Let go; again is harmless."""
        cache, self._cache = self._cache, None
        if cache is not None:
            cache._unpin(self._entry)  # one module, one protocol


class ModelCache:
    """Resident models. Safe for many threads.

    :param budget: bytes that all of them may take (``--memory-mb``).
    :param executor: where loads run.
    :param make_way: frees memory that nobody asked for, if there is any; whether there was.
    """

    def __init__(
        self,
        loader: ModelLoader,
        *,
        budget: int,
        executor: Executor,
        clock: Clock,
        metrics: StageMetrics,
        make_way: Callable[[], bool] = lambda: False,
    ) -> None:
        self._loader = loader
        self.budget = budget
        self._executor = executor
        self._clock = clock
        self._metrics = metrics
        self._make_way = make_way
        self._changed = threading.Condition()
        self._entries: OrderedDict[Place, _Entry] = OrderedDict()
        self._dying: set[_Entry] = set()
        self._loading: dict[Place, Future[Timings]] = {}
        self._reserved = 0
        self._closed = False
        self.evictions = 0

    @property
    def used(self) -> int:
        """Bytes reserved by resident and arriving models; those count with their peak."""
        return self._reserved

    @property
    def free(self) -> int:
        """Bytes of the budget that nothing has reserved."""
        return self.budget - self._reserved

    def resident(self) -> list[Place]:
        """What is loaded, least recently used first."""
        with self._changed:
            return list(self._entries)

    def knows(self, place: Place) -> bool:
        """Whether a model is resident or arriving."""
        with self._changed:
            return place in self._entries or place in self._loading

    def pin(self, place: Place) -> Pin | None:
        """Hold a resident model; ``None`` when it is not resident."""
        with self._changed:
            entry = self._entries.get(place)
            if entry is None:
                return None
            entry.pins += 1
            entry.fresh_until = 0.0
            self._entries.move_to_end(place)
            return Pin(self, entry)

    def obtain(self, place: Place, release: Release) -> Future[Timings]:
        """Done when the model is there to :meth:`pin`, with what that took. Shared: not to be cancelled.

        :raises Unavailable: ``runtime-overloaded``, ``runtime-draining``.
        """
        with self._changed:
            under_way = self._loading.get(place)
            if under_way is not None:
                return under_way
            if self._closed:
                raise _draining()
            if len(self._loading) >= MAX_LOADS:
                raise Unavailable("runtime-overloaded", "too many models are being loaded", retry_after=1.0)
            future: Future[Timings] = Future()
            self._loading[place] = future
        try:
            self._executor.submit(self._run, place, release, future)
        except RuntimeError as error:
            with self._changed:
                del self._loading[place]
            raise _draining() from error
        return future

    def discard(self, place: Place) -> None:
        """Take a model out, for example because it failed its checks; it is freed when nobody holds it."""
        with self._changed:
            entry = self._entries.get(place)
            idle = entry is not None and self._doom(place, entry)
        if entry is not None and idle:
            self._free(entry)

    def forget(self) -> None:
        """Free every model, and wait until that is done. Nobody new may ask meanwhile."""
        with self._changed:
            while self._loading:
                self._changed.wait()
            idle = [entry for place, entry in list(self._entries.items()) if self._doom(place, entry)]
        for entry in idle:
            self._free(entry)
        with self._changed:
            while self._dying:
                self._changed.wait()

    def close(self) -> None:
        """Load nothing more, and free everything once it is let go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.forget()

    # --- inside ---

    def _unpin(self, entry: _Entry) -> None:
        with self._changed:
            entry.pins -= 1
            last = entry.pins == 0
            if last and not entry.doomed:
                self._changed.notify_all()
        if last and entry.doomed:
            self._free(entry)

    def _run(self, place: Place, release: Release, future: Future[Timings]) -> None:
        timings = Timings()
        try:
            plan = self._loader.plan(place, release, timings)
            try:
                self._reserve(plan.peak, plan.held)
            except BaseException:
                self._loader.drop(plan)
                raise
            try:
                model = self._loader.load(plan, release, timings)
            except BaseException:
                self.unreserve(plan.peak)
                raise
        except BaseException as error:
            self._loaded(place, None)
            future.set_exception(error)
            if not isinstance(error, CloisterError):
                raise
            return
        self._metrics.loaded(place, sum(plan.manifest.file(name).size for name in plan.variant.files))
        entry = _Entry(model, plan.peak, self._clock.monotonic())
        self._loaded(place, entry)
        model.when_settled(lambda: self._settled(entry, plan.memory))
        future.set_result(timings)

    def _loaded(self, place: Place, entry: _Entry | None) -> None:
        with self._changed:
            del self._loading[place]
            if entry is not None:
                self._entries[place] = entry
            self._changed.notify_all()

    def _settled(self, entry: _Entry, size: int) -> None:
        """A load has given back what only it needed."""
        with self._changed:
            if size < entry.held:
                self._reserved -= entry.held - size
                entry.held = size
                self._changed.notify_all()

    def try_reserve(self, size: int) -> bool:
        """Take bytes of the budget that nothing else needs now."""
        with self._changed:
            if self._closed or self._reserved + size > self.budget:
                return False
            self._reserved += size
            return True

    def unreserve(self, size: int) -> None:
        """Give bytes of the budget back."""
        with self._changed:
            self._reserved -= size
            self._changed.notify_all()

    def _reserve(self, size: int, held: int) -> None:
        """Memory for a load that already holds some of it."""
        if size > self.budget:
            raise Refused(
                "model-exceeds-memory",
                f"the model takes about {size >> 20} MiB; this instance has {self.budget >> 20} MiB for models",
                hint="Start the runtime with a larger --memory-mb.",
            )
        deadline = self._clock.monotonic() + ROOM_WAIT_S
        size -= held
        while size > self.free and self._make_way():
            pass
        while (victim := self._room_or_victim(size, deadline)) is not None:
            self._free(victim)

    def _room_or_victim(self, size: int, deadline: float) -> _Entry | None:
        """Reserve ``size`` bytes, or say whom to free first; waits while there is neither."""
        with self._changed:
            while self._reserved + size > self.budget:
                if self._closed:
                    raise _draining()
                now = self._clock.monotonic()
                for place, entry in self._entries.items():
                    if entry.pins == 0 and now >= entry.fresh_until and self._doom(place, entry):
                        self.evictions += 1
                        return entry
                if now >= deadline:
                    raise Unavailable("memory-busy", "every resident model is in use", retry_after=1.0)
                self._changed.wait(min(deadline - now, FRESH_S))
            self._reserved += size
            return None

    def _doom(self, place: Place, entry: _Entry) -> bool:
        """With the lock held: nobody can pin it any more. Whether the caller has to free it now."""
        del self._entries[place]
        entry.doomed = True
        self._dying.add(entry)
        return entry.pins == 0

    def _free(self, entry: _Entry) -> None:
        """Without the lock: wiping a large model takes a while."""
        try:
            entry.model.close()
        finally:
            with self._changed:
                self._dying.discard(entry)
                self._reserved -= entry.held
                entry.held = 0
                self._changed.notify_all()


def _draining() -> Unavailable:
    return Unavailable("runtime-draining", "this instance is shutting down", retry_after=0.0)
