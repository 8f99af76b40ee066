"""The cloud as an attacker on the wire: a TCP relay that records everything, and changes what it is told to.

Used by the demonstration and the adversarial tests, which search what it recorded for plaintext.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

Change = Callable[[bytes, str], bytes]
"""Given bytes as they arrive and ``"up"`` (to the service) or ``"down"``, returns what to pass on."""


class Wiretap:
    """Relays TCP connections to ``host:port``; runs its own thread. A context manager.

    :param change: applied to everything that passes; by default nothing changes.
    """

    def __init__(self, host: str, port: int, change: Change | None = None) -> None:
        self._target = (host, port)
        self.change: Change = change or (lambda data, _direction: data)
        self._recorded: list[tuple[str, bytes]] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wiretap", daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @classmethod
    def before(cls, origin: str) -> Wiretap:
        """In front of ``http://host:port``."""
        host, _, port = origin.removeprefix("http://").rpartition(":")
        return cls(host.strip("[]"), int(port))

    @property
    def address(self) -> str:
        """Where to connect instead."""
        return f"http://127.0.0.1:{self.port}"

    def recorded(self, direction: str | None = None) -> bytes:
        """Everything that passed so far, in one direction or both."""
        with self._lock:
            return b"".join(data for way, data in self._recorded if direction in (None, way))

    def forget(self) -> None:
        """Start recording anew."""
        with self._lock:
            self._recorded.clear()

    def __enter__(self) -> Wiretap:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_args: object) -> None:
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    def _stop(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._done.set_result(None)

    async def _serve(self) -> None:
        self._done: asyncio.Future[None] = self._loop.create_future()
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._done
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            service_reader, service_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(service_writer)
        with contextlib.suppress(asyncio.CancelledError):  # the relay is being closed
            await asyncio.gather(self._pump(reader, service_writer, "up"), self._pump(service_reader, writer, "down"))
        for end in (writer, service_writer):
            self._writers.discard(end)
            end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 18):
                passed = self.change(data, direction)
                with self._lock:
                    self._recorded.append((direction, data))
                writer.write(passed)
                await writer.drain()
        if writer.can_write_eof():
            with contextlib.suppress(OSError):
                writer.write_eof()
