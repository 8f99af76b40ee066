"""One connection of the asynchronous client: a request out, an answer in, both at once where bodies are long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import cast

from cloister.adapters.http.alive import notice_death
from cloister.adapters.http.answer import NoAnswerError, bad_answer, split_head, truncated
from cloister.adapters.http.body import Body
from cloister.adapters.http.buffers import BufferPool
from cloister.adapters.http.content import Buffer, Content
from cloister.adapters.http.head import ResponseHead
from cloister.adapters.http.limits import SEND_BUFFER, HeadLimits
from cloister.adapters.http.origin import Origin
from cloister.adapters.http.outlet import Outlet
from cloister.adapters.http.response import chunk
from cloister.base.errors import CloisterError, InvalidInput


class Link(asyncio.BufferedProtocol):
    """A connection to ``origin``; one exchange at a time.

    :param scratch: shared by the links of one client: what is read to it is dealt with before the loop reads again.
    :param on_lost: called once, when the connection is gone.
    """

    def __init__(
        self,
        origin: Origin,
        pool: BufferPool,
        scratch: bytearray,
        limits: HeadLimits,
        on_lost: Callable[[Link], None],
    ) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.used = False
        self._pool = pool
        self._scratch = scratch
        self._scratch_view = memoryview(scratch)
        self._limits = limits
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._out: Outlet
        self._method = ""
        self._head: asyncio.Future[ResponseHead] | None = None
        self._answer: ResponseHead | None = None
        self._body: Body | None = None
        self._sender: asyncio.Task[None] | None = None
        self._pending = b""
        self._reading = True
        self._direct = False
        self._heard = False
        self._sent = False
        self._gone = False

    # --- callbacks of the transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._out = Outlet(self._transport)
        sock = self._transport.get_extra_info("socket")
        if self.origin.scheme == "unix":  # TCP sizes its own
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        elif sock is not None:  # there is none below a transport in memory
            notice_death(sock, streams=True)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the transport's guess; we know better
        if self._body is not None and not self._pending:
            area = self._body.direct()
            if area is not None:
                self._direct = True
                return area
        self._direct = False
        return self._scratch_view

    def buffer_updated(self, nbytes: int) -> None:
        body = self._body
        if self._direct and body is not None:
            body.took(nbytes)
        elif body is not None:
            used = body.feed(self._scratch_view[:nbytes]) if body.wanted and not self._pending else 0
            self._pending += self._scratch[used:nbytes]
        elif self._head is not None:
            self._heard = True
            self._pending += self._scratch[:nbytes]
            self._look_for_head()
        else:
            self._transport.abort()  # nobody asked anything
            return
        if body is not None and (self._pending or not body.wants_more()) and not body.complete:
            self._pause()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._gone = True
        self._out.lost()
        if self._head is not None and not self._head.done():
            self._head.set_exception(truncated(self.origin) if self._heard else NoAnswerError(sent=self._sent))
        if self._body is not None:
            self._body.end(truncated(self.origin))
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._out.pause()

    def resume_writing(self) -> None:
        self._out.resume()

    # --- an exchange ---

    @property
    def gone(self) -> bool:
        """Whether ``on_lost`` was called."""
        return self._gone

    @property
    def usable(self) -> bool:
        """Whether a request may be sent."""
        return not self._gone and not self._transport.is_closing()

    async def exchange(self, method: str, head: bytes, content: Content, *, chunked: bool) -> ResponseHead:
        """Send a request; returns at the answer's head. A long body goes on being sent meanwhile.

        :raises NoAnswerError: the connection died first.
        :raises Unavailable: ``bad-gateway-answer``, ``answer-truncated``.
        """
        self._method = method
        self._heard = self._sent = False
        self._answer = self._body = None
        if not self.usable:
            raise NoAnswerError(sent=False)
        waiter = self._head = self._loop.create_future()
        self._sent = True
        if isinstance(content, AsyncIterator):
            self._sender = self._loop.create_task(self._send_stream(head, content, chunked=chunked))
        else:
            buffers = [content] if isinstance(content, bytes | bytearray | memoryview) else content
            if not self._out.write([head, *buffers]):
                self._sender = self._loop.create_task(self._flush())
        try:
            answer: ResponseHead = await waiter
        finally:
            self._head = None
        self._answer = answer
        self.used = True
        body = self._body = Body(answer.framing(), answer.length, self._pool, self._want_body)
        if not body.complete:
            self._pause()
        return answer

    @property
    def body(self) -> Body:
        """Of the answer whose head :meth:`exchange` returned."""
        assert self._body is not None  # noqa: S101  # set by exchange
        return self._body

    def translate(self, error: InvalidInput) -> CloisterError:
        """An error in the answer's framing as the caller sees it."""
        return bad_answer(self.origin, error) if error.code == "chunk-malformed" else error

    async def finish(self) -> bool:
        """End the exchange; returns whether the connection can take another, and closes it otherwise."""
        body, self._body = self._body, None
        answer, self._answer = self._answer, None
        sender, self._sender = self._sender, None
        if sender is not None and not sender.done():
            await asyncio.sleep(0)  # it may just have been told that everything is sent
        fit = (
            body is not None
            and body.complete
            and answer is not None
            and answer.keep_alive
            and (sender is None or sender.done())
            and not self._pending
            and self.usable
        )
        self._pending = b""
        if body is not None:
            body.release()
        if not fit and not self._gone:
            self._transport.abort()
        if sender is not None:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # its end was the exchange's, reported there
                await sender
        if fit:
            self._read_on()
        return fit

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    # --- inside ---

    def _look_for_head(self) -> None:
        if self._head is None or self._head.done():
            return
        try:
            head, self._pending = split_head(self._pending, self._method, self._limits, self.origin)
        except CloisterError as error:
            self._head.set_exception(error)
            self._transport.abort()
            return
        if head is not None:
            self._pause()
            self._head.set_result(head)

    def _want_body(self) -> None:
        body = self._body
        if body is None:
            return
        if self._pending and not body.complete:
            with memoryview(self._pending) as view:
                used = body.feed(view)
            self._pending = self._pending[used:]
        if self._gone:
            body.end(truncated(self.origin))
        elif body.wants_more():
            self._read_on()

    async def _flush(self) -> None:
        with contextlib.suppress(ConnectionError):  # whoever waits for the answer learns of it
            await self._out.flushed()

    async def _send_stream(self, head: bytes, content: AsyncIterator[Buffer], *, chunked: bool) -> None:
        first: list[Buffer] = [head]
        try:
            async for piece in content:
                if len(piece):
                    await self._out.send([*first, *chunk(piece)] if chunked else [*first, piece])
                    first = []
            end: list[Buffer] = [*first, b"0\r\n\r\n"] if chunked else first
            if end:
                await self._out.send(end)
        except ConnectionError:
            return
        except BaseException as error:
            if self._head is not None and not self._head.done() and isinstance(error, Exception):
                self._head.set_exception(error)  # the source failed: the call does
            self._transport.abort()
            raise

    def _read_on(self) -> None:
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def _pause(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()
