"""Instances that die, fail, hang or never come, and gateways that share a cloud; all in this process."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from cloister.adapters.clock import SystemClock
from cloister.base.errors import Unavailable
from cloister.control.gateway import configuration as config
from cloister.control.gateway.app import Gateway, Ports
from cloister.control.gateway.telemetry import Telemetry
from cloister.testing.gateway import MODEL, OTHER, GatewayBench, answered, problem_code, sealed, toml
from cloister.testing.instance import StandIn
from cloister.testing.platform import FakePlatform


class Held:
    """Stand-ins that answer only when told to."""

    def __init__(self, **options: Any) -> None:
        self.go = asyncio.Event()
        self._options = options

    def __call__(self, name: str) -> StandIn:
        there = StandIn(name, **self._options)
        there.hold = self.go
        return there


def test_requests_of_an_instance_that_died_are_answered_by_another(scenario: Any) -> None:
    held = Held()

    async def body(bench: GatewayBench) -> None:
        contents = [sealed(size=n) for n in range(1, 5)]
        tasks = [asyncio.create_task(bench.send(content)) for content in contents]
        await bench.until(lambda: sum(there.in_flight for there in bench.stand_ins()) == 4)
        (victim,) = bench.cloud.places
        await bench.cloud.kill(victim)
        held.go.set()
        for content, task in zip(contents, tasks, strict=True):
            assert answered(content, await task)["instance"] != victim
        assert "cloister_gateway_retries_total 4" in await bench.get("/metrics")

    scenario(body, make=held)


def test_a_stream_is_sent_once_and_its_loss_is_told(scenario: Any) -> None:
    held = Held()

    async def body(bench: GatewayBench) -> None:
        content = sealed(size=2_000_000)
        task = asyncio.create_task(bench.send(content))
        await bench.until(lambda: sum(there.received for there in bench.stand_ins()) == 1)
        (victim,) = bench.cloud.places
        await bench.cloud.kill(victim)
        answer = await task
        assert (answer.status, problem_code(answer)) == (502, "no-answer")
        held.go.set()
        again = sealed()
        answered(again, await bench.send(again))

    scenario(body, toml(limits="retry_body_mb = 1"), make=held)


def test_an_instance_that_dies_again_and_again_is_not_tried_for_ever(scenario: Any) -> None:
    held = Held()

    async def body(bench: GatewayBench) -> None:
        task = asyncio.create_task(bench.send(sealed()))
        for _ in range(3):
            await bench.until(lambda: sum(there.in_flight for there in bench.stand_ins()) == 1)
            (victim,) = bench.cloud.places
            await bench.cloud.kill(victim)
        answer = await task
        assert (answer.status, problem_code(answer)) == (502, "no-answer")
        held.go.set()

    scenario(body, toml(circuit="attempts = 3"), make=held)


def test_an_answer_that_breaks_off_breaks_off(scenario: Any) -> None:
    """Bytes have left: a second answer behind half of the first would be neither."""

    async def body(bench: GatewayBench) -> None:
        content = sealed()
        answered(content, await bench.send(content))
        (victim,) = bench.cloud.places
        bench.cloud.stand_in(victim).answer_bytes = 200_000_000
        async with bench.client.open(
            "POST", bench.address, f"/v1/models/{MODEL}/infer", content=sealed(), deadline_s=20
        ) as answer:
            pieces = answer.stream()
            await anext(pieces)
            await bench.cloud.kill(victim)
            with pytest.raises(Unavailable) as caught:
                async for _ in pieces:
                    pass
        assert caught.value.code == "answer-truncated"

    scenario(body)


def test_a_failing_instance_is_left_alone_and_comes_back(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        first = answered(content := sealed(), await bench.send(content))["instance"]
        bench.cloud.stand_in(first).fail_with = Unavailable("deadline-exceeded", "too slow")
        for _ in range(2):
            assert (await bench.send(sealed())).status == 504
        await bench.until(lambda: any(e[0] == "circuit-closed" for e in bench.log.events))
        bench.cloud.stand_in(first).fail_with = None
        answered(content := sealed(), await bench.send(content))
        assert "cloister_gateway_circuits_opened_total 1" in await bench.get("/metrics")

    scenario(body, toml(circuit="failures = 2\nopen_s = 0.01"))


def test_an_overloaded_instance_rests_and_its_request_goes_elsewhere(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        first = answered(content := sealed(), await bench.send(content))["instance"]
        bench.cloud.stand_in(first).fail_with = Unavailable("runtime-overloaded", "full", retry_after=0.01)
        task = asyncio.create_task(bench.send(content := sealed()))
        await bench.until(lambda: any(e[0] == "circuit-open" for e in bench.log.events))
        bench.cloud.stand_in(first).fail_with = None
        answered(content, await task)

    scenario(body)


def test_what_an_instance_says_again_and_again_is_passed_on(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        first = answered(content := sealed(), await bench.send(content))["instance"]
        bench.cloud.stand_in(first).fail_with = Unavailable("runtime-overloaded", "full", retry_after=7.0)
        answer = await bench.send(sealed())
        assert (answer.status, problem_code(answer)) == (503, "runtime-overloaded")
        assert answer.headers.get("retry-after") == "7"

    scenario(body, toml(circuit="attempts = 2\nmax_open_s = 0.05", pool="max_instances = 1"))


def test_one_that_does_not_answer_any_more_is_replaced(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        first = answered(content := sealed(), await bench.send(content))["instance"]
        there = bench.cloud.stand_in(first)
        there.ready = False
        there.fail_with = Unavailable("runtime-not-ready", "lost its session", retry_after=0.01)
        content = sealed()
        second = answered(content, await bench.send(content))["instance"]
        assert second != first
        await bench.until(lambda: first not in bench.cloud.places)

    scenario(body, toml(circuit="probes = 2\nopen_s = 0.01", pool="max_instances = 1"))


def test_a_start_that_fails_is_tried_again_later_and_later(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        bench.cloud.start_error = Unavailable("platform-full", "no room")
        task = asyncio.create_task(bench.send(content := sealed()))
        await bench.until(lambda: [e[0] for e in bench.log.events].count("instance-not-started") == 2)
        bench.cloud.start_error = None
        answered(content, await task)

    scenario(body, toml(pool="max_instances = 1"))


def test_a_gateway_that_comes_later_knows_what_instances_hold(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        first = answered(content := sealed(), await bench.send(content))["instance"]
        await bench.shut()
        await bench.open(toml())
        await bench.until(lambda: set(bench.load()) == {first})
        await bench.gateway.watch.tick()
        assert set(bench.gateway.dispatcher.snapshot.instances[first].residents) == {str(MODEL)}
        content = sealed()
        assert answered(content, await bench.send(content))["instance"] == first
        assert 'outcome="ok",path="hot"' in await bench.get("/metrics")
        assert bench.cloud.started == [first]

    scenario(body)


def test_what_another_packer_left_behind_goes_when_it_is_empty(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        first = answered(content := sealed(), await bench.send(content))["instance"]
        await bench.shut()
        await bench.open(toml(pool='packer = "one-to-one"'))
        await bench.until(lambda: not bench.cloud.places)
        second = answered(content := sealed(), await bench.send(content))["instance"]
        assert second != first

    scenario(body)


def test_gateways_side_by_side_find_each_others_instances(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        ports = Ports(FakePlatform(bench.cloud), None, SystemClock(), bench.log)
        beside = Gateway(config.parse(toml().encode()), ports)
        address = await beside.open()
        try:
            first = answered(content := sealed(), await bench.send(content))["instance"]
            await bench.until(lambda: first in beside.dispatcher.snapshot.instances)
            answer = await bench.client.request(
                "POST", address, f"/v1/models/{MODEL}/infer", content=(content := sealed())
            )
            assert answered(content, answer)["instance"] == first
            await bench.cloud.kill(first)
            await bench.until(lambda: first not in beside.dispatcher.snapshot.instances)
            await bench.until(lambda: first not in bench.gateway.dispatcher.snapshot.instances)
        finally:
            await beside.close(5.0)
            await ports.platform.close()

    scenario(body)


def test_events_that_were_missed_are_made_up_for(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        first = answered(content := sealed(), await bench.send(content))["instance"]
        place = bench.cloud.places.pop(first)  # it ends and nobody says so
        await place.server.close()
        bench.gateway.conductor.places[first].launched_at = 0.0
        await bench.gateway.watch._recount()
        assert first not in bench.gateway.dispatcher.snapshot.instances
        answered(content := sealed(), await bench.send(content))

    scenario(body)


def test_stages_of_instances_are_summed_up_and_outlive_them() -> None:
    telemetry = Telemetry()
    line = 'cloister_stage_seconds_{}{{stage="inference",path="hot"}} {}\n'
    telemetry.stages("a", line.format("sum", 1.5) + line.format("count", 3))
    telemetry.stages("a", line.format("sum", 2.0) + line.format("count", 4) + "garbage{\n")
    telemetry.stages("b", line.format("sum", 1.0) + line.format("count", 1))
    telemetry.forget(set())
    text = telemetry.registry.exposition().decode()
    assert 'cloister_gateway_stage_seconds_total{stage="inference",path="hot"} 3' in text
    assert 'cloister_gateway_stages_total{stage="inference",path="hot"} 5' in text


def test_what_was_measured_reaches_the_policies(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        for model in (MODEL, MODEL, OTHER, OTHER):
            answered(content := sealed(model), await bench.send(content, model))
        await bench.gateway.watch.tick()
        model = bench.gateway.dispatcher.snapshot.models[str(MODEL)]
        assert 0.05 < model.load_s < 1.0
        assert 0.01 < model.service_s < 0.05
        assert model.start_s < 0.9

    scenario(body, make=partial(StandIn, delay_s=0.01, load_s=0.08))


def test_a_request_waits_out_a_short_absence_of_the_keyservice(scenario: Any) -> None:
    """Its instance is not to blame, so no circuit opens, and others that have their keys are served meanwhile."""
    away = Unavailable("keyservice-unavailable", "the KeyService gives no answer", retry_after=0.3)

    async def body(bench: GatewayBench) -> None:
        first = sealed()
        answered(first, await bench.send(first))
        (there,) = bench.stand_ins()
        there.fail_with = away
        content = sealed(size=1)
        task = asyncio.create_task(bench.send(content))
        await bench.until(lambda: there.received == 2)
        there.fail_with = None
        other = sealed(size=2)
        answered(other, await bench.send(other))
        assert not task.done()
        answered(content, await task)
        assert "cloister_gateway_retries_total 1" in await bench.get("/metrics")
        there.fail_with = away
        answer = await bench.send(sealed(size=3))
        assert (answer.status, problem_code(answer)) == (503, "keyservice-unavailable")
        assert there.received == 3 + 1 + 3  # as often as a request is tried at all
        assert not [name for name, *_ in bench.log.events if name == "circuit-open"]

    scenario(body)
