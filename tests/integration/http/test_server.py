"""The server over real sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest

from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.base.errors import Refused, Unavailable
from cloister.base.limits import MIB
from cloister.testing.rawhttp import RawClient

SAMPLE = bytes(range(256)) * 2352  # 602,112 bytes: an image of 224x224x3 float32


def post(body: bytes, path: str = "/", *headers: str) -> bytes:
    fields = "".join(f"{header}\r\n" for header in headers)
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(request: Request) -> Response:
    body = await request.body()
    answer = request.buffer(len(body))
    answer[:] = body
    return Response(200, [("content-type", "application/octet-stream")], answer)


def test_bodies_come_back_whole_and_memory_is_reused(run, serving) -> None:
    async def scenario() -> None:
        async with serving(echo) as server:
            client = await RawClient.open(server.address)
            for body in (b"", b"a", b"b" * 16_384, b"c" * 16_385, SAMPLE, SAMPLE * 10):
                await client.send(post(body))
                answer = await client.answer()
                assert (answer.status, answer.body) == (200, body)
                await client.send(chunked(*([body] if body else [])))
                assert (await client.answer()).body == body
            await client.send(chunked(*[b"%d" % i for i in range(5000)]))
            assert (await client.answer()).body == b"".join(b"%d" % i for i in range(5000))
            assert server.pool.given_up == 0
            await client.close()

    run(scenario())


def test_a_unix_socket_only_its_owner_may_open(run, serving, tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "s"
        for _ in range(2):  # the second time over a socket left behind
            async with serving(echo, path=path) as server:
                assert path.stat().st_mode & 0o777 == 0o600
                client = await RawClient.open(server.address)
                await client.send(post(SAMPLE))
                assert (await client.answer()).body == SAMPLE
                await client.close()
            assert not path.exists()
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(str(path))

    run(scenario())


def test_a_thousand_requests_on_one_connection_leave_memory_as_it_was(run, serving) -> None:
    async def scenario() -> None:
        async with serving(echo) as server:
            client = await RawClient.open(server.address)
            before = 0
            for index in range(1000):
                body = SAMPLE if index % 10 == 0 else b"x" * index
                await client.send(post(body))
                assert (await client.answer()).body == body
                if index == 200:
                    before = resident()
            assert resident() - before < 4 * MIB
            assert server.pool.given_up == 0
            await client.close()

    run(scenario())


def test_requests_sent_ahead_are_answered_in_order(run, serving) -> None:
    async def scenario() -> None:
        async with serving(echo) as server:
            client = await RawClient.open(server.address)
            bodies = [b"%d" % i * (i % 50) for i in range(2000)]
            sender = asyncio.create_task(
                client.send(b"".join(post(body) if i % 3 else chunked(body or b"-") for i, body in enumerate(bodies)))
            )
            for i, body in enumerate(bodies):
                assert (await client.answer()).body == (body if i % 3 else body or b"-")
            await sender
            await client.close()

    run(scenario())


def test_head_and_bodiless_answers(run, serving) -> None:
    async def app(request: Request) -> Response:
        return Response(204 if request.path == "/none" else 200, content=[b"abc", memoryview(b"def")])

    async def scenario() -> None:
        async with serving(app) as server:
            client = await RawClient.open(server.address)
            await client.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await client.answer(head_only=True)
            assert b"content-length: 6\r\n" in answer.head
            assert b"date: " in answer.head
            await client.send(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
            assert b"content-length" not in (await client.answer()).head
            assert (await client.answer()).body == b"abcdef"
            await client.close()

    run(scenario())


def test_a_client_that_waits_is_told_to_continue_only_when_its_body_is_wanted(run, serving) -> None:
    async def app(request: Request) -> Response:
        if request.path == "/no":
            raise Refused("no-grant", "no")
        return Response(200, content=bytes(await request.body()))

    async def scenario() -> None:
        async with serving(app) as server:
            client = await RawClient.open(server.address)
            head = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
            await client.send(head % b"/yes")
            assert (await client.answer()).status == 100
            await client.send(b"hello")
            assert (await client.answer()).body == b"hello"
            await client.send(head % b"/no")
            answer = await client.answer()
            assert answer.status == 403
            assert b"connection: close" in answer.head
            assert await client.ended()
            await client.close()

    run(scenario())


def test_streams_flow_both_ways_in_bounded_memory(run, serving) -> None:
    async def app(request: Request) -> Response:
        async def doubled():
            async for piece in request.stream():
                yield piece
                yield bytes(piece[:1])

        return Response(200, content=doubled())

    async def scenario() -> None:
        async with serving(app) as server:
            client = await RawClient.open(server.address)
            for message in (post(SAMPLE * 20), chunked(*[SAMPLE] * 20), chunked(b"a"), post(b"")):
                sender = asyncio.create_task(client.send(message))
                answer = await client.answer()
                await sender
                assert b"transfer-encoding: chunked" in answer.head
                if len(message) > MIB:
                    assert len(answer.body) > len(SAMPLE) * 20
            assert server.pool.idle_bytes <= MIB
            await client.close()

    run(scenario())


def test_a_stream_whose_length_is_known_keeps_it(run, serving) -> None:
    async def app(request: Request) -> Response:
        async def pieces():
            yield b"abc"
            yield b"def"

        return Response(200, content=pieces(), length=int(request.path[1:]))

    async def scenario() -> None:
        async with serving(app) as server:
            client = await RawClient.open(server.address)
            await client.send(GET.replace(b"/ ", b"/6 "))
            assert (await client.answer()).body == b"abcdef"
            await client.send(GET.replace(b"/ ", b"/7 "))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client.answer()
            await client.close()

    run(scenario())


def test_an_error_before_the_first_piece_is_an_answer_and_later_a_cut(run, serving) -> None:
    async def app(request: Request) -> Response:
        async def pieces():
            if request.path == "/early":
                raise Unavailable("starting", "soon", retry_after=1.0)
            if request.path == "/bug":
                raise ValueError(str(request.path))
            yield b"abc"
            raise Unavailable("died", "gone")

        return Response(200, content=pieces())

    async def scenario() -> None:
        async with serving(app) as server:
            client = await RawClient.open(server.address)
            await client.send(GET.replace(b"/ ", b"/early "))
            answer = await client.answer()
            assert answer.status == 503
            assert b"retry-after: 1\r\n" in answer.head
            await client.send(GET.replace(b"/ ", b"/bug "))
            assert (await client.answer()).status == 500
            await client.send(GET)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client.answer()
            await client.close()

    run(scenario())


def test_a_fault_is_logged_without_what_the_client_sent(run, serving) -> None:
    async def app(request: Request) -> Response:
        raise ValueError(bytes(await request.body()).decode())

    async def scenario() -> None:
        async with serving(app) as server:
            client = await RawClient.open(server.address)
            await client.send(post(b"top secret"))
            answer = await client.answer()
            assert answer.status == 500
            assert b"urn:cloister:error:internal" in answer.body
            await client.close()
            ((name, level, fields),) = server.test_log.events
            assert (name, level, fields["error"]) == ("internal-error", "error", "ValueError")
            assert "secret" not in str(fields)
            assert "test_server.py" in str(fields["where"])

    run(scenario())


def test_a_header_that_cannot_be_sent_closes_and_is_logged(run, serving) -> None:
    async def app(request: Request) -> Response:
        return Response(200, [("x", "a\r\nset-cookie: b")])

    async def scenario() -> None:
        async with serving(app) as server:
            client = await RawClient.open(server.address)
            await client.send(GET)
            assert await client.ended()
            await client.close()
            assert server.test_log.events[0][2]["error"] == "InvalidInput"

    run(scenario())


@pytest.mark.parametrize("message", [post(SAMPLE), chunked(SAMPLE)], ids=["length", "chunked"])
def test_a_body_over_the_limit_is_refused_and_the_answer_arrives(run, serving, message: bytes) -> None:
    async def app(request: Request) -> Response:
        return Response(200, content=bytes(await request.body(limit=1000)))

    async def scenario() -> None:
        async with serving(app) as server:
            client = await RawClient.open(server.address)
            await client.send(message)
            answer = await client.answer()
            assert answer.status == 413
            assert await client.ended()
            await client.close()

    run(scenario())


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def descriptors() -> int:
    """Open files of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_huge_declared_length_costs_nothing(run, serving) -> None:
    async def scenario() -> None:
        async with serving(echo) as server:
            clients = [await RawClient.open(server.address) for _ in range(50)]
            before = resident()
            for client in clients:
                await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n" + b"a" * 100)
            probe = await RawClient.open(server.address)
            await probe.send(GET)
            await probe.answer()
            assert resident() - before < 10 * MIB
            for client in (*clients, probe):
                await client.close()

    run(scenario())


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("where", ["body", "handler", "stream"])
def test_a_client_that_goes_away_cancels_its_handler(run, serving, where: str, reset: bool) -> None:
    async def scenario() -> None:
        entered, cancelled = asyncio.Event(), asyncio.Event()

        async def endless():
            while True:
                yield bytes(1 << 16)

        async def app(request: Request) -> Response:
            request.on_finish(cancelled.set)
            entered.set()
            if where == "stream":
                return Response(200, content=endless())
            await request.body()
            await asyncio.Event().wait()
            raise AssertionError

        async with serving(app) as server:
            client = await RawClient.open(server.address)
            sample = post(SAMPLE)
            await client.send(sample[:-1] if where == "body" else sample)
            await entered.wait()
            if where == "stream":
                await client.reader.readexactly(100_000)
            if reset:
                sock = client.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await client.close()
            await cancelled.wait()
            assert server.test_log.events == []

    run(scenario())


FAST = ServerLimits(idle_s=0.2, head_s=0.2, body_idle_s=0.2, linger_s=0.2, write_stall_s=0.2)


def test_slow_heads_bodies_readers_and_idlers_are_cut(run, serving) -> None:
    async def app(request: Request) -> Response:
        await request.body()
        return Response(200, content=bytes(64 * MIB))

    async def scenario() -> None:
        async with serving(app, FAST) as server:
            idle = await RawClient.open(server.address)
            head = await RawClient.open(server.address)
            await head.send(b"GET / HT")
            body = await RawClient.open(server.address)
            await body.send(post(SAMPLE)[:1000])
            reader = await RawClient.open(server.address)
            await reader.send(post(b"x"))
            assert await idle.ended()
            assert (await head.answer()).status == 408
            assert (await body.answer()).status == 408
            assert await head.ended()
            assert await body.ended()
            for client in (idle, head, body):
                await client.close()
            while server.connections:  # noqa: ASYNC110  # the server's own sweep ends this
                await asyncio.sleep(0.05)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await reader.answer()
            await reader.close()

    run(scenario())


def test_a_body_that_drips_is_cut(run, serving) -> None:
    async def scenario() -> None:
        async with serving(echo, FAST) as server:
            client = await RawClient.open(server.address)
            await client.send(post(SAMPLE)[:200])

            async def drip() -> None:
                while True:
                    await client.send(b"a")
                    await asyncio.sleep(0.02)

            dripping = asyncio.create_task(drip())
            assert (await client.answer()).status == 408
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
            await client.close()

    run(scenario())


def test_too_many_connections_are_turned_away(run, serving) -> None:
    async def scenario() -> None:
        started, go_on = asyncio.Semaphore(0), asyncio.Event()

        async def app(_: Request) -> Response:
            started.release()
            await go_on.wait()
            return Response(200)

        async with serving(app, ServerLimits(max_connections=2)) as server:
            clients = [await RawClient.open(server.address) for _ in range(2)]
            for client in clients:
                await client.send(GET)
                await started.acquire()
            third = await RawClient.open(server.address)
            assert (await third.answer()).status == 503
            assert await third.ended()
            go_on.set()
            for client in clients:
                assert (await client.answer()).status == 200
            for client in (*clients, third):
                await client.close()

    run(scenario())


def test_draining_loses_nothing_under_way(run, serving) -> None:
    async def scenario() -> None:
        started, go_on = asyncio.Semaphore(0), asyncio.Event()

        async def app(request: Request) -> Response:
            body = bytes(await request.body())
            started.release()
            await go_on.wait()
            return Response(200, content=body)

        async with serving(app) as server:
            idle = await RawClient.open(server.address)
            busy = [await RawClient.open(server.address) for _ in range(16)]
            for index, client in enumerate(busy):
                await client.send(post(b"%d" % index))
                await started.acquire()
            draining = asyncio.create_task(server.drain(10.0))
            assert await idle.ended()
            with pytest.raises(OSError):
                await RawClient.open(server.address)
            go_on.set()
            for index, client in enumerate(busy):
                answer = await client.answer()
                assert answer.body == b"%d" % index
                assert b"connection: close" in answer.head
                assert await client.ended()
            assert await draining == 0
            for client in (idle, *busy):
                await client.close()

    run(scenario())


def test_draining_cuts_what_does_not_end(run, serving) -> None:
    async def scenario() -> None:
        entered = asyncio.Event()

        async def app(request: Request) -> Response:
            entered.set()
            await asyncio.Event().wait()
            raise AssertionError

        async with serving(app) as server:
            client = await RawClient.open(server.address)
            await client.send(GET)
            await entered.wait()
            assert await server.drain(0.05) == 1
            assert await client.ended()
            await client.close()

    run(scenario())


def test_a_used_address_is_an_error_with_a_code(run, serving) -> None:
    async def scenario() -> None:
        async with serving(echo) as server:
            port = int(server.address.rpartition(":")[2])
            with pytest.raises(Unavailable, match="listen-failed"):
                async with serving(echo, port=port):
                    pass

    run(scenario())


def test_http_1_0_is_served_and_closed(run, serving) -> None:
    async def app(request: Request) -> Response:
        async def pieces():
            yield b"abc"
            yield b"def"

        return Response(200, content=pieces())

    async def scenario() -> None:
        async with serving(app) as server:
            client = await RawClient.open(server.address)
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            answer = await client.answer()
            assert answer.body == b"abcdef"
            assert b"chunked" not in answer.head
            await client.close()

    run(scenario())


def test_file_descriptors_do_not_leak(run, serving) -> None:
    async def scenario() -> None:
        async with serving(echo) as server:
            before = descriptors()
            for data in (b"nonsense\r\n\r\n", b"GET", b"\x16\x03\x01\x00", post(b"abc"), chunked(b"x")[:-3]):
                for _ in range(20):
                    client = await RawClient.open(server.address)
                    await client.send(data)
                    await client.close()
            while server.connections:  # noqa: ASYNC110  # the closing is the server's
                await asyncio.sleep(0.01)
            assert descriptors() <= before + 1

    run(scenario())
