"""The gateway's path: a request on to an instance and its answer back, body pieces passed through as they come.

No body is held whole: one window of each direction is in memory, and a slow reader slows its writer down.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Final

from cloister.adapters.http.client import AsyncHttpClient, Call, StreamedAnswer
from cloister.adapters.http.head import Headers
from cloister.adapters.http.message import Request, Response

# RFC 9110, 7.6.1: of one connection only; Host and the framing are written anew, and a 100 was answered by us.
_HOP_BY_HOP: Final = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "host", "content-length", "expect", "date",
})  # fmt: skip


def end_to_end(headers: Headers) -> list[tuple[str, str]]:
    """The fields that travel on: without those of one connection and those that ``Connection`` names."""
    dropped = _HOP_BY_HOP | headers.tokens("connection")
    return [(name, value) for name, value in headers if name not in dropped]


async def forward(
    client: AsyncHttpClient,
    origin: str,
    request: Request,
    *,
    max_body: int,
    deadline_s: float | None = None,
    extra: Iterable[tuple[str, str]] = (),
) -> Response:
    """Send ``request`` on to ``origin``, same target, and return its answer as it streams.

    :param deadline_s: until the answer's head.
    :param extra: further request headers.
    :raises Unavailable: as ``AsyncHttpClient.open``; nothing is retried, the body being gone once it was sent.
    """
    target = f"{request.path}?{request.query}" if request.query else request.path
    has_body = request.content_length != 0
    call = client.open(
        request.method,
        origin,
        target,
        headers=[*end_to_end(request.headers), *extra],
        content=request.stream(max_body) if has_body else b"",
        length=request.content_length,
        deadline_s=deadline_s,
    )
    answer = await call.__aenter__()
    bodiless = request.method == "HEAD"
    return Response(
        answer.status,
        end_to_end(answer.headers),
        _relay(call, answer),
        length=int(answer.headers.get("content-length", "0")) if bodiless else answer.length,
    )


async def _relay(call: Call, answer: StreamedAnswer) -> AsyncIterator[memoryview]:
    """The answer's pieces; the connection goes back to the client's pool at the end, or is closed."""
    try:
        async for piece in answer.stream():
            yield piece
    finally:
        await call.__aexit__(None, None, None)
