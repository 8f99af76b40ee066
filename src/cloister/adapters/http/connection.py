"""One client's connection: heads in, bodies in, the application, answers out, one request after the other.

One task per connection runs :meth:`Connection._run`; the protocol callbacks only move bytes and wake it. Requests
sent ahead (pipelining) wait in a bounded buffer and are served in order. When the client goes away, the task is
cancelled wherever it is, and so is the application in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

from cloister.adapters.http import problem
from cloister.adapters.http.body import Body
from cloister.adapters.http.content import Buffer
from cloister.adapters.http.crowd import Waiting, group_of
from cloister.adapters.http.head import RequestHead, incomplete_head_is_bad, parse_request_head
from cloister.adapters.http.limits import SCRATCH
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.outlet import Outlet
from cloister.adapters.http.response import answer_head, chunk
from cloister.base.errors import CloisterError, InvalidInput, Unavailable

if TYPE_CHECKING:
    from cloister.adapters.http.server import HttpServer

_MAX_PENDING = 8 * SCRATCH  # more, after reading was paused, only from a transport that ignores it


class _Phase(enum.Enum):
    HEAD = enum.auto()  # waiting for a head, or in the middle of one
    REQUEST = enum.auto()  # a request is being served
    LINGER = enum.auto()  # answered; the rest of its body is dropped
    CLOSED = enum.auto()


class Connection(asyncio.BufferedProtocol):
    """Protocol and task of one connection."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._phase = _Phase.HEAD
        self._pending = b""
        self._reading = True
        self._direct = False
        self._body: Body | None = None
        self._expects_continue = False
        self._last = False
        self._head_waiter: asyncio.Future[None] | None = None
        self._since = self._progress = self._loop.time()
        self._received = 0
        self._paused_at = self._paused_for = 0.0
        self.address = ""
        self._transport: asyncio.Transport
        self._out: Outlet
        self._task: asyncio.Task[None] | None = None

    # --- callbacks of the transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._out = Outlet(self._transport)
        self.address = group_of(self._transport.get_extra_info("peername"))
        admitted = self._server.enter(self)
        self._task = self._loop.create_task(self._run() if admitted else self._turn_away())
        self._task.add_done_callback(self._ended)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the transport's guess; we know better
        if self._body is not None and not self._pending:
            area = self._body.direct()
            if area is not None:
                self._direct = True
                return area
        self._direct = False
        return self._server.scratch_view

    def buffer_updated(self, nbytes: int) -> None:
        self._progress = self._loop.time()
        self._received += nbytes
        body = self._body
        if self._direct:
            assert body is not None  # noqa: S101  # set together with _direct
            body.took(nbytes)
            if not body.wants_more() and not body.complete:
                self._pause()
            return
        if self._phase is _Phase.HEAD:
            self._extend_head(nbytes)
        elif self._phase is _Phase.REQUEST:
            used = 0
            if body is not None and body.wanted and not body.complete and not self._pending:
                used = body.feed(self._server.scratch_view[:nbytes])
            if used < nbytes:
                self._pending += self._server.scratch[used:nbytes]
                if len(self._pending) > _MAX_PENDING:
                    self._transport.abort()
            if self._pending or (body is not None and not body.complete and not body.wants_more()):
                self._pause()

    def eof_received(self) -> bool:
        return False  # a client that will send nothing more is taken as gone

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._phase = _Phase.CLOSED
        self._out.lost()
        if self._task is not None and not self._task.done():
            self._task.cancel()  # _ended follows
        else:
            self._server.leave(self)

    def pause_writing(self) -> None:
        if self._task is not None:  # asyncio's TLS says so in its handshake too: nothing of ours is written yet
            self._out.pause()

    def resume_writing(self) -> None:
        if self._task is not None:
            self._out.resume()

    # --- for the server ---

    @property
    def gone(self) -> bool:
        """Whether the transport is closed for good."""
        return self._phase is _Phase.CLOSED

    @property
    def waiting(self) -> Waiting:
        """What it waits for."""
        if self._phase is _Phase.HEAD:
            return Waiting.HEAD if self._pending else Waiting.IDLE
        body = self._body
        if self._phase is _Phase.LINGER or self._out.waiting or (body is not None and body.wants_more()):
            return Waiting.CLIENT
        return Waiting.SERVICE

    @property
    def since(self) -> float:
        """When it began to wait, on the loop's clock."""
        return self._since

    def sweep(self, now: float) -> None:
        """Cut what takes too long; called about once a second."""
        limits = self._limits
        if self._phase is _Phase.HEAD:
            if self._pending and now - self._since > limits.head_s:
                self._fail_head(InvalidInput("request-timeout", f"no complete head within {limits.head_s:g} s"))
            elif not self._pending and now - self._since > limits.idle_s:
                self._transport.close()
        elif self._phase is _Phase.LINGER:
            if now - self._since > limits.linger_s:
                self._transport.abort()
        elif self._phase is _Phase.REQUEST:
            if self._out.stalled(now, limits.write_stall_s, limits.min_body_rate):
                self._transport.abort()
            body = self._body
            if body is not None and body.wants_more() and self._reading:
                spent = now - self._since - self._paused_for
                slow = spent > limits.body_idle_s and self._received < limits.min_body_rate * spent
                if slow or now - self._progress > limits.body_idle_s:
                    body.fail(InvalidInput("request-timeout", "the body arrives too slowly"))

    def finish_up(self) -> None:
        """Close when idle, else after the request under way."""
        self._last = True
        if self._phase is _Phase.HEAD and not self._pending:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._server.leave(self)

    # --- heads ---

    def _extend_head(self, count: int) -> None:
        if not self._pending:
            self._since = self._progress
        self._pending += self._server.scratch[:count]
        if self._head_end() >= 0 or incomplete_head_is_bad(self._pending, self._limits.head):
            self._pause()
            self._wake_head()

    def _head_end(self) -> int:
        return self._pending.find(b"\r\n\r\n")

    def _fail_head(self, error: InvalidInput) -> None:
        waiter = self._head_waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _wake_head(self) -> None:
        if self._head_waiter is not None and not self._head_waiter.done():
            self._head_waiter.set_result(None)

    async def _next_head(self) -> RequestHead:
        self._phase = _Phase.HEAD
        self._since = self._loop.time()
        if self._pending.startswith(b"\r\n"):  # RFC 9112, 2.2: an empty line before a request is ignored
            self._pending = self._pending[2:]
        while (end := self._head_end()) < 0 and not incomplete_head_is_bad(self._pending, self._limits.head):
            self._read_on()
            self._head_waiter = self._loop.create_future()
            try:
                await self._head_waiter
            finally:
                self._head_waiter = None
            if self._pending.startswith(b"\r\n"):
                self._pending = self._pending[2:]
        cut = end + 4 if end >= 0 else len(self._pending)
        if end < 0 and len(self._pending) > self._limits.head.max_bytes:
            raise InvalidInput("head-too-large", f"a head exceeds {self._limits.head.max_bytes} bytes")
        head = parse_request_head(self._pending[:cut], self._limits.head)
        self._pending = self._pending[cut:]
        return head

    # --- serving ---

    async def _run(self) -> None:
        try:
            while not self._last:
                try:
                    head = await self._next_head()
                except CloisterError as error:
                    self._last = True
                    self._phase = _Phase.REQUEST
                    await self._write(problem.to_response(error), method="GET", minor=1)
                    await self._linger()
                    return
                await self._exchange(head)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client is gone, or the server has run out of patience
        except Exception as error:  # noqa: BLE001  # for example a header that cannot be sent
            self._server.report(error)
        finally:
            if self._phase is not _Phase.LINGER:
                self._transport.close()

    async def _turn_away(self) -> None:
        error = Unavailable("too-many-connections", "no further connection is taken", retry_after=1.0)
        self._last = True
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await self._write(problem.to_response(error), method="GET", minor=1)
        self._transport.close()

    async def _exchange(self, head: RequestHead) -> None:
        self._phase = _Phase.REQUEST
        self._since = self._progress = self._loop.time()
        self._received = len(self._pending)
        self._paused_for = 0.0
        self._expects_continue = head.expects_continue
        body = self._body = Body(head.framing(), head.length, self._server.pool, self._want_body)
        if body.complete and not self._pending:
            self._read_on()  # to notice a client that goes away
        elif not body.complete:
            self._pause()
        request = Request(head, body, self._limits.max_body)
        if not head.keep_alive:
            self._last = True
        try:
            await self._answer(request, head)
        finally:
            request.finish()
            self._body = None
        if not body.complete:
            self._last = True
            await self._linger()

    async def _answer(self, request: Request, head: RequestHead) -> None:
        try:
            response = await self._server.app(request)
        except CloisterError as error:
            response = problem.to_response(error)
        except Exception as error:  # whatever it is, the client gets an answer and the log its place
            if self._transport.is_closing():
                raise ConnectionResetError from error
            self._server.report(error)
            response = problem.internal_error()
        await self._write(response, method=head.method, minor=head.minor)

    async def _write(self, response: Response, *, method: str, minor: int) -> None:
        content = response.content
        if self._server.draining:
            self._last = True
        if isinstance(content, AsyncIterator):  # may still be reading the body it answers
            try:
                await self._write_stream(response, content, method=method, minor=minor)
            finally:
                close = getattr(content, "aclose", None)
                if close is not None:
                    await close()
            return
        if self._body is not None and not self._body.complete:
            self._last = True
        buffers: list[Buffer] = [content] if isinstance(content, bytes | bytearray | memoryview) else list(content)
        head, bodiless = answer_head(response, sum(map(len, buffers)), method=method, close=self._last)
        await self._out.send([head] if bodiless else [head, *buffers])

    async def _write_stream(
        self, response: Response, content: AsyncIterator[Buffer], *, method: str, minor: int
    ) -> None:
        """The head goes out with the first piece, so that an error before it is still a proper answer."""
        try:
            piece = await anext(content, None)
        except CloisterError as error:
            return await self._write(problem.to_response(error), method=method, minor=minor)
        except Exception as error:  # noqa: BLE001  # as in _answer
            self._server.report(error)
            return await self._write(problem.internal_error(), method=method, minor=minor)
        chunked = response.length is None and minor == 1
        if response.length is None and minor == 0:
            self._last = True  # HTTP/1.0 knows no chunks: the end of the connection ends the body
        head, bodiless = answer_head(response, response.length, method=method, close=self._last, chunked=chunked)
        if bodiless:
            return await self._out.send([head])
        left = response.length
        first: list[Buffer] = [head]
        try:
            while piece is not None:
                if left is not None:
                    left -= len(piece)
                    if left < 0:
                        break
                if len(piece):
                    await self._out.send([*first, *chunk(piece)] if chunked else [*first, piece])
                    first = []
                piece = await anext(content, None)
        except Exception as error:  # the head is out: only a cut connection can tell now
            if not isinstance(error, CloisterError | ConnectionError):
                self._server.report(error)
            self._transport.abort()
            raise ConnectionAbortedError from error
        if left:  # shorter or longer than promised
            self._transport.abort()
            raise ConnectionAbortedError
        end: list[Buffer] = [*first, b"0\r\n\r\n"] if chunked else first
        if end:
            await self._out.send(end)
        return None

    # --- reading ---

    def _want_body(self) -> None:
        """The application waits for its body: hand over what is here, then read on."""
        body = self._body
        if body is None:
            return
        if self._expects_continue and not body.complete:
            self._expects_continue = False
            if not self._pending:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._pending and not body.complete:
            with memoryview(self._pending) as view:
                used = body.feed(view)
            self._pending = self._pending[used:]
        if body.wants_more() or (body.complete and not self._pending):
            self._read_on()

    def _read_on(self) -> None:
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            now = self._loop.time()
            self._paused_for += now - self._paused_at
            self._progress = now
            self._transport.resume_reading()

    def _pause(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._paused_at = self._loop.time()
            self._transport.pause_reading()

    async def _linger(self) -> None:
        """Read and drop what the client still sends, or a reset would destroy the answer on its way."""
        if self._transport.is_closing():
            return
        self._phase = _Phase.LINGER
        self._body = None
        self._pending = b""
        self._since = self._loop.time()
        self._server.linger(self)
        try:
            if self._transport.can_write_eof():  # TLS cannot half-close
                self._transport.write_eof()
        except OSError:  # it is gone already, and the loop has not noticed
            self._transport.abort()
            return
        self._read_on()
