"""A gateway that starts nothing itself, and a scaler that asks it what is wanted: from zero, up, and back to zero."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.server import HttpServer
from cloister.control.gateway import configuration as config
from cloister.control.gateway.app import Gateway, Ports
from cloister.control.gateway.platforms import make_platform
from cloister.control.gateway.scaler import METRIC, SERVICE
from cloister.testing.gateway import MODEL, sealed
from cloister.testing.instance import StandIn
from cloister.testing.logs import MemoryLog

NAME = "runtimes.test"
PORT = 18555
TOML = f"""
[platform]
kind = "static"
start_timeout_s = 20
[platform.static]
addresses = ["http://{NAME}:{PORT}"]
poll_s = 0.05
scaled = true
[pool]
max_instances = 3
concurrency = 1
keep_alive_s = 0.3
[scaler]
listen = "127.0.0.1:0"
[models."{MODEL}"]
memory_mb = 10
"""


class Deployment:
    """As many stand-ins as the scaler sets, each at an address of its own, and the name leads to all of them."""

    def __init__(self) -> None:
        self.servers: dict[str, HttpServer] = {}
        self.most = 0
        self._count = 1

    async def scale(self, replicas: int) -> None:
        while len(self.servers) < replicas:
            self._count += 1
            host = f"127.88.0.{self._count}"
            self.servers[host] = HttpServer(StandIn(host, delay_s=0.2, concurrency=1), log=MemoryLog())
            await self.servers[host].start(host, PORT)
        while len(self.servers) > replicas:
            host, server = next(iter(self.servers.items()))
            del self.servers[host]
            await server.drain(5.0)
        self.most = max(self.most, replicas)

    async def getaddrinfo(self, host: str, port: int, **_more: Any) -> list[Any]:
        hosts = sorted(self.servers) if host == NAME else [host]
        if not hosts:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in hosts]


async def keda(address: str, deployment: Deployment) -> None:
    """What KEDA and the HPA do together: replicas follow the metric, whose target is 1; none while it is not active."""
    name = METRIC.encode()
    asked = b"\x0a\x00\x12" + bytes([len(name)]) + name
    async with grpc.aio.insecure_channel(address) as channel:
        while True:
            active = await channel.unary_unary(f"/{SERVICE}/IsActive")(b"") == b"\x08\x01"
            answer = await channel.unary_unary(f"/{SERVICE}/GetMetrics")(asked)
            wanted = answer[2 + 2 + len(name) + 1]  # the integer after the metric's name
            await deployment.scale(max(1, wanted) if active else 0)
            await asyncio.sleep(0.05)


def test_requests_bring_instances_and_idleness_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment()
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", deployment.getaddrinfo)

    async def whole() -> None:
        settings = config.parse(TOML.encode())
        log, client = MemoryLog(), AsyncHttpClient()
        platform = make_platform(settings.platform, tmp_path, log)
        await platform.open()
        gateway = Gateway(settings, Ports(platform, None, SystemClock(), log))
        address = await gateway.open()
        scaler = asyncio.ensure_future(keda(gateway.scaler.address, deployment))
        try:
            async with asyncio.timeout(60):
                assert not deployment.servers
                asks = [
                    client.request("POST", address, f"/v1/models/{MODEL}/infer", content=sealed(), deadline_s=30)
                    for _ in range(12)
                ]
                assert [answer.status for answer in await asyncio.gather(*asks)] == [200] * 12
                assert deployment.most >= 2, "more were wanted for twelve at once"
                while deployment.servers:  # noqa: ASYNC110  # what is waited for has no event
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)  # some polls: that an address is gone is noticed by the next one
                answer = await client.request("POST", address, f"/v1/models/{MODEL}/infer", content=sealed())
                assert answer.status == 200
        finally:
            scaler.cancel()
            with suppress(asyncio.CancelledError):
                await scaler
            await client.close()
            await gateway.close(5.0)
            await platform.close()
            await deployment.scale(0)
        assert not [event for event in log.events if event[0] == "internal-error"]

    asyncio.run(whole())  # not uvloop, which resolves names in C, past the stand-in for name servers
