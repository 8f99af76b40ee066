"""Work on threads, bounded."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cloister.adapters.http.workers import Workers
from cloister.base.errors import InvalidInput, Unavailable


def test_results_errors_and_the_bound() -> None:
    async def scenario() -> None:
        workers = Workers(2, 3)
        assert await asyncio.gather(*(workers.run(pow, 2, n) for n in range(5))) == [1, 2, 4, 8, 16]

        def fail() -> None:
            raise InvalidInput("bad-thing", "bad")

        with pytest.raises(InvalidInput, match="bad-thing"):
            await workers.run(fail)
        gate = threading.Event()
        held = [asyncio.create_task(workers.run(gate.wait)) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="queue-full") as caught:
            await workers.run(gate.wait)
        assert caught.value.retry_after == 1.0
        held[4].cancel()
        gate.set()
        results = await asyncio.gather(*held, return_exceptions=True)
        assert results[:4] == [True] * 4
        assert isinstance(results[4], asyncio.CancelledError)
        await workers.close()
        assert workers.pending == 0
        with pytest.raises(Unavailable, match="shutting-down"):
            await workers.run(gate.wait)

    asyncio.run(scenario())


def test_nothing_is_lost_under_load() -> None:
    async def scenario() -> None:
        workers = Workers(4, 5000)
        assert await asyncio.gather(*(workers.run(int, n) for n in range(5000))) == list(range(5000))
        await workers.close()

    asyncio.run(scenario())


def test_a_caller_that_has_gone_spares_the_work() -> None:
    async def scenario() -> None:
        workers = Workers(1, 5)
        gate, ran = threading.Event(), []
        first = asyncio.create_task(workers.run(gate.wait))
        second = asyncio.create_task(workers.run(ran.append, 1))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        gate.set()
        assert await first
        await workers.close()
        assert ran == []

    asyncio.run(scenario())
