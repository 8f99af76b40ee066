"""Which models there are: those of the configuration, and those that the model store has when somebody asks."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from cloister.adapters.modelstore.port import ModelStore
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_MANIFEST, MIB
from cloister.control.gateway.configuration import DiscoverySettings, ModelSettings
from cloister.control.gateway.costs import first_guess
from cloister.control.snapshot import Model
from cloister.wire.manifest import MANIFEST_NAME, Manifest

ABSENT_S: Final = 1.0  # how long a model that was not there is taken to be still not there
MAX_ABSENT: Final = 4096
MAX_LOOKUPS: Final = 64  # at a time; a store that hangs must not collect callers
# What a model takes beside its files at rest: the engine's arena and its own copy of the graph (PERFORMANCE.md: 1.1 x).
OVERHEAD: Final = 1.15
OVERHEAD_MB: Final = 8.0


class Catalogue:
    """Models by the text of their id. Belongs to one event loop.

    :param store: None where there is none: then only configured models are known.
    :param found: told of each new model, once.
    """

    def __init__(
        self,
        models: tuple[ModelSettings, ...],
        discovery: DiscoverySettings,
        *,
        store: ModelStore | None,
        executor: Executor,
        clock: Clock,
        found: Callable[[Model], None],
    ) -> None:
        self._store = store
        self._executor = executor
        self._clock = clock
        self._found = found
        self._known: dict[str, Model] = {}
        self._absent: OrderedDict[str, float] = OrderedDict()
        self._lookups: dict[str, asyncio.Future[Model]] = {}
        self._settings: dict[str, ModelSettings] = {}
        self._discovery = discovery
        self.reconfigure(models, discovery)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, text: str) -> Model | None:
        """A model that is known already."""
        return self._known.get(text)

    def reconfigure(self, models: tuple[ModelSettings, ...], discovery: DiscoverySettings) -> None:
        """Other settings; models that are known take them over, with what was measured of them."""
        self._discovery = discovery
        self._settings = {model.id: model for model in models}
        self._absent.clear()
        for text, known in tuple(self._known.items()):
            self.put(self._made(text, known.memory_mb, known))
        for text, settings in self._settings.items():
            if text not in self._known and settings.memory_mb is not None:
                self.put(self._made(text, settings.memory_mb, None))

    def put(self, model: Model) -> None:
        """A model, or better figures of one."""
        self._known[model.id] = model
        self._found(model)

    async def find(self, model: ModelId, text: str) -> Model:
        """A model, from the store when it is not known yet. Many may ask at once; the store is asked once.

        :raises Unavailable: ``model-not-found``, ``store-unavailable``, ``too-many-models``, ``gateway-busy``.
        """
        known = self._known.get(text)
        if known is not None:
            return known
        lookup = self._lookups.get(text)
        if lookup is None:
            lookup = self._begin(model, text)
        return await asyncio.shield(lookup)

    def _begin(self, model: ModelId, text: str) -> asyncio.Future[Model]:
        until = self._absent.get(text)
        unknown = until is not None and self._clock.monotonic() < until
        if self._store is None or not (self._discovery.enabled or text in self._settings) or unknown:
            raise _not_found(text)
        if len(self._known) >= self._discovery.max_models:
            raise Unavailable("too-many-models", "this gateway knows as many models as it may", retry_after=60.0)
        if len(self._lookups) >= MAX_LOOKUPS:
            raise Unavailable("gateway-busy", "too many new models are being looked up", retry_after=1.0)
        task = asyncio.ensure_future(self._look_up(self._store, model, text))
        self._lookups[text] = task
        task.add_done_callback(lambda done: self._ended(text, done))
        return task

    async def _look_up(self, store: ModelStore, model: ModelId, text: str) -> Model:
        size = await asyncio.get_running_loop().run_in_executor(self._executor, stored_size, store, model)
        if size is None:
            self._absent[text] = self._clock.monotonic() + ABSENT_S
            if len(self._absent) > MAX_ABSENT:
                self._absent.popitem(last=False)
            raise _not_found(text)
        made = self._made(text, size / MIB * OVERHEAD + OVERHEAD_MB, None)
        self.put(made)
        return made

    def _ended(self, text: str, done: asyncio.Future[Model]) -> None:
        del self._lookups[text]
        if not done.cancelled():
            done.exception()  # whoever asked has it; if nobody waits any more it is of no interest

    def _made(self, text: str, memory_mb: float, known: Model | None) -> Model:
        settings = self._settings.get(text)
        if settings is not None and settings.memory_mb is not None:
            memory_mb = settings.memory_mb
        stages = known.stages if known is not None else None
        if stages is None:
            given = settings.stages if settings is not None else None
            stages = given or first_guess(memory_mb)
        return Model(
            id=text,
            owner=text.partition("/")[0],
            memory_mb=memory_mb,
            stages=stages,
            shares_with=settings.shares_with if settings is not None else frozenset(),
            slo_ms=settings.slo_ms if settings is not None else None,
        )


def stored_size(store: ModelStore, model: ModelId) -> int | None:
    """Bytes at rest of the newest packing, None where there is none. Blocks. The store is hostile: a size is a hint.

    :raises Unavailable: ``store-unavailable``.
    """
    place = store.latest(model)
    if place is None:
        return None
    try:
        return Manifest.parse(store.read(place, MANIFEST_NAME, limit=MAX_MANIFEST)).stored_size
    except Unavailable as error:
        if error.code == "model-not-found":
            return None
        raise
    except InvalidInput:
        return None
    except CloisterError as error:
        raise Unavailable("store-unavailable", f"the model store answers {error.code}", retry_after=1.0) from error


def _not_found(text: str) -> Unavailable:
    return Unavailable(
        "model-not-found",
        f"there is no model {text[:140]}",
        hint="Publish it (cloister model publish), or check its owner's id and its name.",
    )
