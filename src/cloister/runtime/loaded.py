"""A model before and after its load: the plan, what it takes of memory, and the resident model."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Final

from cloister.adapters.modelstore.port import Place
from cloister.adapters.process import trim_heap
from cloister.engines.buffers import BufferPool, WeightBuffer
from cloister.engines.package import Package, Variant
from cloister.engines.port import Session
from cloister.runtime.ahead import Arrival
from cloister.wire.manifest import CHUNK, Description, Manifest

# Memory as multiples of the files' size, measured with a network of dense layers and with ResNet101v2.
_RESIDENT: Final = 1.15  # borrowed, or the engine's own copy
_LENT_PEAK: Final = 1.1  # while loading: weights that the engine borrows,
_REPACKED_PEAK: Final = 3.2  # those it reorders (ours, its copy, the reordered one),
_PLAIN_PEAK: Final = 3.9  # and a graph it optimises first


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be loaded, known before anything large is fetched.

    :param memory: bytes it is expected to take once it is loaded and checked; ``peak``: until then.
    :param arrival: what was fetched ahead of it.
    """

    place: Place
    manifest: Manifest
    description: Description
    package: Package
    variant: Variant
    memory: int
    peak: int
    arrival: Arrival | None = None

    @property
    def held(self) -> int:
        """Bytes of it that are reserved already, for what was fetched ahead."""
        return self.arrival.reserved if self.arrival is not None else 0


class LoadedModel:
    """A resident model. Weights that the engine borrows stay until :meth:`close`, which only the model cache calls;
    those it made its own of are given back as soon as they were checked."""

    def __init__(
        self,
        plan: Plan,
        session: Session,
        buffers: Mapping[str, WeightBuffer],
        pool: BufferPool,
        checks: list[Future[None]],
    ) -> None:
        self.place = plan.place
        self.version = plan.manifest.version
        self.package = plan.package
        self.session = session
        self.cost_s = math.inf  # what a request costs, a running mean; kept by whoever runs them
        lent = set(plan.variant.lent)
        self._buffers = [buffer for name, buffer in buffers.items() if name in lent]
        # The engine made its own of these; they stay only until they were checked.
        self._spare = [buffer for name, buffer in buffers.items() if name not in lent]
        self._lock = threading.Lock()
        self._pool = pool
        self._checks = checks
        self._unfinished = len(checks)
        self._settled = False
        self._when_settled: Callable[[], None] | None = None
        for check in checks:
            check.add_done_callback(self._one_checked)

    def when_settled(self, call: Callable[[], None]) -> None:
        """Call once what only the load needed was given back: at once, or from another thread."""
        with self._lock:
            if not self._settled:
                self._when_settled = call
                return
        call()

    @property
    def pending(self) -> bool:
        """Whether :meth:`confirmed` was not called to its end yet."""
        return bool(self._checks)

    def confirmed(self) -> None:
        """Return once every file's root, and the known answer, are confirmed; costs nothing from then on.

        :raises Tampered: ``model-root``. :raises Unavailable: ``engine-known-answer``.
        """
        if self._checks:
            for check in self._checks:
                check.result()
            self._checks = []

    def _one_checked(self, _: Future[None]) -> None:
        with self._lock:
            self._unfinished -= 1
            last = self._unfinished == 0
        if last:
            self._settle()

    def _settle(self) -> None:
        with self._lock:
            spare, self._spare = self._spare, []
        for buffer in spare:
            buffer.release()  # not into the pool: one copy of the weights, and no second one lying idle
        trim_heap()  # what the engine needed for its start only
        with self._lock:
            self._settled = True
            call, self._when_settled = self._when_settled, None
        if call is not None:
            call()

    def close(self) -> None:
        """Free session and weights; the weights are wiped."""
        wait(self._checks)
        self._settle()
        self.session.close()
        buffers, self._buffers = self._buffers, []
        for buffer in buffers:
            self._pool.give(buffer)
        trim_heap()


def memory_of(manifest: Manifest, variant: Variant) -> tuple[int, int]:
    """What a model takes in the end, and at most while it is loaded."""
    sizes = {name: manifest.file(name).size for name in variant.files}
    lent = sum(sizes[name] for name in variant.lent)
    given = sum(sizes.values()) - lent
    factor = _PLAIN_PEAK if variant.tuned_for is None else _REPACKED_PEAK
    resident = int((lent + given) * _RESIDENT) + CHUNK
    return resident, max(resident, int(lent * _LENT_PEAK + given * factor) + CHUNK)
