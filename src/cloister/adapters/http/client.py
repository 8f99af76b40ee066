"""The asynchronous client: kept connections, streams both ways, deadlines, and the one retry that is always safe."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from cloister.adapters.http.answer import (
    Answer,
    NoAnswerError,
    buffers_of,
    connect_failed,
    deadline_exceeded,
    no_answer,
    request_head,
)
from cloister.adapters.http.buffers import BufferPool
from cloister.adapters.http.content import Content
from cloister.adapters.http.dial import dial
from cloister.adapters.http.head import IDEMPOTENT, Headers, ResponseHead
from cloister.adapters.http.limits import SCRATCH, ClientLimits
from cloister.adapters.http.link import Link
from cloister.adapters.http.origin import Origin, Proxy, parse_origin
from cloister.base.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    import ssl

    from cloister.adapters.http.body import BodyStream


class AsyncHttpClient:
    """Calls origins over kept connections. Belongs to one event loop; close it with :meth:`close`.

    :param tls: for ``https``; the system's roots when None.
    :param proxy: for ``https``, see ``origin.proxy_from``; none when None.
    """

    def __init__(
        self,
        *,
        limits: ClientLimits | None = None,
        pool: BufferPool | None = None,
        tls: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        self.limits = limits or ClientLimits()
        self._pool = pool or BufferPool()
        self._tls = tls
        self._proxy = proxy
        self._scratch = bytearray(SCRATCH)
        self._links: dict[Origin, set[Link]] = {}
        self._opening: dict[Origin, int] = {}
        self._idle: dict[Origin, list[Link]] = {}
        self._waiting: dict[Origin, deque[asyncio.Future[None]]] = {}
        self._reaper: asyncio.TimerHandle | None = None
        self._closed = False
        self._empty = asyncio.Event()

    async def request(
        self,
        method: str,
        origin: str,
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        content: Content = b"",
        length: int | None = None,
        deadline_s: float | None = None,
        max_answer: int | None = None,
        idempotent: bool | None = None,
    ) -> Answer:
        """Call and take the whole answer, of any status; see :meth:`open` for the rest.

        :param max_answer: bytes of body at most.
        :raises Unavailable: as :meth:`open`; ``answer-too-large``, ``answer-truncated``.
        """
        limit = self.limits.max_answer if max_answer is None else max_answer
        seconds = self.limits.deadline_s if deadline_s is None else deadline_s
        try:
            async with asyncio.timeout(seconds):
                async with self.open(
                    method, origin, target, headers=headers, content=content, length=length, idempotent=idempotent,
                    deadline_s=seconds,
                ) as answer:  # fmt: skip
                    return Answer(answer.status, answer.headers, bytes(await answer.read(limit)))
        except TimeoutError as error:
            raise deadline_exceeded(parse_origin(origin)) from error

    def open(
        self,
        method: str,
        origin: str,
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        content: Content = b"",
        length: int | None = None,
        deadline_s: float | None = None,
        idempotent: bool | None = None,
    ) -> Call:
        """``async with client.open(...) as answer``: an answer whose body is read piece by piece, or whole.

        A request that got no byte of an answer on a *reused* connection is sent once more, on a new one, if nothing of
        it had been sent, or if it is idempotent and its body can be sent again.

        :param length: of a body given as an iterator, where it is known; it is sent in chunks otherwise.
        :param deadline_s: until the answer's head.
        :param idempotent: whether sending it twice does no harm; by its method when None.
        :raises Unavailable: ``connect-failed``, ``tls-failed``, ``proxy-refused`` (nothing was sent); ``no-answer``,
            ``deadline-exceeded`` (it may have been carried out); ``bad-gateway-answer``; ``client-overloaded``.
        :raises InvalidInput: ``origin-malformed``, ``header-malformed``, ``method-unknown``.
        """
        place = parse_origin(origin)
        streamed = isinstance(content, AsyncIterator)
        if not isinstance(content, AsyncIterator):
            content = buffers_of(content)
            length = sum(map(len, content))
        head = request_head(method, place, target, headers, length)
        safe = (method in IDEMPOTENT if idempotent is None else idempotent) and not streamed
        seconds = self.limits.deadline_s if deadline_s is None else deadline_s
        return Call(self, place, method, head, content, chunked=length is None, repeatable=safe, deadline_s=seconds)

    async def close(self) -> None:
        """Close every connection; calls under way fail."""
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        for queue in self._waiting.values():
            for place in queue:
                if not place.done():
                    place.set_result(None)  # to learn that this client is closed
        for links in tuple(self._links.values()):
            for link in tuple(links):
                link.abort()
        if self._links:
            await self._empty.wait()

    def forget(self, origin: str) -> None:
        """The server at ``origin`` is gone for good: cut its connections, so that calls under way fail at once."""
        for link in tuple(self._links.get(parse_origin(origin), ())):
            link.abort()

    @property
    def connections(self) -> int:
        """Open connections."""
        return sum(map(len, self._links.values()))

    # --- for calls ---

    async def acquire(self, origin: Origin, *, fresh: bool) -> Link:
        """A connection for one exchange: the most recently used idle one, or a new one, or a place in the queue."""
        limits = self.limits
        while True:
            if self._closed:
                raise Unavailable("client-closed", "this client is closed")
            idle = self._idle.get(origin, [])
            now = asyncio.get_running_loop().time()
            while idle and not fresh:
                link = idle.pop()
                if link.usable and now - link.idle_since < limits.keep_s:
                    return link
                link.abort()
            busy = len(self._links.get(origin, ())) + self._opening.get(origin, 0)
            if busy < limits.max_per_origin:
                return await self._connect(origin)
            if fresh and idle:
                idle.pop(0).abort()  # make room for a new one; its end admits the first who waits
            queue = self._waiting.setdefault(origin, deque())
            if len(queue) >= limits.max_waiting:
                raise Unavailable("client-overloaded", f"too many calls wait for {origin}", retry_after=1.0)
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            queue.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._admit_next(origin)  # our turn came while we gave up: pass it on
                raise
            finally:
                with contextlib.suppress(ValueError):
                    queue.remove(place)

    def give_back(self, link: Link, *, fit: bool) -> None:
        """An exchange is over."""
        if fit and not self._closed:
            loop = asyncio.get_running_loop()
            link.idle_since = loop.time()
            self._idle.setdefault(link.origin, []).append(link)
            self._admit_next(link.origin)
            if self._reaper is None:
                self._reaper = loop.call_later(self.limits.keep_s, self._reap)
        else:
            link.abort()

    # --- inside ---

    async def _connect(self, origin: Origin) -> Link:
        self._opening[origin] = self._opening.get(origin, 0) + 1

        def make() -> Link:
            return Link(origin, self._pool, self._scratch, self.limits.head, self._lost)

        link: Link | None = None
        try:
            async with asyncio.timeout(self.limits.connect_s):
                link = await dial(make, origin, tls=self._tls_context, proxy=self._proxy)
        except (OSError, TimeoutError) as error:
            raise connect_failed(origin, error) from error
        finally:
            self._opening[origin] -= 1
            if link is None:
                self._admit_next(origin)
                self._forget(origin)
        if not link.gone:
            self._links.setdefault(origin, set()).add(link)
            if self._closed:
                link.abort()
        return link

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            import ssl

            self._tls = ssl.create_default_context()
        return self._tls

    def _lost(self, link: Link) -> None:
        self._links.get(link.origin, set()).discard(link)
        with contextlib.suppress(ValueError):
            self._idle.get(link.origin, []).remove(link)
        self._admit_next(link.origin)
        self._forget(link.origin)

    def _forget(self, origin: Origin) -> None:
        """Keep nothing about an origin without connections: a gateway meets many that never come back."""
        if self._links.get(origin) or self._opening.get(origin) or self._waiting.get(origin):
            return
        for table in (self._links, self._opening, self._waiting, self._idle):
            table.pop(origin, None)
        if self._closed and not self._links:
            self._empty.set()

    def _admit_next(self, origin: Origin) -> None:
        queue = self._waiting.get(origin)
        while queue:
            place = queue.popleft()
            if not place.done():
                place.set_result(None)
                return

    def _reap(self) -> None:
        """Close what has been idle too long; the one that has been longest is first in its list."""
        loop = asyncio.get_running_loop()
        now, oldest = loop.time(), None
        for idle in self._idle.values():
            while idle and now - idle[0].idle_since >= self.limits.keep_s:
                idle.pop(0).abort()
            if idle:
                oldest = idle[0].idle_since if oldest is None else min(oldest, idle[0].idle_since)
        self._reaper = None if oldest is None else loop.call_at(oldest + self.limits.keep_s, self._reap)


class Call:
    """One call; an asynchronous context manager that yields a :class:`StreamedAnswer`."""

    __slots__ = (
        "_chunked",
        "_client",
        "_content",
        "_deadline_s",
        "_head",
        "_link",
        "_method",
        "_origin",
        "_repeatable",
    )

    def __init__(
        self,
        client: AsyncHttpClient,
        origin: Origin,
        method: str,
        head: bytes,
        content: Content,
        *,
        chunked: bool,
        repeatable: bool,
        deadline_s: float,
    ) -> None:
        self._client = client
        self._origin = origin
        self._method = method
        self._head = head
        self._content = content
        self._chunked = chunked
        self._repeatable = repeatable
        self._deadline_s = deadline_s
        self._link: Link | None = None

    async def __aenter__(self) -> StreamedAnswer:
        try:
            async with asyncio.timeout(self._deadline_s):
                head = await self._exchange()
        except TimeoutError as error:
            raise deadline_exceeded(self._origin) from error
        assert self._link is not None  # noqa: S101  # set by _exchange
        return StreamedAnswer(self._link, head, self._client.limits.stall_s)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._client.give_back(link, fit=await link.finish())

    async def _exchange(self) -> ResponseHead:
        fresh = False
        while True:
            link = await self._client.acquire(self._origin, fresh=fresh)
            reused = link.used
            try:
                head = await link.exchange(self._method, self._head, self._content, chunked=self._chunked)
            except NoAnswerError as error:
                self._client.give_back(link, fit=await link.finish())
                if fresh or not (reused and (self._repeatable or not error.sent)):
                    raise no_answer(self._origin) from error
                fresh = True
            except BaseException:
                link.abort()
                self._client.give_back(link, fit=await link.finish())
                raise
            else:
                self._link = link
                return head


class StreamedAnswer:
    """An answer whose body is still arriving. Valid inside its call's ``async with``."""

    __slots__ = ("_link", "_stall_s", "headers", "length", "status")

    def __init__(self, link: Link, head: ResponseHead, stall_s: float) -> None:
        self.status = head.status
        self.headers: Headers = head.headers
        self.length = head.length
        self._link = link
        self._stall_s = stall_s

    async def read(self, limit: int) -> memoryview:
        """The whole body, once, in kept memory that is valid until the call ends. Bounded in time by its caller.

        :raises Unavailable: ``answer-too-large``, ``answer-truncated``, ``bad-gateway-answer``.
        """
        try:
            return await self._link.body.read(limit)
        except InvalidInput as error:
            raise self._translate(error) from error

    async def stream(self) -> AsyncIterator[memoryview]:
        """The body in pieces, once; each is valid until the next.

        :raises Unavailable: ``answer-truncated``, ``bad-gateway-answer``, ``deadline-exceeded`` when nothing comes.
        """
        stream: BodyStream = self._link.body.stream(1 << 62)
        while True:
            try:
                async with asyncio.timeout(self._stall_s):
                    piece = await anext(stream, None)
            except TimeoutError as error:
                raise deadline_exceeded(self._link.origin) from error
            except InvalidInput as error:
                raise self._translate(error) from error
            if piece is None:
                return
            yield piece

    def _translate(self, error: InvalidInput) -> Exception:
        if error.code == "body-too-large":
            return Unavailable("answer-too-large", f"{self._link.origin} answers with more than was agreed")
        return self._link.translate(error)
