"""Real processes: a gateway, its instances, and what happens when they die under load. Nothing is lost or left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.adapters.http.client import AsyncHttpClient
from cloister.testing.gateway import MODEL, OTHER, answered, sealed
from cloister.testing.gateway_process import GatewayProcess, Load, alive

POOL = "max_instances = 3\nconcurrency = 4\nkeep_alive_s = 60"
AWAY = ("connect-failed", "no-answer", "answer-truncated")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    process = GatewayProcess(tmp_path, "--delay-ms", "5")
    process.configure(POOL)
    yield process
    process.stop()


def test_a_burst_from_zero_is_answered_once_each(gateway: GatewayProcess) -> None:
    gateway.start()

    async def body() -> None:
        client = AsyncHttpClient()
        contents = [sealed(OTHER if n % 4 == 0 else MODEL, size=100 + n) for n in range(200)]

        async def ask(n: int, content: bytes) -> None:
            model = OTHER if n % 4 == 0 else MODEL
            answer = await client.request(
                "POST", gateway.address, f"/v1/models/{model}/infer", content=content, deadline_s=60
            )
            answered(content, answer)

        await asyncio.gather(*(ask(n, content) for n, content in enumerate(contents)))
        await client.close()

    gateway.configure(POOL, limits="user_concurrency = 0")
    gateway.signal(signal.SIGHUP)
    asyncio.run(asyncio.wait_for(body(), 60))
    executed = gateway.executed()
    assert len(executed) == len(set(executed)) == 200
    assert 1 <= len(gateway.instances()) <= 3


def test_instances_killed_under_load_lose_nothing(gateway: GatewayProcess) -> None:
    gateway.start()

    async def body() -> Load:
        load = Load(gateway, callers=12)
        await load.until(50)
        for _ in range(4):
            victim = min(gateway.instances().values())
            os.kill(victim, signal.SIGKILL)
            await load.until(100)
        await load.end()
        return load

    load = asyncio.run(body())
    assert not load.failures
    assert load.answers == load.sent
    assert len(load.pids) >= 4
    assert len(set(gateway.executed())) == load.answers


def test_a_gateway_killed_under_load_takes_its_instances_over(gateway: GatewayProcess) -> None:
    gateway.start()

    async def body() -> Load:
        load = Load(gateway, callers=8, again=AWAY)
        await load.until(50)
        for _ in range(3):
            before = gateway.instances()
            gateway.kill()
            gateway.start()
            await load.until(100)
            assert set(before.items()) <= set(gateway.instances().items())
        await load.end()
        return load

    load = asyncio.run(body())
    assert not load.failures
    assert load.answers == load.sent
    assert len(load.pids) <= 3


def test_configuration_reloaded_under_load_drops_nothing(gateway: GatewayProcess) -> None:
    gateway.start()

    async def body() -> Load:
        load = Load(gateway, callers=8)
        await load.until(50)
        for pool in (
            'max_instances = 2\npacker = "one-to-one"',
            'max_instances = 4\nconcurrency = 2\npacker = "fnpacker"\nbalancer = "tee-aware"',
            'max_instances = 3\nscaler = "concurrency"\nmin_instances = 1',
            POOL,
        ):
            gateway.configure(pool, queue="per_model = 100")
            gateway.signal(signal.SIGHUP)
            await load.until(100)
        gateway.file.write_text("[pool]\nmax_instances = 'many'\n")
        gateway.signal(signal.SIGHUP)
        await load.until(50)
        await load.end()
        return load

    load = asyncio.run(body())
    assert not load.failures
    assert load.answers == load.sent
    names = [event["event"] for event in gateway.log()]
    assert names.count("configuration-reloaded") == 4
    assert names.count("configuration-refused") == 1
    executed = gateway.executed()
    assert len(executed) == len(set(executed)) == load.answers


def test_another_command_line_replaces_instances_without_a_lost_request(gateway: GatewayProcess) -> None:
    gateway.start()

    async def body() -> Load:
        load = Load(gateway, callers=4)
        await load.until(20)
        before = set(gateway.instances().values())
        gateway._command.append("--answer-bytes=100")
        gateway.configure(POOL)
        gateway.signal(signal.SIGHUP)
        async with asyncio.timeout(30):
            while any(alive(pid) for pid in before):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await load.until(20)
        await load.end()
        return load

    load = asyncio.run(body())
    assert not load.failures
    assert load.answers == load.sent


def test_scaling_to_zero_and_back(gateway: GatewayProcess) -> None:
    gateway.configure("max_instances = 3\nkeep_alive_s = 0.5")
    gateway.start()

    async def body() -> None:
        client = AsyncHttpClient()
        seen = set()
        for _ in range(2):
            content = sealed()
            answer = await client.request(
                "POST", gateway.address, f"/v1/models/{MODEL}/infer", content=content, deadline_s=30
            )
            seen.add(answered(content, answer)["pid"])
            async with asyncio.timeout(30):
                while gateway.instances():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert len(seen) == 2
        assert not any(alive(pid) for pid in seen)
        await client.close()

    asyncio.run(body())


def test_a_spare_instance_takes_the_first_request_and_another_is_made_ready(gateway: GatewayProcess) -> None:
    gateway.configure("max_instances = 3\nkeyless = 1")
    gateway.start()

    async def body() -> None:
        client = AsyncHttpClient()

        async def spare() -> int:
            async with asyncio.timeout(30):
                while True:
                    status = json.loads((await client.request("GET", gateway.address, "/v1/status")).body)
                    names = [there["id"] for there in status["instances"] if there["state"] == "spare"]
                    if names:
                        assert not any(there["models"] for there in status["instances"] if there["id"] in names)
                        return gateway.instances()[names[0]]
                    await asyncio.sleep(0.01)

        first = await spare()
        content = sealed()
        target = f"/v1/models/{MODEL}/infer"
        answer = await client.request("POST", gateway.address, target, content=content, deadline_s=30)
        assert answered(content, answer)["pid"] == first
        assert await spare() != first
        await client.close()

    asyncio.run(body())


def test_a_request_under_way_is_finished_before_the_end(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, "--delay-ms", "500")
    gateway.configure(POOL)
    gateway.start()

    async def body() -> None:
        client = AsyncHttpClient()
        content = sealed()
        target = f"/v1/models/{MODEL}/infer"
        task = asyncio.ensure_future(client.request("POST", gateway.address, target, content=content, deadline_s=30))
        async with asyncio.timeout(30):
            while b'"in_flight":1' not in (await client.request("GET", gateway.address, "/v1/status")).body:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        gateway.signal(signal.SIGTERM)
        answered(content, await task)
        await client.close()

    try:
        asyncio.run(body())
        assert gateway.wait() == 0
    finally:
        gateway.stop()
    assert not (tmp_path / "gateway.address").exists()


def test_leaving_instances_running_for_the_next_gateway(gateway: GatewayProcess) -> None:
    command = gateway.file.read_text().split("\n")[1]
    gateway.file.write_text(gateway.file.read_text().replace(command, command + '\non_exit = "leave"'))
    gateway.start()

    async def ask() -> int:
        client = AsyncHttpClient()
        content = sealed()
        answer = await client.request(
            "POST", gateway.address, f"/v1/models/{MODEL}/infer", content=content, deadline_s=30
        )
        await client.close()
        return int(answered(content, answer)["pid"])

    first = asyncio.run(ask())
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    assert alive(first)
    gateway.configure(POOL)
    gateway.start()
    assert asyncio.run(ask()) == first


def test_a_state_folder_has_one_gateway_and_others_stand_beside_it(gateway: GatewayProcess, tmp_path: Path) -> None:
    gateway.start()
    second = subprocess.run(
        [*gateway.command(), "--listen", "127.0.0.1:0"], capture_output=True, text=True, check=False, timeout=60
    )
    assert second.returncode == 1
    assert "platform-in-use" in second.stderr
    folder = tmp_path / "beside"
    folder.mkdir()
    beside = GatewayProcess(folder)
    beside.configure(POOL)
    beside.start()

    async def body() -> None:
        loads = [Load(gateway, callers=2), Load(beside, callers=2)]
        for load in loads:
            await load.until(20)
            await load.end()
            assert not load.failures
        assert not loads[0].pids & loads[1].pids

    asyncio.run(body())
    beside.stop()


def test_a_malformed_configuration_is_told_with_its_setting(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path)
    gateway.configure("max_instance = 3")
    done = subprocess.run([*gateway.command(), "--check"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "pool.max_instance is not a setting [configuration-malformed]" in done.stderr
    assert "max_instances" in done.stderr
