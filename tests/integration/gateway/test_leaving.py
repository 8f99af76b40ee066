"""Instances that somebody else ends: they finish what they have, nothing new is sent, nothing is sent twice."""

from __future__ import annotations

import asyncio
from typing import Any

from cloister.testing.gateway import GatewayBench, answered, sealed, toml
from cloister.testing.instance import StandIn

TWO = "max_instances = 2\nconcurrency = 4\nkeep_alive_s = 300"


class Held:
    """Stand-ins that answer only when told to; those after the first answer at once."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self._made = 0

    def __call__(self, name: str) -> StandIn:
        there = StandIn(name)
        self._made += 1
        if self._made == 1:
            there.hold = self.go
        return there


def test_one_that_leaves_finishes_what_it_has_and_gets_nothing_new(scenario: Any) -> None:
    held = Held()

    async def body(bench: GatewayBench) -> None:
        contents = [sealed(size=n) for n in range(1, 4)]
        tasks = [asyncio.create_task(bench.send(content)) for content in contents]
        await bench.until(lambda: sum(there.in_flight for there in bench.stand_ins()) == 3)
        (leaver,) = bench.cloud.places
        bench.cloud.leave(leaver)
        for size in range(4, 8):
            content = sealed(size=size)
            assert answered(content, await bench.send(content))["instance"] != leaver
        held.go.set()
        for content, task in zip(contents, tasks, strict=True):
            assert answered(content, await task)["instance"] == leaver
        await bench.until(lambda: leaver not in bench.cloud.places)
        assert "cloister_gateway_retries_total 0" in await bench.get("/metrics")
        await bench.until(lambda: any(name == "instance-gone" for name, *_ in bench.log.events))
        assert [e["reason"] for name, _, e in bench.log.events if name == "instance-gone"] == ["stopped"]

    scenario(body, toml(pool=TWO), make=held)


def test_one_whose_circuit_opened_first_is_not_cut_when_it_leaves(scenario: Any) -> None:
    """New connections are refused before the platform says why; what is under way must not be given up for that."""
    held = Held()

    async def body(bench: GatewayBench) -> None:
        first = sealed(size=1)
        task = asyncio.create_task(bench.send(first))
        await bench.until(lambda: sum(there.in_flight for there in bench.stand_ins()) == 1)
        (leaver,) = bench.cloud.places
        bench.cloud.places[leaver].server.stop_listening()
        second = sealed(size=2)  # needs a connection of its own, which opens the circuit
        other = asyncio.create_task(bench.send(second))
        await bench.until(lambda: any(name == "circuit-open" for name, *_ in bench.log.events))
        bench.cloud.leave(leaver)
        assert answered(second, await other)["instance"] != leaver
        await asyncio.sleep(1.2)  # probes would have given it up by now
        held.go.set()
        assert answered(first, await task)["instance"] == leaver
        await bench.until(lambda: leaver not in bench.cloud.places)

    scenario(body, toml(pool=TWO, circuit="probes = 1\nopen_s = 0.4\nmax_open_s = 0.4"), make=held)


def test_one_that_leaves_idle_goes_at_once(scenario: Any) -> None:
    async def body(bench: GatewayBench) -> None:
        content = sealed()
        leaver = answered(content, await bench.send(content))["instance"]
        bench.cloud.leave(leaver)
        await bench.until(lambda: leaver not in bench.cloud.places)
        assert answered(content, await bench.send(content))["instance"] != leaver

    scenario(body, toml(pool=TWO))
