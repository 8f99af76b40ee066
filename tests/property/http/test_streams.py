"""Any cut of a valid stream gives the same requests; no bytes at all crash, hang or leak a connection."""

from __future__ import annotations

import asyncio
import itertools

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.adapters.http.framing import Framing
from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.base.errors import InvalidInput
from cloister.testing.logs import MemoryLog
from cloister.testing.transport import MemoryTransport

lengths = st.integers(0, 200) | st.integers(10_000, 200_000)


def _body(length: int) -> bytes:
    return (bytes(range(256)) * (length // 256 + 1))[:length]


def _encode(body: bytes, sizes: list[int] | None) -> bytes:
    if sizes is None:
        return b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    out, start = b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 0
    for size in [*sizes, len(body)]:
        piece = body[start : start + size]
        start += size
        if piece:
            out += b"%x\r\n%s\r\n" % (len(piece), piece)
    return out + b"0\r\n\r\n"


def _cut(data: bytes, points: list[int]) -> list[bytes]:
    edges = sorted({point % (len(data) + 1) for point in points} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


async def _serve(pieces: list[bytes], *, stream: bool, hang_up: bool) -> tuple[list[bytes], bytes, HttpServer]:
    seen: list[bytes] = []

    async def app(request: Request) -> Response:
        seen.append(b"".join([bytes(p) async for p in request.stream()]) if stream else bytes(await request.body()))
        return Response(200, content=b"ok")

    server = HttpServer(app, log=MemoryLog(), limits=ServerLimits())
    connection = server._connect()
    transport = MemoryTransport(asyncio.get_running_loop(), connection)
    transport.feed(*pieces)
    turns = 0
    while turns < 20:  # until nothing has happened for some turns of the loop
        before = (len(seen), len(transport.output), len(transport._waiting))
        await asyncio.sleep(0)
        turns = turns + 1 if before == (len(seen), len(transport.output), len(transport._waiting)) else 0
    if hang_up:
        transport.hang_up()
        await transport.lost.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        assert server.connections == 0
        assert not server._lingering
    return seen, bytes(transport.output), server


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(lengths, st.none() | st.lists(st.integers(1, 50_000), max_size=5)), min_size=1, max_size=4),
    st.lists(st.integers(0, 1 << 20), max_size=12),
    st.booleans(),
)
def test_any_cut_gives_the_same_requests(
    messages: list[tuple[int, list[int] | None]], points: list[int], stream: bool
) -> None:
    data = b"".join(_encode(_body(length), sizes) for length, sizes in messages)
    seen, output, server = asyncio.run(_serve(_cut(data, points), stream=stream, hang_up=True))
    assert seen == [_body(length) for length, _ in messages]
    assert output.count(b"HTTP/1.1 200 OK") == len(messages)
    assert server.pool.given_up == 0


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=40), st.none() | st.lists(st.integers(1, 5), max_size=5))
def test_byte_by_byte_gives_the_same_requests(body: bytes, sizes: list[int] | None) -> None:
    data = _encode(body, sizes) * 2
    seen, _, _ = asyncio.run(_serve([data[i : i + 1] for i in range(len(data))], stream=False, hang_up=True))
    assert seen == [body, body]


fragments = st.lists(
    st.sampled_from([
        b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n", b"Host: x\r\n", b"Content-Length: 3\r\n",
        b"Content-Length: 99\r\n",
        b"Transfer-Encoding: chunked\r\n", b"\r\n", b"\n", b"\r", b"3\r\nabc\r\n", b"0\r\n\r\n", b"abc",
        b"Expect: 100-continue\r\n",
        b"ffffffffffff\r\n", b"X: \x00\r\n", b" folded\r\n", b"Connection: close\r\n", b"\x16\x03\x01",
    ]) | st.binary(max_size=30),
    max_size=20,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(fragments, st.lists(st.integers(0, 1 << 12), max_size=6), st.booleans())
def test_no_bytes_crash_hang_or_leak(parts: list[bytes], points: list[int], stream: bool) -> None:
    _, output, server = asyncio.run(_serve(_cut(b"".join(parts), points), stream=stream, hang_up=True))
    log = server._log
    assert isinstance(log, MemoryLog)
    assert log.events == []
    assert b" 500 " not in output


class _Oracle:
    """httptools' opinion of a chunked body."""

    def __init__(self) -> None:
        self.body = b""
        self.done = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done = True


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"\r\n", b"0", b"1", b"a", b"A\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b";x=y",
                         b"X: y\r\n", b"\n", b" "])
        | st.binary(max_size=3),
        max_size=12,
    )
)  # fmt: skip
def test_what_we_take_for_a_chunked_body_httptools_takes_too(parts: list[bytes]) -> None:
    data = b"".join(parts)
    framing = Framing.chunked()
    try:
        pieces, used = framing.feed(memoryview(data), 1 << 30)
    except InvalidInput:
        return
    oracle = _Oracle()
    parser = httptools.HttpRequestParser(oracle)
    parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    if framing.done:
        parser.feed_data(data[:used])
        assert oracle.done
        assert oracle.body == b"".join(pieces)


@given(st.binary(max_size=200))
def test_framing_raises_one_family_only(data: bytes) -> None:
    try:
        Framing.chunked().feed(memoryview(data), 1 << 30)
    except InvalidInput:
        return
