"""A transport in memory, so that a protocol can be driven byte by byte without sockets."""

from __future__ import annotations

import asyncio
from typing import Any


class MemoryTransport(asyncio.Transport):
    """Delivers what :meth:`feed` is given, in pieces of exactly that size, and keeps what the protocol writes.

    Reading pauses and resumes as on a socket; closing tells the protocol on the loop's next turn.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.BufferedProtocol) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._waiting: list[bytes] = []
        self._paused = False
        self._closing = False
        self.output = bytearray()
        self.lost = asyncio.Event()
        protocol.connection_made(self)

    def feed(self, *pieces: bytes) -> None:
        """Let these arrive, one read each."""
        self._waiting += [piece for piece in pieces if piece]
        self._pump()

    def hang_up(self) -> None:
        """The peer is gone."""
        self.close()

    def _pump(self) -> None:
        while self._waiting and not self._paused and not self._closing:
            piece = self._waiting.pop(0)
            area = memoryview(self._protocol.get_buffer(-1))
            count = min(len(area), len(piece))
            area[:count] = piece[:count]
            if count < len(piece):
                self._waiting.insert(0, piece[count:])
            self._protocol.buffer_updated(count)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._loop.call_soon(self._pump)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.output += data

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.output += data

    def write_eof(self) -> None:
        return

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:  # noqa: ARG002
        return

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.close()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._lose)

    def _lose(self) -> None:
        self._protocol.connection_lost(None)
        self.lost.set()
