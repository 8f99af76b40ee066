"""Models fetched ahead: ciphertext of what the store says is newest, while keys are on their way, or long before.

Nothing of it is believed: a load checks it as if it came now, and fetches what is missing; a wrong hint costs time. It
takes memory that nothing else needs, within the models' budget, and makes way for any model that somebody asked for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, wait
from contextlib import suppress
from typing import Final, Protocol

from cloister.adapters.modelstore.port import ModelStore, Place
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_MANIFEST
from cloister.engines.buffers import BufferPool
from cloister.engines.package import likely_files
from cloister.runtime.chunks import IncomingFile, Reading
from cloister.wire.manifest import DESCRIPTION, MANIFEST_NAME, Manifest
from cloister.wire.manifest import manifest_digest as digest_of

MAX_DESCRIPTION: Final = 4 * MAX_MANIFEST  # index and sizes, and their padding
MAX_ARRIVALS: Final = 16  # models of which something may lie here unasked
MAX_RUNNING: Final = 2  # being fetched at once: strangers can name any model
KEEP_S: Final = 30.0  # for keys to come; what is kept for good is exempt


class Room(Protocol):
    """The models' budget."""

    def try_reserve(self, size: int) -> bool:
        """Take ``size`` bytes if they are free."""

    def unreserve(self, size: int) -> None:
        """Give them back."""


class Arrival:
    """What has come of one packing.

    :ivar files: by name, ciphertext in part or whole.
    :ivar reserved: bytes of the budget that they hold.
    """

    def __init__(self, place: Place, until: float) -> None:
        self.place = place
        self.until = until
        self.small: dict[str, bytes] = {}
        self.files: dict[str, IncomingFile] = {}
        self.reserved = 0
        self._done = threading.Event()
        self._reading: Reading | None = None
        self._stopped = False
        self._lock = threading.Lock()

    @property
    def idle(self) -> bool:
        """Whether nothing of it is being fetched."""
        return self._done.is_set()

    def read(self, reading: Reading, readers: Executor, helping: int) -> bool:
        """Fetch, with the help of so many other threads; whether everything came."""
        with self._lock:
            if self._stopped:
                return False
            self._reading = reading
        helpers = []
        with suppress(RuntimeError):  # shutting down
            helpers = [readers.submit(reading.run) for _ in range(helping)]
        reading.run()
        wait([helper for helper in helpers if not helper.cancel()])
        return reading.failed is None and not self._stopped

    def done(self) -> None:
        """Nothing more comes."""
        self._done.set()

    def stop(self, *, wait_for_it: bool = True) -> None:
        """End after the chunks under way."""
        with self._lock:
            self._stopped = True
            reading = self._reading
        if reading is not None:
            reading.stop()
        if wait_for_it:
            self._done.wait()


class Ahead:
    """Fetches and keeps arrivals. Safe for many threads.

    :param readers: other threads that help to fetch.
    """

    def __init__(self, store: ModelStore, *, readers: Executor, pool: BufferPool, clock: Clock) -> None:
        self._store = store
        self._readers = readers
        self._pool = pool
        self._clock = clock
        self._lock = threading.Lock()
        self._arrivals: OrderedDict[Place, Arrival] = OrderedDict()
        self._running = 0
        self._closed = False
        self.room: Room | None = None  # set once there is one; without, only small files are fetched

    def fetch(self, model: ModelId, *, keep: bool = False, wanted: Callable[[Place], bool] = lambda _: True) -> bool:
        """Fetch what the store says is newest of a model, as far as there is room; returns when that is done.

        :param keep: until it is used or its room needed, not for a moment only.
        :param wanted: asked before anything but the hint is fetched.
        :returns: whether all of it came.
        """
        try:
            place = self._store.latest(model)
        except CloisterError:
            return False
        if place is None or not wanted(place):
            return False
        with self._lock:
            full = self._running >= MAX_RUNNING or len(self._arrivals) >= MAX_ARRIVALS
            if place in self._arrivals or full or self._closed:
                return False
            self._running += 1
            until = float("inf") if keep else self._clock.monotonic() + KEEP_S
            arrival = self._arrivals[place] = Arrival(place, until)
        try:
            return self._fetch(arrival)
        except CloisterError:
            return False  # the load will say what is wrong, if it still is
        finally:
            with self._lock:
                self._running -= 1
            arrival.done()

    def take(self, place: Place) -> Arrival | None:
        """What has come of a packing; it is the caller's from now on, and nothing more comes."""
        with self._lock:
            arrival = self._arrivals.pop(place, None)
            others = [other for p, other in self._arrivals.items() if p.model == place.model]
        for other in others:  # the hint was wrong
            other.until = 0.0
            other.stop(wait_for_it=False)
        if arrival is not None:
            arrival.stop()
        return arrival

    def free(self, arrival: Arrival) -> None:
        """Give back what an arrival holds."""
        files, arrival.files = arrival.files, {}
        for file in files.values():
            file.buffer.release()
        if self.room is not None and arrival.reserved:
            self.room.unreserve(arrival.reserved)
            arrival.reserved = 0

    def make_way(self) -> bool:
        """Give up one arrival that nobody fetches any more; whether there was one."""
        with self._lock:
            place = next((p for p, arrival in self._arrivals.items() if arrival.idle and arrival.reserved), None)
            arrival = self._arrivals.pop(place) if place is not None else None
        if arrival is not None:
            self.free(arrival)
        return arrival is not None

    def sweep(self) -> None:
        """Give up what nobody came for."""
        now = self._clock.monotonic()
        with self._lock:
            old = [p for p, arrival in self._arrivals.items() if arrival.idle and now >= arrival.until]
            gone = [self._arrivals.pop(place) for place in old]
        for arrival in gone:
            self.free(arrival)

    def close(self) -> None:
        """Give up everything, and fetch nothing more."""
        with self._lock:
            self._closed = True
            gone = list(self._arrivals.values())
            self._arrivals.clear()
        for arrival in gone:
            arrival.stop()
            self.free(arrival)

    def _fetch(self, arrival: Arrival) -> bool:
        place = arrival.place
        data = self._store.read(place, MANIFEST_NAME, limit=MAX_MANIFEST)
        if digest_of(data) != place.digest:
            return False  # no release can name it
        manifest = Manifest.parse(data)
        arrival.small[MANIFEST_NAME] = data
        size = manifest.file(DESCRIPTION).stored_size
        arrival.small[DESCRIPTION] = self._store.read(place, DESCRIPTION, limit=min(size, MAX_DESCRIPTION))
        names = likely_files([entry.name for entry in manifest.files if entry.name != DESCRIPTION])
        entries = [manifest.file(name) for name in names]
        total = sum(entry.size for entry in entries)
        if self.room is None or not self.room.try_reserve(total):
            return False
        arrival.reserved = total
        files = {entry.name: IncomingFile(entry, self._pool.take(entry.size)) for entry in entries}
        arrival.files = files
        helping = min(self._store.parallel, sum(entry.chunks for entry in entries)) - 1
        return arrival.read(Reading(self._store, place, files.values()), self._readers, helping)
