"""Calls an application in this process, for a request that came wrapped in something else (a platform's JSON)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from cloister.adapters.http.answer import Answer
from cloister.adapters.http.body import Body
from cloister.adapters.http.buffers import BufferPool
from cloister.adapters.http.framing import Framing
from cloister.adapters.http.head import Headers, RequestHead
from cloister.adapters.http.message import App, Request, Response
from cloister.adapters.http.problem import to_response
from cloister.base.errors import CloisterError


async def call_app(
    app: App,
    method: str,
    path: str,
    *,
    pool: BufferPool,
    query: str = "",
    headers: Iterable[tuple[str, str]] = (),
    content: bytes | bytearray | memoryview = b"",
) -> Answer:
    """The application's whole answer; its errors as a server would write them, its faults as they are."""
    rest = memoryview(content)

    def feed() -> None:
        nonlocal rest
        if rest:
            rest = rest[body.feed(rest) :]

    size = len(rest)
    body = Body(Framing.length(size), size, pool, feed)
    fields = Headers((name.lower(), value) for name, value in headers)
    head = RequestHead(method, path, query, fields, 1, keep_alive=True, length=size, expects_continue=False)
    request = Request(head, body, max(size, 1))
    try:
        try:
            response = await app(request)
            return Answer(response.status, Headers(response.headers), await _whole(response))
        except CloisterError as error:
            told = to_response(error)
            return Answer(told.status, Headers(told.headers), await _whole(told))
    finally:
        request.finish()


async def _whole(response: Response) -> bytes:
    content = response.content
    if isinstance(content, AsyncIterator):
        return b"".join([bytes(piece) async for piece in content])
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    return b"".join(content)
