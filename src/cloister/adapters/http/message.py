"""What an application sees: a request with its body, and the response it returns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # the blocking client builds and reads problems with this module, and knows no event loop
    from cloister.adapters.http.body import Body, BodyStream
    from cloister.adapters.http.buffers import Lease
    from cloister.adapters.http.content import Content
    from cloister.adapters.http.head import Headers, RequestHead

App = Callable[["Request"], Awaitable["Response"]]

REASONS: Final[dict[int, str]] = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content", 304: "Not Modified",
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 409: "Conflict", 411: "Length Required", 413: "Content Too Large",
    415: "Unsupported Media Type", 416: "Range Not Satisfiable",
    417: "Expectation Failed", 422: "Unprocessable Content", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Response:
    """An answer.

    :param headers: without Content-Length, Transfer-Encoding and Connection, which the server writes.
    :param content: a buffer, several written one after the other without joining them, or an iterator sent as it
        yields. Each buffer must stay unchanged until it is written; memory from ``Request.buffer`` does.
    :param length: of an iterator, where it is known; otherwise it is sent in chunks.
    """

    status: int
    headers: Sequence[tuple[str, str]] = ()
    content: Content = b""
    length: int | None = None


class Request:
    """One request. Everything it lends ends when its response has been written, or the client is gone."""

    __slots__ = ("_after", "_body", "_finished", "_leases", "_max_body", "headers", "method", "path", "query")

    def __init__(self, head: RequestHead, body: Body, max_body: int) -> None:
        self.method = head.method
        self.path = head.path
        self.query = head.query
        self.headers: Headers = head.headers
        self._body = body
        self._max_body = max_body
        self._leases: list[Lease] = []
        self._after: list[Callable[[], None]] = []
        self._finished = False

    @property
    def content_length(self) -> int | None:
        """As declared; None when chunked."""
        return self._body.length

    async def body(self, limit: int | None = None) -> memoryview:
        """The whole body, once, in a kept buffer that is valid until the response is finished.

        :raises InvalidInput: ``body-too-large``, ``chunk-malformed``, ``request-timeout``.
        """
        return await self._body.read(self._max_body if limit is None else min(limit, self._max_body))

    def stream(self, limit: int = 1 << 62) -> BodyStream:
        """The body in pieces as they arrive, once; each piece is valid until the next.

        :raises InvalidInput: as :meth:`body`, also while iterating.
        """
        return self._body.stream(limit)

    def buffer(self, size: int) -> memoryview:
        """Page-aligned memory for decrypting into or answering from, given back after the response. From any thread."""
        if self._finished:
            msg = "the request is finished"
            raise AssertionError(msg)
        lease = self._body.pool.lease(size)
        self._leases.append(lease)
        return lease.view

    def on_finish(self, call: Callable[[], None]) -> None:
        """Call this after the response has been written or has failed, last one first."""
        self._after.append(call)

    def finish(self) -> None:
        """For the server: end everything lent."""
        self._finished = True
        while self._after:
            self._after.pop()()
        while self._leases:
            self._leases.pop().release()
        self._body.release()
