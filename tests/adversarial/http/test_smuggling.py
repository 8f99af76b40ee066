"""Request smuggling over real sockets: no bytes of one request's body may ever be served as another request.

Each attack is sent to a server, and to a gateway in front of a server (``forward``), with a request hidden in it. What
counts is which requests the applications saw, and that a refusal ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop

from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.forward import forward
from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.base.errors import Unavailable
from cloister.testing.logs import MemoryLog

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
LIMITS = ServerLimits(head_s=0.5, body_idle_s=0.3, idle_s=0.5, linger_s=5.0)


def post(*lines: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join((b"POST /outer " + version, b"Host: a", *lines)) + b"\r\n\r\n"


CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"0\r\n\r\n"
LENGTH = b"Content-Length: %d" % len(HIDDEN)

# What two parties could frame differently: refused, the connection closed, nothing behind it served.
REFUSED = {
    "cl-te": post(LENGTH, CHUNKED) + CHUNKS + HIDDEN,
    "te-cl": post(CHUNKED, b"Content-Length: 4") + b"5c\r\n" + HIDDEN + b"\r\n0\r\n\r\n",
    "te-cl-zero": post(CHUNKED, b"Content-Length: 0") + HIDDEN,
    "cl-twice": post(b"Content-Length: 0", LENGTH) + HIDDEN,
    "cl-twice-same": post(LENGTH, LENGTH) + HIDDEN,
    "cl-list": post(b"Content-Length: 0, %d" % len(HIDDEN)) + HIDDEN,
    "cl-plus": post(b"Content-Length: +0") + HIDDEN,
    "cl-minus": post(b"Content-Length: -0") + HIDDEN,
    "cl-hex": post(b"Content-Length: 0x0") + HIDDEN,
    "cl-blank-inside": post(b"Content-Length: 0 0") + HIDDEN,
    "cl-empty": post(b"Content-Length:") + HIDDEN,
    "cl-huge": post(b"Content-Length: 18446744073709551616") + HIDDEN,
    "cl-blank-before-colon": post(b"Content-Length : 0") + HIDDEN,
    "cl-folded": post(b"Content-Length:\r\n 0") + HIDDEN,
    "te-blank-before-colon": post(b"Transfer-Encoding : chunked") + CHUNKS + HIDDEN,
    "te-tab-before-colon": post(b"Transfer-Encoding\t: chunked") + CHUNKS + HIDDEN,
    "te-folded": post(b"Transfer-Encoding:\r\n chunked") + CHUNKS + HIDDEN,
    "te-vertical-tab": post(b"Transfer-Encoding: \x0bchunked") + CHUNKS + HIDDEN,
    "te-identity": post(b"Transfer-Encoding: identity") + HIDDEN,
    "te-list": post(b"Transfer-Encoding: chunked, identity") + CHUNKS + HIDDEN,
    "te-gzip": post(b"Transfer-Encoding: gzip, chunked") + CHUNKS + HIDDEN,
    "te-twice": post(CHUNKED, CHUNKED) + CHUNKS + HIDDEN,
    "te-twice-other": post(CHUNKED, b"Transfer-Encoding: x") + CHUNKS + HIDDEN,
    "te-quoted": post(b'Transfer-Encoding: "chunked"') + CHUNKS + HIDDEN,
    "te-prefixed": post(b"Transfer-Encoding: xchunked") + CHUNKS + HIDDEN,
    "te-http-1.0": post(CHUNKED, version=b"HTTP/1.0") + CHUNKS + HIDDEN,
    "bare-lf": post(LENGTH).replace(b"\r\n", b"\n") + HIDDEN,
    "bare-lf-in-one-line": post(b"X: a\nTransfer-Encoding: chunked", b"Content-Length: 0") + HIDDEN,
    "bare-cr": post(b"X: a\rTransfer-Encoding: chunked", b"Content-Length: 0") + HIDDEN,
    "nul": post(b"X: a\0b", b"Content-Length: 0") + HIDDEN,
    "no-host": b"POST /outer HTTP/1.1\r\nContent-Length: 0\r\n\r\n" + HIDDEN,
    "two-hosts": post(b"Host: b", b"Content-Length: 0") + HIDDEN,
    "blank-before-first-field": b"POST /outer HTTP/1.1\r\n Host: a\r\nContent-Length: 0\r\n\r\n" + HIDDEN,
    "http-0.9": b"GET /outer\r\n\r\n" + HIDDEN,
    "http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
}

# Framed beyond doubt, then broken within the body: no answer of the application, nothing behind it served.
BROKEN = {
    "size-not-hexadecimal": post(CHUNKED) + b"zz\r\n" + HIDDEN,
    "size-negative": post(CHUNKED) + b"-1\r\n" + HIDDEN,
    "size-prefixed": post(CHUNKED) + b"0x0\r\n\r\n" + HIDDEN,
    "size-overflows": post(CHUNKED) + b"10000000000000000\r\n\r\n" + HIDDEN,
    "size-with-blank": post(CHUNKED) + b"0 \r\n\r\n" + HIDDEN,
    "size-ends-in-lf": post(CHUNKED) + b"0\n\n" + HIDDEN,
    "size-ends-in-cr": post(CHUNKED) + b"0\r\r\n\r\n" + HIDDEN,
    "extension-hides-lf": post(CHUNKED) + b"0;a\n\r\n\r\n" + HIDDEN,
    "extension-hides-cr": post(CHUNKED) + b"0;a\rb\r\n\r\n" + HIDDEN,
    "chunk-longer-than-said": post(CHUNKED) + b"1\r\nab\r\n0\r\n\r\n" + HIDDEN,
    "chunk-without-end": post(CHUNKED) + b"1\r\na0\r\n\r\n" + HIDDEN,
    "trailer-not-a-field": post(CHUNKED) + b"0\r\n" + HIDDEN,
}

# Framed beyond doubt, the hidden request inside the body: one request, one answer.
INSIDE = {
    "in-length": (post(LENGTH) + HIDDEN, HIDDEN),
    "in-chunk": (post(CHUNKED) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN), HIDDEN),
    "in-chunk-mixed-case": (post(b"tRANSFER-eNCODING: ChUnKeD") + b"1;a=b\r\nx\r\n0\r\nT: u\r\n\r\n", b"x"),
    "in-get": (b"GET /outer HTTP/1.1\r\nHost: a\r\n" + LENGTH + b"\r\n\r\n" + HIDDEN, HIDDEN),
}


class Seen:
    """What the application was given."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.bodies: list[bytes] = []

    async def __call__(self, request: Request) -> Response:
        self.paths.append(request.path)
        body = bytes(await request.body())
        self.bodies.append(body)
        return Response(200, [], body)


@contextlib.asynccontextmanager
async def serving(app: Callable[[Request], Awaitable[Response]]) -> AsyncIterator[HttpServer]:
    server = HttpServer(app, log=MemoryLog(), limits=LIMITS)
    await server.start()
    try:
        yield server
    finally:
        await server.drain(2.0)


@contextlib.asynccontextmanager
async def place(behind: str, seen: Seen) -> AsyncIterator[int]:
    """The port of a server, or of a gateway in front of one."""
    async with serving(seen) as server:
        if behind == "server":
            yield int(server.address.rpartition(":")[2])
            return
        client = AsyncHttpClient()
        async with serving(lambda request: forward(client, server.address, request, max_body=1 << 20)) as gateway:
            yield int(gateway.address.rpartition(":")[2])
        await client.close()


async def exchange(port: int, attack: bytes, *, cut: bool) -> bytes:
    """Everything that comes back until the server closes; byte by byte where ``cut``."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in [bytes([byte]) for byte in attack] if cut else [attack]:
            if writer.is_closing():  # refused before its end
                break
            writer.write(piece)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            if cut:
                await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):
            return await reader.read()
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def answers_in(data: bytes) -> int:
    return len(re.findall(rb"HTTP/1\.1 [0-9]{3} ", data))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


@pytest.mark.parametrize("behind", ["server", "gateway"])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "bytes"])
def test_what_could_be_framed_in_two_ways_is_refused_with_all_that_follows(behind: str, cut: bool) -> None:
    async def scenario() -> None:
        seen = Seen()
        async with place(behind, seen) as port:
            answers = await asyncio.gather(*(exchange(port, attack, cut=cut) for attack in REFUSED.values()))
        assert seen.paths == []
        for name, answer in zip(REFUSED, answers, strict=True):
            assert answers_in(answer) == 1, name
            assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501", b"HTTP/1.1 505")), name
            assert b"connection: close\r\n" in answer, name

    run(scenario)


@pytest.mark.parametrize("behind", ["server", "gateway"])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "bytes"])
def test_a_body_that_breaks_its_framing_ends_its_connection(behind: str, cut: bool) -> None:
    async def scenario() -> None:
        seen = Seen()
        async with place(behind, seen) as port:
            answers = await asyncio.gather(*(exchange(port, attack, cut=cut) for attack in BROKEN.values()))
        assert seen.bodies == []
        assert set(seen.paths) <= {"/outer"}
        for name, answer in zip(BROKEN, answers, strict=True):
            assert answers_in(answer) <= 1, name
            assert not answer.startswith(b"HTTP/1.1 2"), name

    run(scenario)


@pytest.mark.parametrize("behind", ["server", "gateway"])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "bytes"])
@pytest.mark.parametrize("name", INSIDE)
def test_a_request_inside_a_body_is_that_body(behind: str, cut: bool, name: str) -> None:
    attack, body = INSIDE[name]

    async def scenario() -> None:
        seen = Seen()
        async with place(behind, seen) as port:
            answer = await exchange(port, attack, cut=cut)
        assert (seen.paths, seen.bodies) == (["/outer"], [body])
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answers_in(answer) == 1

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokk",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 204 Forged\r\n\r\n",
    ],
    ids=["ambiguous", "two-lengths", "answer-behind-answer", "answer-behind-chunks"],
)
def test_an_instance_cannot_answer_the_next_request_ahead(answer: bytes) -> None:
    """Response smuggling: what comes behind an answer belongs to nobody."""

    async def scenario() -> None:
        connections = 0

        async def instance(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            first = connections == 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer if first else b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\ngenuine")
            with contextlib.suppress(ConnectionError):
                await writer.drain()
                await reader.read()
            writer.close()

        listener = await asyncio.start_server(instance, "127.0.0.1", 0)
        origin = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        client = AsyncHttpClient()
        try:
            with contextlib.suppress(Unavailable):
                assert (await client.request("GET", origin, "/")).body == b"ok"
            assert (await client.request("GET", origin, "/")).body == b"genuine"
            assert connections == 2
        finally:
            await client.close()
            listener.close()

    run(scenario)
