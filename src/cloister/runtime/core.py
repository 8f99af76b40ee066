"""Everything of one runtime process but its socket and its adapters: the parts, put together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from cloister.adapters.http.buffers import BufferPool as HttpBuffers
from cloister.adapters.keyservice import KeyServiceLink
from cloister.adapters.logs import EventLog
from cloister.adapters.metrics import Registry
from cloister.adapters.modelstore.port import ModelStore
from cloister.adapters.pressure import read_pressure
from cloister.attest.types import Attester
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError
from cloister.base.ids import ModelId
from cloister.base.limits import MIB
from cloister.engines import _ort
from cloister.engines.buffers import BufferPool as WeightBuffers
from cloister.engines.cpu import Cpu, this_cpu
from cloister.runtime.ahead import Ahead
from cloister.runtime.isolation import Rooms
from cloister.runtime.keys import RuntimeSession
from cloister.runtime.leases import LeaseTable
from cloister.runtime.loader import Loader
from cloister.runtime.messages import RuntimeIdentity
from cloister.runtime.models import ModelCache
from cloister.runtime.options import RuntimeOptions
from cloister.runtime.presence import PresenceDesk
from cloister.runtime.replay import ReplayCache
from cloister.runtime.scheduler import Scheduler
from cloister.runtime.serve import Sealed
from cloister.runtime.server import RuntimeApp
from cloister.runtime.stages import Stage, StageMetrics, Timings
from cloister.runtime.streams import Streams

_COLD_THREADS: Final = 16  # calls to the KeyService and loads at once; they wait more than they compute
_READER_THREADS: Final = 8  # at least; a store that is far away wants more
_KEEP_IDLE_S: Final = 10  # seconds without a load until the pool of weights is given back
_LEAST_WORKING_MEMORY: Final = 256 * MIB  # of all requests together; as much as models may take, if that is more
_IDLE_WEIGHTS: Final = 4  # of the budget, this part may lie idle in the pool: touched, wiped, ready for the next model


@dataclass(frozen=True, slots=True)
class Ports:
    """What a runtime needs of the outside.

    :param identity: as its evidence says.
    """

    link: KeyServiceLink
    attester: Attester
    identity: RuntimeIdentity
    store: ModelStore
    clock: Clock
    log: EventLog
    cpu: Callable[[], Cpu] = this_cpu
    close: Callable[[], None] = lambda: None


class Runtime:
    """Everything of one runtime process but its socket."""

    def __init__(self, options: RuntimeOptions, ports: Ports) -> None:
        self.options = options
        self.ports = ports
        self.registry = Registry()
        self.metrics = StageMetrics(self.registry)
        self._cold = ThreadPoolExecutor(_COLD_THREADS, thread_name_prefix="cold")
        self._readers = ThreadPoolExecutor(max(_READER_THREADS, ports.store.parallel), thread_name_prefix="read")
        clock = ports.clock
        self.session = RuntimeSession(
            ports.link,
            ports.attester,
            options.measured(),
            clock=clock,
            keyservice=options.keyservice or None,
        )
        _ort.bound_working_memory(max(options.memory_bytes, _LEAST_WORKING_MEMORY))
        self.weights = WeightBuffers(options.memory_bytes // _IDLE_WEIGHTS, room=lambda: self.models.free)
        self.plaintexts = HttpBuffers()
        self.ahead = Ahead(ports.store, readers=self._readers, pool=self.weights, clock=clock)
        self.loader = Loader(
            ports.store,
            readers=self._readers,
            pool=self.weights,
            cpu=ports.cpu,
            threads=options.threads,
            engines=frozenset(options.engines),
            ahead=self.ahead,
        )
        self.leases = LeaseTable(self.session.release, self._cold, clock)
        self.models = ModelCache(
            self.loader,
            budget=options.memory_bytes,
            executor=self._cold,
            clock=clock,
            metrics=self.metrics,
            make_way=self.ahead.make_way,
        )
        self.ahead.room = self.models
        self.rooms = Rooms(
            options.isolation, co_tenancy=options.co_tenancy, forget=self.forget, executor=self._cold, clock=clock
        )
        self.scheduler = Scheduler(clock, slots=options.concurrency, queue_limit=options.queue)
        self._start: Timings | None = None
        self._fetched_before = 0
        self._quiet_s = 0
        self.sealed = Sealed(
            rooms=self.rooms,
            leases=self.leases,
            models=self.models,
            scheduler=self.scheduler,
            replay=ReplayCache(clock),
            metrics=self.metrics,
            plaintexts=self.plaintexts,
            identity=ports.identity,
            clock=clock,
            log=ports.log,
            deadline_s=options.deadline_s,
            started=self._take_start,
            hint=self._expect,
        )
        self.streams = Streams(self.sealed, clock, deadline_s=options.deadline_s)
        self.presence = PresenceDesk(
            ports.attester,
            options.measured(),
            bundle_digest=lambda: ports.link.bundle().digest,
            executor=self._cold,
            clock=clock,
        )
        self.app = RuntimeApp(
            self.sealed,
            streams=self.streams,
            status=self.status,
            ready=lambda: self.session.ready,
            metrics=self.registry.exposition,
            presence=self.presence,
        )
        gauge = self.registry.gauge
        gauge("cloister_in_flight", "Requests in a slot or waiting for one.", ask=lambda: self.scheduler.in_flight)
        gauge("cloister_resident_models", "Models in memory.", ask=lambda: len(self.models.resident()))
        gauge("cloister_room_switches", "Times everything was forgotten.", ask=lambda: self.rooms.switches)

    def forget(self) -> None:
        """Erase every key, model, engine session and buffer."""
        self.leases.forget()
        self.models.forget()
        self.weights.clear()
        self.plaintexts.clear()

    def status(self) -> dict[str, object]:
        """What packer, balancer and scaler go by (MiB, not bytes: S10)."""
        return {
            "ready": self.session.ready,
            "isolation": self.options.isolation.value,
            "tee": self.ports.identity.tee.value,
            "models": [str(place.model) for place in self.models.resident()],
            "in_flight": self.scheduler.in_flight,
            "queued": self.scheduler.queued,
            "waiting": self.rooms.waiting,
            "concurrency": self.options.concurrency,
            "memory_mb": {"used": self.models.used // MIB, "budget": self.options.memory_mb},
            "churn_mb": self.metrics.churn_bytes // MIB,
            "pressure": read_pressure(),
        }

    # --- life ---

    def prewarm(self, models: Sequence[ModelId]) -> None:
        """Keep the ciphertext of what the store says is newest of these models, as far as there is room; no key is
        needed, and whoever asks first waits for the store no more."""
        for model in models:
            if not self.ahead.fetch(model, keep=True):
                self.ports.log.event("prewarm-incomplete", level="warning", model=str(model))

    def connect(self, init_s: float) -> None:
        """Attest, with the engine's import going on beside it; a KeyService that is away is tried again later.

        :param init_s: seconds since the process began.
        """
        timings = Timings()
        timings.add(Stage.RUNTIME_INIT, init_s)
        importing = threading.Thread(target=import_engines, args=(self.options.engines,), name="import")
        importing.start()
        try:
            self.session.connect(timings)
        except CloisterError as error:
            self.ports.log.event("attest-failed", level="error", code=error.code, error=error.message)
        else:
            self.ports.log.event("attested", tee=self.ports.identity.tee.value)
        importing.join()
        self._start = timings

    def keep_house(self) -> None:
        """Once a second: let ended leases go, and attest anew before the session ends, off the hot path."""
        self.leases.sweep()
        self.ahead.sweep()
        fetched = self.metrics.fetched_bytes
        if fetched == self._fetched_before:  # nothing was loaded for a while: nobody misses the pool
            self._quiet_s += 1
        else:
            self._fetched_before, self._quiet_s = fetched, 0
        if self._quiet_s == _KEEP_IDLE_S:
            self.weights.clear()
        if not self.session.ready:
            try:
                self.session.connect(Timings())
            except CloisterError as error:
                self.ports.log.event("attest-failed", level="warning", code=error.code)

    def stop(self) -> None:
        """End threads, forget everything. After the last request."""
        self.rooms.close()
        self.scheduler.stop()
        self.ahead.close()
        self._cold.shutdown(wait=True, cancel_futures=True)
        self.leases.forget()
        self.models.close()
        self.weights.clear()
        self.plaintexts.clear()
        self._readers.shutdown(wait=True)
        self.ports.close()

    @property
    def executor(self) -> Executor:
        """For what waits."""
        return self._cold

    def _expect(self, model: ModelId) -> None:
        """Keys for this model are on their way: so may its ciphertext be."""
        if all(place.model != model for place in self.models.resident()):
            with suppress(RuntimeError):  # shutting down
                self._cold.submit(self.ahead.fetch, model, wanted=lambda place: not self.models.knows(place))

    def _take_start(self) -> Timings | None:
        start, self._start = self._start, None
        return start


def import_engines(names: tuple[str, ...]) -> None:
    """Import what most models need while there is time; what is missing shows when a model asks for it."""
    if "onnx" not in names:
        return
    try:
        _ort.arena()
    except CloisterError:
        return
