"""Shares over HTTP, while a KeyService is being brought back (spec/protocol.md, 13.24.6)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.adapters.http.workers import Workers
from cloister.adapters.logs import EventLog
from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_RECOVERY_ANSWER
from cloister.keyservice.custody.recovery import Asking
from cloister.wire.recovery import OFFER_PATH, SHARE_PATH

if TYPE_CHECKING:
    import ssl

_THREADS: Final = 2
_QUEUE: Final = 64
_DRAIN_S: Final = 5.0
_MEDIA_TYPE: Final = (("content-type", "application/octet-stream"), ("cache-control", "no-store"))


@final
class RecoveryServer:
    """All methods belong to one event loop.

    :ivar enough: set once there are enough shares.
    """

    def __init__(self, asking: Asking, *, log: EventLog) -> None:
        self._asking = asking
        self.enough = asyncio.Event()
        self._workers = Workers(_THREADS, _QUEUE, name="recovery")
        limits = ServerLimits(max_body=MAX_RECOVERY_ANSWER + 1024, max_connections=64)
        self._server = HttpServer(self._answer, log=log, limits=limits)

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._server.address

    async def start(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        """:raises Unavailable: ``listen-failed``."""
        await self._server.start(host, port, tls=tls)

    async def stop(self) -> None:
        """Take nothing new and finish what is under way."""
        await self._server.drain(_DRAIN_S)
        await self._workers.close()

    async def _answer(self, request: Request) -> Response:
        match request.method, request.path:
            case "GET", path if path == OFFER_PATH:
                return Response(200, _MEDIA_TYPE, await self._workers.run(self._asking.offer))
            case "POST", path if path == SHARE_PATH:
                body = bytes(await request.body(MAX_RECOVERY_ANSWER))
                answer = await self._workers.run(self._asking.accept, body)
                if self._asking.enough:
                    self.enough.set()
                return Response(200, _MEDIA_TYPE, answer)
            case "GET", "/healthz":
                return Response(200, (("content-type", "text/plain"),), b"ok\n")
            case _:
                raise InvalidInput("not-found", "there is nothing here: this KeyService waits for its custodians")


async def gather(
    asking: Asking,
    *,
    host: str,
    port: int,
    events: EventLog,
    ready: Callable[[str], None],
    tls: ssl.SSLContext | None = None,
) -> bool:
    """Wait until there are enough shares; whether there are, or SIGTERM or SIGINT ended it before.

    :raises Unavailable: ``listen-failed``.
    """
    server = RecoveryServer(asking, log=events)
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    waits = [asyncio.ensure_future(event.wait()) for event in (server.enough, stopping)]
    try:
        await server.start(host, port, tls=tls)
        events.event("recovering", address=server.address, limit=asking.record.threshold)
        ready(server.address)
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await wait
        await server.stop()
    return server.enough.is_set()
