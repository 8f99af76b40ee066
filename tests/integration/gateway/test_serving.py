"""Requests through a gateway in this process: routes, bodies, limits, answers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from cloister.adapters.http.client import AsyncHttpClient
from cloister.base.ids import ModelId
from cloister.testing.gateway import MODEL, OTHER, GatewayBench, answered, problem_code, sealed, toml
from cloister.testing.instance import StandIn
from cloister.testing.modelstore import MemoryStore

MANY = partial(StandIn, concurrency=64)


def test_a_request_starts_an_instance_and_is_answered(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        content = sealed()
        first = answered(content, await bench.send(content))
        again = sealed()
        assert answered(again, await bench.send(again))["instance"] == first["instance"]
        status = await bench.get("/v1/status")
        assert status["states"]["ready"] == 1
        assert status["models"][0]["id"] == str(MODEL)
        text = await bench.get("/metrics")
        assert 'cloister_gateway_requests_total{outcome="ok",path="cold"} 1' in text
        assert 'cloister_gateway_requests_total{outcome="ok",path="hot"} 1' in text
        assert b"u".hex() * 32 not in text + str(status)

    scenario(body)


def test_health_and_readiness(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        assert await bench.get("/healthz") == {"live": True}
        assert await bench.get("/readyz") == {"ready": True}
        answer = await bench.client.request("GET", bench.address, "/v1/secrets")
        assert (answer.status, problem_code(answer)) == (404, "not-found")
        answer = await bench.client.request("POST", bench.address, "/healthz")
        assert (answer.status, problem_code(answer)) == (405, "method-not-allowed")

    scenario(body)


@pytest.mark.parametrize(
    ("content", "target", "wanted"),
    [
        (b"", None, "envelope-truncated"),
        (b"CLQ1", None, "envelope-truncated"),
        (b"GARBAGE" * 100, None, "envelope-malformed"),
        (b"CLQ1\xff\xff" + bytes(100), None, "envelope-malformed"),
        (b"CLQ1\x00\x04\xff\xff\xff\xff", None, "cbor-malformed"),
        (sealed()[:-1], None, "envelope-truncated"),
        (sealed() + b"x", None, "envelope-trailing"),
        (sealed(OTHER), None, "model-mismatch"),
        (sealed(), "/v1/models/xyz/infer", "id-malformed"),
        (sealed(), f"/v1/models/{MODEL}/train", "not-found"),
        (sealed(), f"/v1/models/{bytes(32).hex()}/../infer", "name-malformed"),
    ],
)
def test_malformed_requests_never_reach_an_instance(
    scenario: Any, content: bytes, target: str | None, wanted: str
) -> None:
    async def body(bench: GatewayBench) -> None:
        answer = await bench.send(content, target=target)
        assert 400 <= answer.status < 500
        assert problem_code(answer) == wanted
        assert not bench.cloud.started

    scenario(body)


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        answer = await bench.send(sealed(size=200_000))
        assert (answer.status, problem_code(answer)) == (413, "body-too-large")
        assert not bench.cloud.started

    scenario(body, toml(limits="max_body_mb = 0.1"))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_streams_through_and_so_does_its_answer(scenario: Any, chunked: bool) -> None:
    content = sealed(size=40_000_000)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1_000_000):
            yield content[start : start + 1_000_000]

    async def body(bench: GatewayBench) -> None:
        answer = await bench.send(pieces(), length=None if chunked else len(content))
        answered(content, answer)
        assert len(answer.body) > 20_000_000
        assert bench.gateway.buffers.idle_bytes < 8_000_000  # windows, not bodies

    scenario(body, make=partial(StandIn, answer_bytes=20_000_000))


def test_a_malformed_stream_never_reaches_an_instance(scenario: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"\0" * 1000

    async def body(bench: GatewayBench) -> None:
        answer = await bench.send(pieces())
        assert problem_code(answer) == "envelope-malformed"
        assert not bench.cloud.started

    scenario(body)


def test_sixty_four_requests_at_once_are_each_answered_right(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        contents = [sealed(MODEL if n % 2 else OTHER, size=1 + 997 * n) for n in range(64)]
        answers = await asyncio.gather(*(bench.send(c, MODEL if n % 2 else OTHER) for n, c in enumerate(contents)))
        for content, answer in zip(contents, answers, strict=True):
            answered(content, answer)
        assert len(bench.cloud.started) <= 2
        assert all(there.in_flight_max <= 4 for there in bench.stand_ins())

    scenario(body, make=partial(StandIn, delay_s=0.005))


def test_a_full_queue_is_told_with_retry_after(scenario: Any) -> None:
    hold = asyncio.Event()

    def make(name: str) -> StandIn:
        there = StandIn(name, concurrency=1)
        there.hold = hold
        return there

    async def body(bench: GatewayBench) -> None:
        under_way = [asyncio.create_task(bench.send(sealed()))]
        await bench.until(lambda: sum(bench.load().values()) == 1)
        under_way += [asyncio.create_task(bench.send(sealed())) for _ in range(2)]
        await bench.until(lambda: bench.gateway.dispatcher.snapshot.backlog == 2)
        refused = await bench.send(sealed())
        assert (refused.status, problem_code(refused)) == (503, "queue-full")
        assert int(refused.headers.get("retry-after")) >= 1
        hold.set()
        assert {answer.status for answer in await asyncio.gather(*under_way)} == {200}

    scenario(body, toml(pool="max_instances = 1\nconcurrency = 1", queue="per_model = 2"), make=make)


def test_a_request_that_waits_too_long_is_told_with_retry_after(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        bench.cloud.comes_up = False
        answer = await bench.send(sealed())
        assert (answer.status, problem_code(answer)) == (503, "queue-timeout")
        assert int(answer.headers.get("retry-after")) >= 1
        bench.cloud.let_up()
        content = sealed()
        answered(content, await bench.send(content))

    scenario(body, toml(queue="deadline_s = 0.2"))


def test_users_take_turns(scenario: Any) -> None:
    order: list[str] = []
    hold = asyncio.Event()

    def make(name: str) -> StandIn:
        there = StandIn(name, concurrency=1)
        there.hold = hold
        return there

    async def body(bench: GatewayBench) -> None:
        async def ask(user: bytes) -> None:
            content = sealed(user=user * 32)
            answered(content, await bench.send(content))
            order.append(user.decode())

        tasks = [asyncio.create_task(ask(b"a")) for _ in range(6)]
        await bench.until(lambda: bench.gateway.dispatcher.snapshot.backlog == 5)
        tasks += [asyncio.create_task(ask(b"b")) for _ in range(2)]
        await bench.until(lambda: bench.gateway.dispatcher.snapshot.backlog == 7)
        hold.set()
        await asyncio.gather(*tasks)
        assert "b" in order[:3]
        assert order.index("b", order.index("b") + 1) <= 5

    scenario(body, toml(pool="max_instances = 1\nconcurrency = 1"), make=make)


def test_limits_of_a_user_are_his_alone(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        statuses = [(await bench.send(sealed(user=b"a" * 32))) for _ in range(4)]
        assert [answer.status for answer in statuses] == [200, 200, 429, 429]
        assert problem_code(statuses[2]) == "rate-limited"
        assert int(statuses[2].headers.get("retry-after")) >= 1
        assert (await bench.send(sealed(user=b"b" * 32))).status == 200

    scenario(body, toml(limits="user_rate_per_s = 0.001\nuser_burst = 2"))


def test_requests_of_a_user_at_a_time_are_bounded(scenario: Any) -> None:
    hold = asyncio.Event()

    def make(name: str) -> StandIn:
        there = StandIn(name)
        there.hold = hold
        return there

    async def body(bench: GatewayBench) -> None:
        first = asyncio.create_task(bench.send(sealed()))
        await bench.until(lambda: bool(bench.gateway.conductor.flights))
        second = await bench.send(sealed())
        assert (second.status, problem_code(second)) == (429, "user-concurrency")
        hold.set()
        assert (await first).status == 200

    scenario(body, toml(limits="user_concurrency = 1"), make=make)


def test_unknown_models_are_looked_up_in_the_store(scenario: Any) -> None:
    from cloister.crypto.sign import SigningKey
    from cloister.testing.published import publish

    store = MemoryStore()
    owner = SigningKey.generate()
    published = publish(store, owner, "found", {"weights": bytes(3_000_000)}, b"index")
    there = published.place.model

    async def body(bench: GatewayBench) -> None:
        content = sealed(there)
        answered(content, await bench.send(content, there))
        known = bench.gateway.dispatcher.snapshot.models[str(there)]
        assert 10 < known.memory_mb < 14
        assert known.owner == there.owner.hex()
        missing = ModelId(there.owner, "missing")
        answer = await bench.send(sealed(missing), missing)
        assert (answer.status, problem_code(answer)) == (404, "model-not-found")
        store.away = True
        other = ModelId(there.owner, "other")
        answer = await bench.send(sealed(other), other)
        assert (answer.status, problem_code(answer)) == (503, "store-unavailable")

    scenario(body, toml(models=()), store=store)


def test_a_model_that_fits_no_instance_is_told_at_once(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        answer = await bench.send(sealed())
        assert (answer.status, problem_code(answer)) == (503, "model-too-large")
        assert not bench.cloud.started

    scenario(body, toml(pool="memory_mb = 5"))


def test_a_client_that_goes_away_frees_its_slot(scenario: Any) -> None:
    hold = asyncio.Event()

    def make(name: str) -> StandIn:
        there = StandIn(name, concurrency=1)
        there.hold = hold
        return there

    async def body(bench: GatewayBench) -> None:
        impatient = AsyncHttpClient()
        where = f"/v1/models/{MODEL}/infer"
        sent = asyncio.create_task(impatient.request("POST", bench.address, where, content=sealed()))
        await bench.until(lambda: sum(there.in_flight for there in bench.stand_ins()) == 1)
        queued = asyncio.create_task(impatient.request("POST", bench.address, where, content=sealed()))
        await bench.until(lambda: bench.gateway.dispatcher.snapshot.backlog == 1)
        for task in (queued, sent):
            task.cancel()
        await asyncio.gather(sent, queued, return_exceptions=True)
        await impatient.close()
        await bench.until(lambda: not bench.gateway.conductor.flights)
        await bench.until(lambda: not any(there.in_flight for there in bench.stand_ins()))
        hold.set()
        content = sealed()
        answered(content, await bench.send(content))
        assert 'outcome="client-gone"' in await bench.get("/metrics")

    scenario(body, toml(pool="max_instances = 1\nconcurrency = 1"), make=make)


def test_a_slow_client_holds_up_nobody_else(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        content = sealed(size=1_000_000)
        slow = asyncio.Event()

        async def pieces() -> AsyncIterator[bytes]:
            yield content[:500_000]
            await slow.wait()
            yield content[500_000:]

        first = asyncio.create_task(bench.send(pieces(), length=len(content)))
        await bench.until(lambda: bench.gateway.app.held > 0)
        for _ in range(20):
            other = sealed()
            answered(other, await bench.send(other))
        assert not first.done()
        slow.set()
        answered(content, await first)

    scenario(body, toml(pool="max_instances = 1\nconcurrency = 1"))


def test_the_answer_is_passed_on_byte_for_byte_whatever_its_size(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        for size in (0, 60_000, 70_000, 5_000_000):
            for there in bench.stand_ins():
                there.answer_bytes = size
            content = sealed()
            answer = await bench.send(content)
            answered(content, answer)
            assert answer.body[4:36] == hashlib.sha256(content).digest()

    scenario(body, make=MANY)


def test_bodies_beyond_the_memory_for_them_stream_and_beyond_that_are_refused(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        bench.gateway.app.held += 700_000
        content = sealed(size=600_000)
        answered(content, await bench.send(content))  # its window of 512 KiB cannot be had beside 600 kB
        bench.gateway.app.held += 400_000
        answer = await bench.send(content)
        assert (answer.status, problem_code(answer)) == (503, "gateway-busy")
        bench.gateway.app.held -= 1_100_000

    scenario(body, toml(limits="buffers_mb = 1.25"))
