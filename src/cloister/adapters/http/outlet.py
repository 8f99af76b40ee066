"""The writing half of a connection: buffers go to the kernel in one call, and the writer waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from cloister.adapters.http.content import Buffer

_JOIN: Final = 64 * 1024  # up to here one copy is cheaper than a vector


class Outlet:
    """Writes on a transport. After :meth:`send` returns, no buffer is referenced any more.

    With a high-water mark of 0, uvloop writes at once, and ``pause_writing`` means that something is left over.
    asyncio's own loop gets one buffer after the other: its ``writelines`` copies everything up to Python 3.11, and from
    3.12 until 3.13.5 forgets to call ``pause_writing`` for what is left over (CPython issue 136234).
    """

    __slots__ = (
        "_began_at",
        "_began_size",
        "_drained",
        "_one_by_one",
        "_paused",
        "_seen_at",
        "_seen_size",
        "_transport",
    )

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._one_by_one = isinstance(transport, asyncio.WriteTransport)  # uvloop's are no subclass of it
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self._began_at = self._seen_at = 0.0
        self._began_size = self._seen_size = -1
        # TLS pauses at its mark, plain transports above it; it keeps an encrypted copy, and no buffer either.
        tls = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(high=1 if tls else 0, low=0)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Write all of ``buffers``.

        :raises ConnectionResetError: the peer is gone.
        """
        if not self.write(buffers):
            await self.flushed()

    def write(self, buffers: Sequence[Buffer]) -> bool:
        """Hand ``buffers`` to the kernel; False when it did not take all of them: then await :meth:`flushed`.

        :raises ConnectionResetError: the peer is gone.
        """
        transport = self._transport
        if transport.is_closing():
            raise ConnectionResetError
        if len(buffers) > 1 and sum(map(len, buffers)) <= _JOIN:
            transport.write(b"".join(buffers))
        elif self._one_by_one:
            for buffer in buffers:
                transport.write(buffer)
        else:
            transport.writelines(buffers)
        return not self._paused

    async def flushed(self) -> None:
        """Wait until the kernel has taken everything.

        :raises ConnectionResetError: the peer is gone.
        """
        while self._paused:
            loop = asyncio.get_running_loop()
            self._began_at = self._seen_at = loop.time()
            self._began_size = self._seen_size = self._transport.get_write_buffer_size()
            self._drained = loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None
        if self._transport.is_closing():
            raise ConnectionResetError

    @property
    def waiting(self) -> bool:
        """Whether the peer keeps the writer waiting."""
        return self._drained is not None

    def stalled(self, now: float, limit: float, rate: int = 0) -> bool:
        """Whether the peer has taken nothing for ``limit`` seconds although something waits for it; or for longer than
        that less than ``rate`` bytes a second.
        """
        if self._drained is None:
            return False
        size = self._transport.get_write_buffer_size()
        if size != self._seen_size:
            self._seen_at, self._seen_size = now, size
        spent = now - self._began_at
        return now - self._seen_at > limit or (spent > limit and self._began_size - size < rate * spent)

    def pause(self) -> None:
        """The transport holds bytes that the kernel did not take."""
        self._paused = True

    def resume(self) -> None:
        """The kernel has taken everything."""
        self._paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def lost(self) -> None:
        """The connection is gone: whoever waits is told."""
        self._paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(ConnectionResetError())
