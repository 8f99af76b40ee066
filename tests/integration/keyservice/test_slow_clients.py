"""The KeyService on a real socket, among clients that are slow on purpose: the others are answered, these are cut.

Clients and server share this process. The server's limits are its own where numbers matter, and small where time does.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.process import raise_file_limit
from cloister.base.limits import MAX_CALL
from cloister.keyservice.server import LIMITS, KeyServiceServer
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.logs import MemoryLog
from cloister.testing.rawhttp import RawAnswer, RawClient
from cloister.wire import calls
from cloister.wire.calls import Description

HOSTILE, HONEST = "127.0.0.66", "127.0.0.1"
STATUS = b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 32\r\n\r\n" + bytes(32)
PATIENT = dataclasses.replace(LIMITS, head_s=600, body_idle_s=600, write_stall_s=600, idle_s=600)
BRISK = dataclasses.replace(LIMITS, head_s=1.0, body_idle_s=1.0, write_stall_s=1.0, linger_s=0.3)


class World:
    """A KeyService that listens, and a person who asks it."""

    def __init__(self, ks: EmbeddedKeyService, server: KeyServiceServer) -> None:
        self.ks = ks
        self.server = server
        self.person = ks.person()
        self.description = Description.decode(ks.service.description())

    async def asks(self, client: RawClient) -> dict[str, Any]:
        """One sealed query; its result."""
        pending = calls.seal_call(self.description, calls.QUERY, self.person.query("whoami"))
        await client.send(post("/v1/call", pending.data))
        answer = await client.answer()
        assert answer.status == 200
        return calls.open_reply(pending, answer.body)

    async def is_answered(self) -> None:
        """Somebody new asks, and is answered."""
        client = await RawClient.open(self.server.address, HONEST)
        assert (await self.asks(client))["id"] == self.person.id
        await client.close()


def post(path: str, body: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body


@asynccontextmanager
async def listening(limits: ServerLimits = LIMITS) -> AsyncIterator[World]:
    ks = EmbeddedKeyService()
    server = KeyServiceServer(ks.service, ks.assembled.telemetry, log=MemoryLog(), limits=limits)
    await server.start("127.0.0.1", 0)
    try:
        yield World(ks, server)
    finally:
        await server.stop(5.0)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/call HTTP/1.1\r\nHost: x\r\nContent-",
        b"POST /v1/call HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\nab" % MAX_CALL,
        STATUS,
    ],
    ids=["idle", "half a head", "half a body", "answered and kept"],
)
def test_as_many_connections_as_it_takes_keep_nobody_out(sent: bytes) -> None:
    """1,024 and some more, by one who waits as long as he is let."""
    raise_file_limit()

    async def scenario() -> None:
        async with listening(PATIENT) as world:
            kept = await RawClient.open(world.server.address, HONEST)
            await world.asks(kept)
            crowd = []
            for _ in range(LIMITS.max_connections + 50):
                crowd.append(await RawClient.open(world.server.address, HOSTILE))
                await crowd[-1].send(sent)
            for _ in range(20):
                await world.is_answered()
            await world.asks(kept)
            for client in (kept, *crowd):
                await client.close()

    run(scenario)


@pytest.mark.parametrize(
    "start",
    [b"POST /v1/call HTTP/1.1\r\nX: ", b"POST /v1/call HTTP/1.1\r\nHost: x\r\nContent-Length: 250000\r\n\r\n"],
    ids=["head", "body"],
)
def test_a_byte_now_and_then_is_not_enough(start: bytes) -> None:
    async def scenario() -> None:
        async with listening(BRISK) as world:
            crowd = [await RawClient.open(world.server.address, HOSTILE) for _ in range(20)]

            async def drips(client: RawClient) -> RawAnswer:
                await client.send(start)
                answer = asyncio.create_task(client.answer())
                while not answer.done():
                    await client.send(b"a")
                    await asyncio.sleep(0.02)
                return await answer

            slow = [asyncio.create_task(drips(client)) for client in crowd]
            await world.is_answered()
            assert {(await one).status for one in slow} == {408}
            await world.is_answered()
            for client in crowd:
                await client.close()

    run(scenario)


def test_questions_without_reading_the_answers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is cheap, and answers pile up in the kernel and nowhere else."""
    asked = 0

    async def scenario() -> None:
        async with listening(BRISK) as world:
            described = world.ks.service.description

            def description() -> bytes:
                nonlocal asked
                asked += 1
                return described()

            monkeypatch.setattr(world.ks.service, "description", description)
            client = await RawClient.open(world.server.address, HOSTILE)
            more_than_kernels_hold = b"GET /v1/description HTTP/1.1\r\nHost: x\r\n\r\n" * 500_000
            with pytest.raises(ConnectionError):
                await client.send(more_than_kernels_hold)
            assert 0 < asked < 500_000
            await world.is_answered()
            await client.close()

    run(scenario)


def test_calls_sent_ahead_are_answered_one_after_the_other() -> None:
    async def scenario() -> None:
        async with listening() as world:
            client = await RawClient.open(world.server.address, HONEST)
            many = [calls.seal_call(world.description, calls.QUERY, world.person.query("whoami")) for _ in range(20)]
            await client.send(b"".join(post("/v1/call", one.data) for one in many))
            for one in many:
                assert calls.open_reply(one, (await client.answer()).body)["id"] == world.person.id
            await client.close()

    run(scenario)
