"""A runtime's port: anything may arrive on it, and good requests are answered right all the while."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import numpy as np
import pytest

from cloister.runtime.app import Listen, serve
from cloister.testing.models import small
from cloister.testing.runtime import RuntimeBench, User, image, open_reply
from cloister.wire import bhttp, cbor, envelope

MATRIX = image(5, (16, 16))
X = image(6, (2, 16))


class Port:
    """Speaks raw HTTP to a serving runtime."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("http://").split(":")
        self.host, self.port = host, int(port)

    async def exchange(self, data: bytes) -> bytes:
        """Everything that comes back until the server closes, or its answer is whole."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(data)
            await writer.drain()
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            return head + await reader.readexactly(int(length or b"0"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        finally:
            writer.close()

    async def post(self, path: str, body: bytes | bytearray) -> tuple[int, bytes]:
        """Status and body."""
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        answer = await self.exchange(head.encode() + bytes(body))
        head_bytes, _, content = answer.partition(b"\r\n\r\n")
        return int(head_bytes[9:12]) if head_bytes else 0, content


def hostile(generator: np.random.Generator, user: User, good: bytes) -> bytes | bytearray:
    """A malformed sealed body, of one of many kinds."""
    kind = int(generator.integers(0, 12))
    if kind == 0:
        return generator.bytes(int(generator.integers(0, 3000)))
    if kind == 1:
        return good[: int(generator.integers(0, len(good)))]
    if kind == 2:
        changed = bytearray(good)
        for _ in range(int(generator.integers(1, 4))):
            changed[int(generator.integers(0, len(good)))] ^= int(generator.integers(1, 256))
        return changed
    if kind == 3:
        return good + generator.bytes(int(generator.integers(1, 50)))
    if kind == 4:  # hostile CBOR where the header stands
        header = generator.bytes(int(generator.integers(1, 200)))
        return b"CLQ1" + len(header).to_bytes(2, "big") + header
    if kind == 5:
        header = b"\x9f" * 3000
        return b"CLQ1" + len(header).to_bytes(2, "big") + header
    if kind == 6:  # a header that promises much
        header = cbor.encode({"suite": 1, "mode": "request-key", "nonce": b"x" * 32, "iat": 2**62})
        return b"CLQ1" + len(header).to_bytes(2, "big") + header
    if kind == 7:  # a frame of 2 GiB
        prefix = user.begin().prefix
        return prefix + b"\x7f\xff\xff\xff" + bytes(100)
    # the rest is sealed well and wrong inside
    messages = [
        b"",
        bytes(100),
        generator.bytes(300),
        bhttp.request_head("POST", "/v2/models/matrix/infer", (("inference-header-content-length", "9" * 9),), 4)
        + b"{}{}\x00",
        bhttp.request_head("POST", "/v2/models/matrix/infer", (), 12) + b'{"inputs":[}' + bytes(50),
        _json(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[NaN,16],"data":[1]}]}'),
        _json(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2147483647,16],"data":[1]}]}'),
        _json(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2,16],"parameters":{"binary_data_size":-1}}]}'),
        _json(b"[" * 5000),
    ]
    message = messages[int(generator.integers(0, len(messages)))]
    return user.seal(lambda signature: signature + message)[1]


def _json(text: bytes) -> bytes:
    head = bhttp.request_head("POST", "/v2/models/matrix/infer", (), len(text))
    return head + text + bhttp.padding_after(len(head) + len(text))


async def flood(count: int) -> None:
    """``count`` malformed requests, and a good one beside every tenth."""
    bench = RuntimeBench(concurrency=2, queue=64)
    published = bench.publish("matrix", small.matrix(MATRIX))
    users = [bench.user(published), bench.user(published, service=True)]
    stopping, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(
        serve(bench.runtime, Listen(), stopping=stopping, announce=address.set_result, init_s=lambda: 0.0)
    )
    port = Port(await address)
    generator = np.random.default_rng(7)

    async def bad(number: int) -> None:
        user = users[number % 2]
        good = bytes(user.seal(lambda s: user.infer_message({"x": X}, signature=s))[1])
        status, content = await port.post(f"/v1/models/{user.model}/infer", hostile(generator, user, good))
        assert status in (200, 400, 503), status
        if status == 400:
            assert b"urn:cloister:error:request-refused" in content, content

    async def right(number: int) -> None:
        user = users[number % 2]
        outgoing, data = user.seal(lambda s: user.infer_message({"x": X + number}, signature=s))
        status, content = await port.post(f"/v1/models/{user.model}/infer", data)
        assert status == 200, content
        found = open_reply(outgoing, content).outputs()["y"]
        np.testing.assert_allclose(found, (X + number) @ MATRIX, rtol=1e-3)

    try:
        await asyncio.gather(*(right(n) for n in range(4)))
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for start in range(0, count, 20):
            await asyncio.gather(*(bad(n) for n in range(start, start + 20)), right(start), right(start + 1))
        grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
        assert grown_mb < 150, f"{grown_mb:.0f} MB more"
        assert bench.runtime.rooms.inside == 0
        assert bench.runtime.scheduler.idle
        assert "internal-error" not in repr(bench.log.events)
    finally:
        stopping.set()
        assert await asyncio.wait_for(serving, 30) == 0


def test_good_requests_are_answered_right_amid_malformed_ones() -> None:
    asyncio.run(flood(400))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_malformed_requests() -> None:
    asyncio.run(flood(10_000))


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /healthz", 200),
        ("GET /readyz", 200),
        ("GET /v1/status", 200),
        ("GET /metrics", 200),
        ("GET /", 404),
        ("DELETE /healthz", 405),
        ("GET /v1/models/x/infer", 400),
        ("POST /v1/models/../../etc/infer", 400),
    ],
)
def test_the_outer_endpoints(request_line: str, status: int) -> None:
    async def scenario() -> None:
        bench = RuntimeBench()
        stopping, address = asyncio.Event(), asyncio.get_running_loop().create_future()
        serving = asyncio.ensure_future(
            serve(bench.runtime, Listen(), stopping=stopping, announce=address.set_result, init_s=lambda: 0.0)
        )
        port = Port(await address)
        while not bench.runtime.session.ready:  # noqa: ASYNC110  # attesting is a thread's work
            await asyncio.sleep(0.01)
        head = f"{request_line} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode()
        answer = await port.exchange(head)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        stopping.set()
        await asyncio.wait_for(serving, 30)

    asyncio.run(scenario())


def test_streams_over_http() -> None:
    async def scenario() -> Any:
        bench = RuntimeBench()
        user = bench.user(bench.publish("matrix", small.matrix(MATRIX)))
        stopping, address = asyncio.Event(), asyncio.get_running_loop().create_future()
        serving = asyncio.ensure_future(
            serve(bench.runtime, Listen(), stopping=stopping, announce=address.set_result, init_s=lambda: 0.0)
        )
        port = Port(await address)
        outgoing = user.begin()
        head = bhttp.request_head("POST", "/v2/models/matrix/infer_stream", (), None)
        frames = b"".join(envelope.seal_stream(outgoing.sealer(), [head, bhttp.STREAM_END]))
        body = outgoing.prefix + frames
        reader, writer = await asyncio.open_connection(port.host, port.port)
        lines = ("host: x", "connection: close", f"content-length: {len(body)}")
        request = "\r\n".join((f"POST /v1/models/{user.model}/stream HTTP/1.1", *lines, "", ""))
        writer.write(request.encode() + body)
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert b"transfer-encoding: chunked" in answer
        assert answer.endswith(b"0\r\n\r\n")
        stopping.set()
        await asyncio.wait_for(serving, 30)

    asyncio.run(scenario())
