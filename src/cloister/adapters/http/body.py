"""A body arriving on a connection: whole into one kept buffer, or as a stream through two halves of one.

Bytes of a large body go from the kernel straight to where they stay (``direct``/``took``); only what arrived
together with a head, and small chunks, pass through the connection's scratch buffer (``feed``). No I/O here: the
connection is told to ``resume`` and asks ``wants_more``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from cloister.adapters.http.buffers import BufferPool, Lease
from cloister.adapters.http.framing import Framing
from cloister.adapters.http.limits import SCRATCH, WINDOW
from cloister.base.errors import InvalidInput

_SMALL: Final = SCRATCH  # bodies up to here are not worth a page-aligned buffer
_FIRST_GUESS: Final = 4 * SCRATCH  # of a chunked body's size
_DIRECT: Final = 2 * SCRATCH  # smaller rests of a chunk are read together with what follows them


def _too_large(limit: int) -> InvalidInput:
    return InvalidInput("body-too-large", f"the body exceeds {limit} bytes", hint="Send it as a stream, or less of it.")


class Body:
    """One incoming body. Idle until :meth:`read` or :meth:`stream` is called, once.

    :param length: as declared; None when chunked or until the end.
    :param resume: called when bytes are wanted; the connection feeds what it has and reads on.
    """

    __slots__ = (
        "_base", "_chunked", "_error", "_filled", "_half", "_lease", "_limit", "_resume", "_retired",
        "_streaming", "_target", "_total", "_waiter", "framing", "length", "pool", "wanted",
    )  # fmt: skip

    def __init__(self, framing: Framing, length: int | None, pool: BufferPool, resume: Callable[[], None]) -> None:
        self.framing = framing
        self.length = length
        self.pool = pool
        self.wanted = False
        self._resume = resume
        self._chunked = length is None
        self._lease: Lease | None = None
        self._retired: list[Lease] = []
        self._base: memoryview | None = None
        self._target = memoryview(b"")
        self._filled = 0
        self._half = 0
        self._total = 0
        self._limit = 0
        self._streaming = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    # --- the application's side ---

    async def read(self, limit: int) -> memoryview:
        """The whole body, in memory that stays valid until :meth:`release`.

        :raises InvalidInput: ``body-too-large`` before anything is allocated, or as soon as a chunked body exceeds
            ``limit``; ``chunk-malformed``; ``request-timeout``.
        """
        self._begin(limit)
        if self.length is not None:
            self._allot(self.length)
        else:
            self._allot(min(limit + 1, _FIRST_GUESS))
        self._resume()
        await self._until_done()
        whole = self._filled == len(self._target)
        return self._target if whole else self._target[: self._filled]

    def stream(self, limit: int) -> BodyStream:
        """The body in pieces; each is valid until the next is asked for. Reading pauses when two windows are full."""
        self._begin(limit)
        self._streaming = True
        self._lease = self.pool.lease(2 * WINDOW)
        self._base = self._lease.view
        self._target = self._base[:WINDOW]
        return BodyStream(self)

    async def next_piece(self) -> memoryview | None:
        """What has arrived since the last call, at least one byte; None at the end."""
        base = self._base
        if base is None:
            return None
        while not self._filled:
            if self._error is not None:
                raise self._error
            if self.framing.done:
                return None
            self._resume()
            if self._starved():
                await self._wait()
        piece = self._target[: self._filled]
        self._half ^= 1
        self._target = base[self._half * WINDOW : (self._half + 1) * WINDOW]
        self._filled = 0
        if not self.framing.done:
            self._resume()
        return piece

    def release(self) -> None:
        """Give the memory back; views of it are revoked or, where borrowed, keep it to themselves."""
        lease, self._lease = self._lease, None
        self._target = memoryview(b"")
        self._base = None
        self._filled = 0
        if lease is not None:
            lease.release()
        while self._retired:
            self._retired.pop().release()

    # --- the connection's side ---

    @property
    def complete(self) -> bool:
        """Whether every byte of it has arrived."""
        return self.framing.done

    def wants_more(self) -> bool:
        """Whether reading should go on: somebody asked, and there is room."""
        return (
            self.wanted
            and not self.framing.done
            and self._error is None
            and (not self._streaming or len(self._target) - self._filled >= SCRATCH)
        )

    def direct(self) -> memoryview | None:
        """Where the next bytes may be read to, if they are payload for certain and many enough to be worth it."""
        remaining = self.framing.remaining
        room = len(self._target) - self._filled
        if not self.wanted or room <= 0 or remaining < (_DIRECT if self._chunked else 1):
            return None
        return self._target[self._filled : self._filled + min(room, remaining)]

    def took(self, count: int) -> None:
        """``count`` bytes were read to ``direct()``."""
        self.framing.took(count)
        self._advance(count)

    def feed(self, data: memoryview) -> int:
        """Take payload out of ``data``; returns how many of its bytes were used. Malformed bytes fail the reader."""
        room = len(self._target) - self._filled
        if self._chunked and not self._streaming and room < len(data):
            self._grow(len(data))
            room = len(self._target) - self._filled
        try:
            pieces, used = self.framing.feed(data, room)
        except InvalidInput as error:
            self.fail(error)
            return 0
        count = 0
        for piece in pieces:
            start = self._filled + count
            self._target[start : start + len(piece)] = piece
            count += len(piece)
        self._advance(count)
        return used

    def fail(self, error: BaseException) -> None:
        """Nothing more will come; whoever waits gets ``error``."""
        if self._error is None and not self.framing.done:
            self._error = error
            self._wake()

    def end(self, error: BaseException) -> None:
        """The stream ended: fine for a body that ends with it, else ``error``."""
        if self.framing.end():
            self._wake()
        else:
            self.fail(error)

    # --- inside ---

    def _begin(self, limit: int) -> None:
        if self.wanted:
            msg = "a body is read once"
            raise AssertionError(msg)
        self.wanted = True
        self._limit = limit
        if self.length is not None and self.length > limit:
            self._error = _too_large(limit)
            raise self._error

    def _allot(self, size: int) -> None:
        if size <= _SMALL:
            self._target = memoryview(bytearray(size))
        else:
            self._lease = self.pool.lease(size)
            self._target = self._lease.view

    def _grow(self, more: int) -> None:
        old_target = self._target
        if self._lease is not None:
            self._retired.append(self._lease)  # the transport may be reading to it right now
        size = min(max(2 * len(old_target), self._filled + more), self._limit + 1 + more)
        self._lease = self.pool.lease(size)
        self._target = self._lease.view
        self._target[: self._filled] = old_target[: self._filled]

    def _advance(self, count: int) -> None:
        self._filled += count
        self._total += count
        if self._total > self._limit:
            self._error = _too_large(self._limit)
            self._wake()
            return
        if self._chunked and not self._streaming and not self.framing.done and self._filled == len(self._target):
            self._grow(_FIRST_GUESS)
        if self.framing.done or (self._streaming and count):
            self._wake()

    def _starved(self) -> bool:
        return not self._filled and not self.framing.done and self._error is None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def _until_done(self) -> None:
        while self._error is None and not self.framing.done:
            await self._wait()
        if self._error is not None:
            raise self._error


class BodyStream:
    """Asynchronous iterator over a body's pieces, each a view that is valid until the next step."""

    __slots__ = ("_body",)

    def __init__(self, body: Body) -> None:
        self._body = body

    def __aiter__(self) -> BodyStream:
        return self

    async def __anext__(self) -> memoryview:
        piece = await self._body.next_piece()
        if piece is None:
            raise StopAsyncIteration
        return piece
