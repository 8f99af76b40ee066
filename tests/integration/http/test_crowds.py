"""Crowds and slow clients on real sockets: the others are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.base.limits import MIB
from cloister.testing.rawhttp import RawClient

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HOSTILE, HONEST = "127.0.0.66", "127.0.0.1"
PATIENT = ServerLimits(max_connections=32, idle_s=600, head_s=600, body_idle_s=600, write_stall_s=600)


async def small(request: Request) -> Response:
    await request.body()
    return Response(200, content=b"x")


def part_of_a_body(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"a"


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", b"\r\n", part_of_a_body(100)], ids=["idle", "head", "empty", "body"]
)
def test_a_crowd_that_waits_keeps_nobody_out(run, serving, sent: bytes) -> None:
    """With limits that would let them wait for ten minutes: it is their number that ends them."""

    async def scenario() -> None:
        async with serving(small, PATIENT) as server:
            kept = await RawClient.open(server.address, HONEST)
            await kept.send(GET)
            assert (await kept.answer()).status == 200
            crowd = []
            for _ in range(3 * PATIENT.max_connections):
                crowd.append(await RawClient.open(server.address, HOSTILE))
                await crowd[-1].send(sent)
            for _ in range(3):
                new = await RawClient.open(server.address, HONEST)
                await new.send(GET)
                assert (await new.answer()).status == 200
                await new.close()
            await kept.send(GET)  # and a connection that is kept by others is not cut for them
            assert (await kept.answer()).status == 200
            for client in (kept, *crowd):
                await client.close()

    run(scenario())


@pytest.mark.parametrize("address", [HOSTILE, HONEST], ids=["another address", "one address"])
def test_readers_that_take_nothing_keep_nobody_out(run, serving, address: str) -> None:
    async def big(request: Request) -> Response:
        return Response(200, content=bytes(16 * MIB) if request.path == "/big" else b"x")

    async def scenario() -> None:
        limits = ServerLimits(max_connections=4, write_stall_s=0.2)
        async with serving(big, limits) as server:
            crowd = [await RawClient.open(server.address, address) for _ in range(4)]
            for client in crowd:
                await client.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
                await client.reader.readexactly(1)  # the answer has begun
            status = 503
            while status == 503:  # from one address until the first of them is cut
                new = await RawClient.open(server.address, HONEST)
                await new.send(GET)
                status = (await new.answer()).status
                await new.close()
            assert status == 200
            for client in crowd:
                await client.close()

    run(scenario())


def test_an_answer_taken_by_drips_is_cut(run, serving) -> None:
    """Each read is progress, so only the rate over all of them tells."""

    async def big(_: Request) -> Response:
        return Response(200, content=bytes(64 * MIB))

    async def scenario() -> None:
        limits = ServerLimits(write_stall_s=0.3, min_body_rate=64 * MIB)
        async with serving(big, limits) as server:
            client = await RawClient.open(server.address)
            await client.send(GET)
            taken = 0

            async def drips() -> None:
                nonlocal taken
                while True:
                    taken += len(await client.reader.readexactly(256 * 1024))
                    await asyncio.sleep(0.02)

            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await drips()
            assert taken < 64 * MIB
            await client.close()

    run(scenario())


@pytest.mark.parametrize("empty", [b"\r\n", b"\r\n\r\n", b"\r\n\r\nG"])
def test_empty_lines_without_end_are_no_head(run, serving, empty: bytes) -> None:
    async def scenario() -> None:
        async with serving(small, ServerLimits(head_s=0.3, linger_s=0.1)) as server:
            client = await RawClient.open(server.address)

            async def drip() -> None:
                while True:
                    await client.send(empty)
                    await asyncio.sleep(0.02)

            dripping = asyncio.create_task(drip())
            assert (await client.answer()).status in {400, 408}
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
            await client.close()

    run(scenario())


def test_requests_sent_ahead_without_reading_are_bounded_and_cut(run, serving) -> None:
    answered = 0

    async def piece(_: Request) -> Response:
        nonlocal answered
        answered += 1
        return Response(200, content=bytes(MIB))

    async def scenario() -> None:
        async with serving(piece, ServerLimits(write_stall_s=0.2)) as server:
            client = await RawClient.open(server.address)
            sending = asyncio.create_task(client.send(GET * 1_000_000))
            await ended(lambda: server.connections == 0)
            assert 0 < answered < 1_000
            with pytest.raises(ConnectionError):
                await sending
            await client.close()

    run(scenario())


async def ended(done: Callable[[], bool]) -> None:
    while not done():  # noqa: ASYNC110  # the server's own sweep ends this, or the test's deadline
        await asyncio.sleep(0.02)
