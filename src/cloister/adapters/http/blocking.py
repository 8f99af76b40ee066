"""The blocking client: for the trusted services' own calls and the synchronous SDK. Sockets, no asyncio; thread-safe.

It shares heads, framing, errors and rules with the asynchronous one; http.client would bring a second, laxer parser
and the email package (47 ms of imports), and cannot keep a deadline against a server that drips.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from cloister.adapters.http.alive import notice_death
from cloister.adapters.http.answer import (
    Answer,
    NoAnswerError,
    bad_answer,
    buffers_of,
    connect_failed,
    deadline_exceeded,
    no_answer,
    request_head,
    split_head,
    truncated,
)
from cloister.adapters.http.content import Buffer
from cloister.adapters.http.framing import Framing
from cloister.adapters.http.head import IDEMPOTENT, Headers, ResponseHead
from cloister.adapters.http.limits import SCRATCH, ClientLimits
from cloister.adapters.http.origin import Origin, Proxy, parse_origin
from cloister.adapters.http.tunnel import TunnelAnswer
from cloister.adapters.http.unix import socket_name
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    import ssl

_TIMEVAL: Final = struct.Struct("@ll")
_MAX_VECTOR: Final = 64  # buffers in one sendmsg
_TUNNEL_READ: Final = 4096
_FIRST_GUESS: Final = 64 * 1024  # of an answer without a length


class _Socket:
    """A connection and what was read from it ahead."""

    def __init__(self, sock: socket.socket, origin: Origin, clock: Clock) -> None:
        self._sock = sock
        self._tls = hasattr(sock, "cipher")
        if not self._tls:
            sock.settimeout(None)  # the kernel keeps the time: one call then sends a whole body
        self._origin = origin
        self._clock = clock
        self._scratch = memoryview(bytearray(SCRATCH))
        self.until = 0.0
        self.idle_since = 0.0
        self.used = False
        self.pending = b""

    def arm(self, option: int) -> None:
        """Allow the next operation (SO_SNDTIMEO or SO_RCVTIMEO) what is left until the deadline.

        :raises Unavailable: ``deadline-exceeded``.
        """
        left = self.until - self._clock.monotonic()
        if left <= 0:
            raise deadline_exceeded(self._origin)
        if self._tls:
            self._sock.settimeout(left)
        else:
            self._sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(int(left), max(1, int(left % 1 * 1e6))))

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send all of ``buffers``, without joining them."""
        views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while views:
            self.arm(socket.SO_SNDTIMEO)
            sent = self._sock.send(views[0]) if self._tls else self._sock.sendmsg(views[:_MAX_VECTOR])
            while views and sent >= len(views[0]):
                sent -= len(views[0])
                del views[0]
            if sent:
                views[0] = views[0][sent:]

    def receive(self, area: memoryview) -> int:
        """Read into ``area``; 0 at the end of the stream."""
        self.arm(socket.SO_RCVTIMEO)
        return self._sock.recv_into(area)

    def receive_more(self) -> bool:
        """Read ahead into ``pending``; False at the end of the stream."""
        count = self.receive(self._scratch)
        self.pending += self._scratch[:count]
        return count > 0

    def stale(self) -> bool:
        """Whether an idle connection was closed by the other side, or has something unasked to say."""
        try:
            if self._tls:
                self._sock.setblocking(False)
                self._sock.recv(1)
            else:
                self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            return type(error).__name__ != "SSLWantReadError"
        return True

    def close(self) -> None:
        """Close now."""
        self._sock.close()


class HttpClient:
    """Calls origins over kept connections, from any thread.

    :param tls: for ``https``; the system's roots when None.
    :param proxy: for ``https``; none when None: the trusted services name their peers themselves.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        limits: ClientLimits | None = None,
        tls: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        self.limits = limits or ClientLimits()
        self._clock = clock
        self._tls = tls
        self._proxy = proxy
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[_Socket]] = {}
        self._closed = False

    def request(
        self,
        method: str,
        origin: str,
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        content: Buffer | Sequence[Buffer] = b"",
        deadline_s: float | None = None,
        max_answer: int | None = None,
        idempotent: bool | None = None,
    ) -> Answer:
        """Call and take the whole answer, of any status; parameters and errors as in ``AsyncHttpClient.request``."""
        limit = self.limits.max_answer if max_answer is None else max_answer
        with self.open(
            method, origin, target, headers=headers, content=content, deadline_s=deadline_s, idempotent=idempotent
        ) as answer:
            return Answer(answer.status, answer.headers, answer.read(limit))

    def open(
        self,
        method: str,
        origin: str,
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        content: Buffer | Sequence[Buffer] = b"",
        deadline_s: float | None = None,
        idempotent: bool | None = None,
    ) -> BlockingAnswer:
        """``with client.open(...) as answer``: an answer whose body is read piece by piece.

        The deadline covers the whole call, reading included. Errors and the retry: ``AsyncHttpClient.open``.
        """
        place = parse_origin(origin)
        buffers = buffers_of(content)
        head = request_head(method, place, target, headers, sum(map(len, buffers)))
        safe = method in IDEMPOTENT if idempotent is None else idempotent
        until = self._clock.monotonic() + (self.limits.deadline_s if deadline_s is None else deadline_s)
        fresh = False
        while True:
            connection = self._acquire(place, until, fresh=fresh)
            reused = connection.used
            try:
                answer = self._exchange(connection, place, method, [head, *buffers])
            except NoAnswerError as error:
                connection.close()
                self._close_idle(place)
                if fresh or not (reused and (safe or not error.sent)):
                    raise no_answer(place) from error
                fresh = True
            except BaseException:
                connection.close()
                self._close_idle(place)
                raise
            else:
                return BlockingAnswer(self, place, connection, answer)

    def close(self) -> None:
        """Close idle connections now, others when their calls end."""
        with self._lock:
            self._closed = True
            idle = [connection for connections in self._idle.values() for connection in connections]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def give_back(self, origin: Origin, connection: _Socket, *, fit: bool) -> None:
        """For answers: an exchange is over."""
        connection.idle_since = self._clock.monotonic()
        with self._lock:
            idle = self._idle.setdefault(origin, [])
            keep = fit and not self._closed and len(idle) < self.limits.max_per_origin
            if keep:
                idle.append(connection)
        if not keep:
            connection.close()

    # --- inside ---

    def _exchange(self, connection: _Socket, origin: Origin, method: str, buffers: list[Buffer]) -> ResponseHead:
        connection.used = True
        connection.pending = b""
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(buffers)  # if it fails, it may have answered early and closed: see what is there
            while True:
                head, connection.pending = split_head(connection.pending, method, self.limits.head, origin)
                if head is not None:
                    return head
                if not connection.receive_more():
                    raise truncated(origin) if connection.pending else NoAnswerError(sent=True)
        except (TimeoutError, BlockingIOError) as error:
            raise deadline_exceeded(origin) from error
        except OSError as error:
            raise (truncated(origin) if connection.pending else NoAnswerError(sent=True)) from error

    def _acquire(self, origin: Origin, until: float, *, fresh: bool) -> _Socket:
        while not fresh:
            with self._lock:
                idle = self._idle.get(origin)
                connection = idle.pop() if idle else None
            if connection is None:
                break
            if self._clock.monotonic() - connection.idle_since < self.limits.keep_s and not connection.stale():
                connection.until = until
                return connection
            connection.close()
        if self._closed:
            raise Unavailable("client-closed", "this client is closed")
        connect_until = min(until, self._clock.monotonic() + self.limits.connect_s)
        if connect_until <= self._clock.monotonic():
            raise deadline_exceeded(origin)
        try:
            connection = _Socket(self._connect(origin, connect_until), origin, self._clock)
        except OSError as error:
            raise connect_failed(origin, error) from error
        connection.until = until
        return connection

    def _close_idle(self, origin: Origin) -> None:
        """What one connection died of, those that lie idle beside it may have died of too."""
        with self._lock:
            idle = self._idle.pop(origin, [])
        for connection in idle:
            connection.close()

    def _left(self, until: float) -> float:
        left = until - self._clock.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _connect(self, origin: Origin, until: float) -> socket.socket:
        if origin.scheme == "unix":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(self._left(until))
                with socket_name(Path(origin.path)) as name:
                    sock.connect(name)
            except BaseException:
                sock.close()
                raise
            return sock
        proxy = self._proxy if self._proxy is not None and self._proxy.serves(origin) else None
        place = (proxy.host, proxy.port) if proxy else (origin.host, origin.port)
        sock = socket.create_connection(place, self._left(until))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            notice_death(sock, streams=False)
            if proxy is not None:
                sock.settimeout(self._left(until))
                sock.sendall(proxy.connect_request(origin))
                answer = TunnelAnswer(proxy)
                while not answer.feed(sock.recv(_TUNNEL_READ)):
                    sock.settimeout(self._left(until))  # for all of it: a dripping proxy gains nothing
            if origin.scheme == "https":
                tls = self._tls_context()
                sock.settimeout(self._left(until))  # the whole handshake's
                return tls.wrap_socket(sock, server_hostname=origin.host)
        except BaseException:
            sock.close()
            raise
        return sock

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            import ssl

            self._tls = ssl.create_default_context()
        return self._tls


class BlockingAnswer:
    """An answer whose body is still arriving; a context manager, of one thread."""

    def __init__(self, client: HttpClient, origin: Origin, connection: _Socket, head: ResponseHead) -> None:
        self.status = head.status
        self.headers: Headers = head.headers
        self.length = head.length
        self._client = client
        self._origin = origin
        self._connection = connection
        self._framing: Framing = head.framing()
        self._keep = head.keep_alive

    def __enter__(self) -> BlockingAnswer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fit = self._keep and self._framing.done and not self._connection.pending
        self._client.give_back(self._origin, self._connection, fit=fit)

    def readinto(self, area: memoryview) -> int:
        """Fill ``area`` as far as one read does; 0 at the body's end.

        :raises Unavailable: ``answer-truncated``, ``bad-gateway-answer``, ``deadline-exceeded``.
        """
        framing, connection = self._framing, self._connection
        if not len(area):
            return 0
        try:
            while not framing.done:
                if connection.pending:
                    with memoryview(connection.pending) as view:
                        pieces, used = framing.feed(view, len(area))
                        filled = 0
                        for piece in pieces:
                            area[filled : filled + len(piece)] = piece
                            filled += len(piece)
                            piece.release()
                    connection.pending = connection.pending[used:]
                    if filled:
                        return filled
                elif framing.remaining >= min(len(area), SCRATCH):
                    count = connection.receive(area[: min(len(area), framing.remaining)])
                    framing.took(count) if count else self._end()
                    if count:
                        return count
                elif not connection.receive_more():
                    self._end()
        except InvalidInput as error:
            raise bad_answer(self._origin, error) from error
        except (TimeoutError, BlockingIOError) as error:
            raise deadline_exceeded(self._origin) from error
        except OSError as error:
            raise truncated(self._origin) from error
        return 0

    def read(self, limit: int) -> bytes:
        """The whole body.

        :raises Unavailable: ``answer-too-large`` when it exceeds ``limit``; as :meth:`readinto`.
        """
        too_large = Unavailable("answer-too-large", f"{self._origin} answers with more than was agreed")
        if self.length is not None and self.length > limit:
            raise too_large
        body = bytearray(_FIRST_GUESS if self.length is None else self.length)
        filled = 0
        while True:
            if filled == len(body) and not self._framing.done:
                body.extend(bytes(max(filled, _FIRST_GUESS)))
            with memoryview(body) as view, view[filled:] as area:
                count = self.readinto(area)
            if count == 0 and (self._framing.done or filled < len(body)):
                return bytes(memoryview(body)[:filled])
            filled += count
            if filled > limit:
                raise too_large

    def _end(self) -> None:
        if not self._framing.end():
            raise truncated(self._origin)
