"""Models within a memory budget: evicted while others run, never wrong, never too many, refused when too large."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from cloister.base.errors import Unavailable
from cloister.testing.models import small
from cloister.testing.runtime import RuntimeBench, error_code, image

SIDE = 64
X = image(6, (2, SIDE))


def test_models_evict_each_other_under_load_and_every_answer_is_right() -> None:
    bench = RuntimeBench(memory_mb=3, concurrency=4, queue=256)  # two of them fit: each takes a little over 1 MiB
    matrices = [image(seed, (SIDE, SIDE)) for seed in range(4)]
    users = [bench.user(bench.publish(f"m{i}", small.matrix(m))) for i, m in enumerate(matrices)]

    async def one(number: int) -> None:
        x = X + number
        for _ in range(20):
            try:
                found = await bench.infer(users[number % 4], {"x": x})
                break
            except Unavailable as error:
                await asyncio.sleep(min(0.2, error.retry_after or 0.1))
        else:
            raise AssertionError("never answered")
        np.testing.assert_allclose(found["y"], x @ matrices[number % 4], rtol=1e-3)
        assert bench.runtime.models.used <= bench.options.memory_bytes

    async def scenario() -> None:
        for number in range(4):
            await one(number)
        await asyncio.gather(*(one(number) for number in range(24)))
        assert bench.runtime.models.evictions > 0
        assert bench.runtime.metrics.churn_bytes > 0
        assert len(bench.runtime.models.resident()) <= 2
        assert bench.runtime.rooms.inside == 0

    bench.run(scenario)


def test_a_model_that_cannot_fit_is_refused_with_its_size() -> None:
    bench = RuntimeBench(memory_mb=1)
    user = bench.user(bench.publish("big", small.matrix(image(1, (SIDE, SIDE)))))

    async def scenario() -> None:
        reply = await bench.ask(user, {"x": X})
        assert (reply.status, error_code(reply)) == (403, "model-exceeds-memory")
        assert b"--memory-mb" in reply.content

    bench.run(scenario)


@pytest.mark.parametrize("count", [20])
def test_whoever_leaves_leaves_nothing_behind(count: int) -> None:
    """Requests cancelled at every possible moment: no slot, pin, visit or buffer is lost."""
    bench = RuntimeBench(concurrency=2)
    users = [bench.user(bench.publish(f"m{i}", small.matrix(image(i, (SIDE, SIDE))))) for i in range(2)]

    async def scenario() -> None:
        generator = np.random.default_rng(3)
        for _ in range(count):
            tasks = [asyncio.ensure_future(bench.infer(users[i % 2], {"x": X})) for i in range(6)]
            for _ in range(int(generator.integers(0, 12))):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for user in users:
            await bench.infer(user, {"x": X})
        while bench.runtime.rooms.inside or not bench.runtime.scheduler.idle:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.001)
        assert all(entry.pins == 0 for entry in bench.runtime.models._entries.values())

    bench.run(scenario)


def test_a_prewarmed_model_is_served_although_the_store_has_gone_away() -> None:
    bench = RuntimeBench()
    matrix = image(5, (SIDE, SIDE))
    user = bench.user(bench.publish("m", small.matrix(matrix)))

    async def scenario() -> None:
        bench.runtime.prewarm([user.model])
        assert bench.runtime.models.used > 0, "it counts"
        assert not bench.runtime.models.resident(), "but is no model yet: no key was asked for"
        bench.store.away = True
        np.testing.assert_allclose((await bench.infer(user, {"x": X}))["y"], X @ matrix, rtol=1e-3)

    bench.run(scenario)


def test_a_prewarmed_model_makes_way_for_one_that_somebody_asks_for() -> None:
    bench = RuntimeBench(memory_mb=2)
    matrices = [image(seed, (SIDE, SIDE)) for seed in range(2)]
    users = [bench.user(bench.publish(f"m{i}", small.matrix(np.tile(m, (4, 4))))) for i, m in enumerate(matrices)]

    async def scenario() -> None:
        bench.runtime.prewarm([users[0].model])
        before = bench.runtime.models.used
        assert before > 0
        for number in (1, 0):
            x = np.tile(X, (1, 4))
            found = (await bench.infer(users[number], {"x": x}))["y"]
            np.testing.assert_allclose(found, x @ np.tile(matrices[number], (4, 4)), rtol=1e-3)
            assert bench.runtime.models.used <= bench.options.memory_bytes

    bench.run(scenario)
