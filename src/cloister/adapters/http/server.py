"""The HTTP server of all three services: listening, limits, draining."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.adapters.http.buffers import BufferPool
from cloister.adapters.http.connection import Connection
from cloister.adapters.http.crowd import Crowd
from cloister.adapters.http.limits import SCRATCH, ServerLimits
from cloister.adapters.http.message import App
from cloister.adapters.http.unix import socket_name
from cloister.adapters.logs import EventLog
from cloister.base.errors import Unavailable

if TYPE_CHECKING:
    import ssl

_BACKLOG: Final = 1024
_SWEEP_S: Final = 1.0


class HttpServer:
    """Serves ``app``. All methods belong to one event loop.

    :param pool: where bodies are received to; shared with whoever else needs such buffers.
    :param log: told of faults in the application, without anything of the request.
    """

    def __init__(
        self, app: App, *, log: EventLog, limits: ServerLimits | None = None, pool: BufferPool | None = None
    ) -> None:
        self.app = app
        self.limits = limits or ServerLimits()
        self.pool = pool or BufferPool()
        # One for all connections: bytes read to it are dealt with before the loop reads again.
        self.scratch = bytearray(SCRATCH)
        self.scratch_view = memoryview(self.scratch)
        self.draining = False
        self._log = log
        self._active: Crowd[Connection] = Crowd()
        self._lingering: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._address = ""
        self._path: Path | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    @property
    def address(self) -> str:
        """The origin for clients: ``http://host:port``, ``https://host:port`` or ``unix:/path``."""
        return self._address

    @property
    def connections(self) -> int:
        """Open connections, with those that only wait for their client to stop sending."""
        return len(self._active) + len(self._lingering)

    async def start(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        path: Path | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Listen on TCP (port 0: any free one) or, with ``path``, on a Unix socket that only its owner may open.

        :param tls: speak TLS on TCP, see ``tls.server_context``. A handshake may take ``head_s``; connections in it
            do not count towards ``max_connections``.
        :raises Unavailable: ``listen-failed``.
        """
        loop = asyncio.get_running_loop()
        try:
            if path is not None:
                self._listener = await self._listen_unix(loop, path)
                self._address = f"unix:{path}"
            else:
                self._listener = await loop.create_server(
                    self._connect,
                    host,
                    port,
                    backlog=_BACKLOG,
                    ssl=tls,
                    ssl_handshake_timeout=None if tls is None else self.limits.head_s,
                    ssl_shutdown_timeout=None if tls is None else self.limits.linger_s,
                )
                bound = self._listener.sockets[0].getsockname()
                name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
                self._address = f"{'http' if tls is None else 'https'}://{name}:{bound[1]}"
        except OSError as error:
            where = str(path) if path is not None else f"{host}:{port}"
            raise Unavailable("listen-failed", f"cannot listen on {where}: {error.strerror}") from error
        self._sweeper = loop.call_later(self._tick(), self._sweep)

    def stop_listening(self) -> None:
        """Take no new connections; those that are open go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def drain(self, timeout: float) -> int:  # noqa: ASYNC109  # a deadline after which the rest is cut, not cancelled
        """Stop listening, let requests under way finish, then close. Returns how many were cut at the timeout."""
        self.draining = True
        self.stop_listening()
        for connection in tuple(self._active):
            connection.finish_up()
        if self.connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout)
        cut = tuple(self._active)
        for connection in (*cut, *self._lingering):
            connection.abort()
        if self.connections:
            await self._empty.wait()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        return len(cut)

    async def close(self) -> None:
        """Stop at once."""
        await self.drain(0.0)

    # --- for connections ---

    def enter(self, connection: Connection) -> bool:
        """Count a connection in, perhaps in another one's place; False when there are too many."""
        if self.draining:
            return False
        if len(self._active) >= self.limits.max_connections:
            other = self._active.makes_room(connection.address)
            if other is None:
                return False
            self._active.discard(other)
            other.abort()
        self._active.add(connection)
        self._empty.clear()
        return True

    def linger(self, connection: Connection) -> None:
        """It is answered and only waits for its client to stop sending."""
        if len(self._lingering) >= self.limits.max_connections:
            connection.abort()
        else:
            self._lingering.add(connection)

    def leave(self, connection: Connection) -> None:
        """Its task is done, or it is gone altogether."""
        self._active.discard(connection)
        if connection.gone:
            self._lingering.discard(connection)
        if not self.connections:
            self._empty.set()

    def report(self, error: Exception) -> None:
        """Log a fault in the application: its type and place. Its text may hold what a client sent."""
        places = []
        trace = error.__traceback__
        while trace is not None:
            places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
            trace = trace.tb_next
        self._log.event("internal-error", level="error", error=type(error).__name__, where=" ".join(places[-6:]))

    # --- inside ---

    def _connect(self) -> Connection:
        return Connection(self)

    async def _listen_unix(self, loop: asyncio.AbstractEventLoop, path: Path) -> asyncio.Server:
        listener = _bind_unix(path)
        try:
            self._path = path
            return await loop.create_unix_server(self._connect, sock=listener, backlog=_BACKLOG)
        except BaseException:
            listener.close()
            raise

    def _tick(self) -> float:
        limits = self.limits
        return min(_SWEEP_S, limits.idle_s / 4, limits.head_s / 4, limits.body_idle_s / 4, limits.linger_s / 2)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in (*self._active, *self._lingering):
            connection.sweep(now)
        self._sweeper = loop.call_later(self._tick(), self._sweep)


def _bind_unix(path: Path) -> socket.socket:
    """A bound socket that does not listen yet, so that nobody connects before its mode is set."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()  # left by a process that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        with socket_name(path) as name:
            listener.bind(name)
        path.chmod(0o600)
    except BaseException:
        listener.close()
        raise
    return listener
