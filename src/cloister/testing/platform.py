"""A platform in this process: instances are stand-ins (``testing.instance``) that answer over real Unix sockets."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.server import HttpServer
from cloister.base.errors import Unavailable
from cloister.platforms.port import Event, Gone, Leaving, Ready, Running
from cloister.testing.instance import MAX_BODY, StandIn
from cloister.testing.logs import MemoryLog

HOST = "fake"


class _Place:
    def __init__(self, group: str, stand_in: StandIn, path: Path) -> None:
        self.group = group
        self.stand_in = stand_in
        self.path = path
        self.server = HttpServer(stand_in, log=MemoryLog(), limits=ServerLimits(max_body=MAX_BODY))
        self.ready = False


class FakeCloud:
    """Where the instances of :class:`FakePlatform` are; outlives its drivers, as a cloud does. Close it at the end.

    :param make: makes the stand-in of a new instance.
    :ivar start_error: raised by the next starts, until it is None again.
    :ivar comes_up: while False, instances stay without an address; set it and call :meth:`let_up`.
    :ivar answers_at: seconds from a start until the instance is ready.
    """

    def __init__(self, make: Callable[[str], StandIn] = StandIn) -> None:
        self._make = make
        self._folder = Path(tempfile.mkdtemp(prefix="cloister-fake-"))
        self.places: dict[str, _Place] = {}
        self.start_error: Unavailable | None = None
        self.comes_up = True
        self.answers_at = 0.0
        self.started: list[str] = []
        self._drivers: list[asyncio.Queue[Event]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0

    def stand_in(self, instance: str) -> StandIn:
        """The stand-in behind an instance."""
        return self.places[instance].stand_in

    def begin(self, instance: str, group: str) -> None:
        """An instance is asked for."""
        if self.start_error is not None:
            raise self.start_error
        if instance in self.places:
            return
        self.started.append(instance)
        self._count += 1
        place = self.places[instance] = _Place(group, self._make(instance), self._folder / f"{self._count}.s")
        if self.comes_up:
            self._spawn(instance, place)

    def let_up(self) -> None:
        """Let instances that wait for it come up."""
        self.comes_up = True
        for instance, place in self.places.items():
            if not place.ready:
                self._spawn(instance, place)

    async def end(self, instance: str, reason: str, *, drain_s: float) -> None:
        """An instance ends; with ``drain_s`` 0 in the middle of everything."""
        place = self.places.pop(instance, None)
        if place is None:
            return
        if place.server.address:
            await place.server.drain(drain_s)
        self.tell(Gone(instance, reason))

    def leave(self, instance: str) -> None:
        """Somebody told an instance to end: it listens no more, and finishes what it has."""
        self.places[instance].server.stop_listening()
        self.tell(Leaving(instance, "told to end"))

    async def kill(self, instance: str) -> None:
        """As ``kill -9``."""
        await self.end(instance, "died", drain_s=0.0)

    def tell(self, event: Event) -> None:
        """Every driver learns of it."""
        for queue in self._drivers:
            queue.put_nowait(event)

    def attach(self, queue: asyncio.Queue[Event]) -> None:
        """A driver listens."""
        self._drivers.append(queue)

    def detach(self, queue: asyncio.Queue[Event]) -> None:
        """A driver closes."""
        self._drivers.remove(queue)

    async def close(self) -> None:
        """End everything."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for instance in tuple(self.places):
            await self.kill(instance)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _spawn(self, instance: str, place: _Place) -> None:
        task = asyncio.get_running_loop().create_task(self._come_up(instance, place))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _come_up(self, instance: str, place: _Place) -> None:
        await asyncio.sleep(self.answers_at)
        if self.places.get(instance) is not place:
            return
        await place.server.start(path=place.path)
        place.ready = True
        self.tell(Ready(instance, place.group, place.server.address, HOST))


class FakePlatform:
    """``cloister.platforms.port.Platform``; several may share one cloud."""

    def __init__(self, cloud: FakeCloud) -> None:
        self._cloud = cloud
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._open = True
        cloud.attach(self._events)

    async def open(self) -> None:
        """See the port."""

    async def start(self, instance: str, group: str) -> None:
        """See the port."""
        self._cloud.begin(instance, group)

    async def stop(self, instance: str) -> None:
        """See the port."""
        task = asyncio.get_running_loop().create_task(self._cloud.end(instance, "stopped", drain_s=10.0))
        self._cloud._tasks.add(task)  # one module
        task.add_done_callback(self._cloud._tasks.discard)

    async def running(self) -> tuple[Running, ...]:
        """See the port."""
        return tuple(
            Running(instance, place.group, place.server.address, place.ready, HOST)
            for instance, place in self._cloud.places.items()
        )

    async def events(self) -> AsyncIterator[Event]:
        """See the port."""
        while True:
            yield await self._events.get()

    async def stop_all(self) -> None:
        """See the port."""
        await asyncio.gather(
            *(self._cloud.end(instance, "stopped", drain_s=10.0) for instance in tuple(self._cloud.places))
        )

    async def close(self) -> None:
        """See the port."""
        if self._open:
            self._open = False
            self._cloud.detach(self._events)
