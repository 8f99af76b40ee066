"""A gateway in this process, before stand-ins for runtimes in this process: for tests and benchmarks."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.answer import Answer
from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.content import Content
from cloister.adapters.modelstore.port import ModelStore
from cloister.base.ids import ModelId
from cloister.base.limits import MIB
from cloister.control.gateway import configuration as config
from cloister.control.gateway.app import Gateway, Ports
from cloister.crypto.box import TAG_LENGTH
from cloister.testing.instance import StandIn
from cloister.testing.logs import MemoryLog
from cloister.testing.platform import FakeCloud, FakePlatform
from cloister.wire.envelope import REQUEST_MAGIC, RESPONSE_MAGIC, RequestHeader, frame_head
from cloister.wire.statements import REQUEST_KEY

MODEL: Final = ModelId(bytes(range(32)), "patients")
OTHER: Final = ModelId(bytes(32), "other")
USER: Final = b"u" * 32


def sealed(model: ModelId = MODEL, *, size: int = 4096, user: bytes = USER) -> bytes:
    """A request whose clear parts are right, around ``size`` bytes of zeros: a stand-in does not look inside."""
    header = RequestHeader(REQUEST_KEY, model, user, bytes(32), secrets.token_bytes(32), 1_800_000_000).encode()
    parts = [REQUEST_MAGIC, len(header).to_bytes(2, "big"), header]
    left = size
    while True:
        length = min(left, MIB)
        left -= length
        parts += [frame_head(length, last=not left), bytes(length + TAG_LENGTH)]
        if not left:
            return b"".join(parts)


def toml(
    more: Mapping[str, str] = MappingProxyType({}),
    *,
    command: Sequence[str] = ("true",),
    models: Iterable[ModelId] = (MODEL, OTHER),
    pool: str = "max_instances = 2",
    **sections: str,
) -> str:
    """A configuration: the lines of ``[pool]``, and of further sections by name, in either form."""
    lines = ["[platform]", f"command = {json.dumps(list(command))}", "[pool]", pool]
    for name, text in (*more.items(), *sections.items()):
        lines += [f"[{name}]", text]
    for model in models:
        lines += [f'[models."{model}"]', "memory_mb = 10"]
    return "\n".join(lines)


class GatewayBench:
    """One gateway and its cloud.

    :param make: makes the stand-in of each instance.
    """

    def __init__(self, make: Callable[[str], StandIn] = StandIn, store: ModelStore | None = None) -> None:
        self.cloud = FakeCloud(make)
        self.client = AsyncHttpClient()
        self.log = MemoryLog()
        self.store = store
        self.gateway: Gateway
        self.address = ""

    async def open(self, configuration: str) -> Gateway:
        """A gateway, beside or after others."""
        ports = Ports(FakePlatform(self.cloud), self.store, SystemClock(), self.log)
        self.gateway = Gateway(config.parse(configuration.encode()), ports)
        self.address = await self.gateway.open()
        return self.gateway

    async def shut(self, drain_s: float = 5.0) -> int:
        """End the gateway; instances go on."""
        cut = await self.gateway.close(drain_s)
        await self.gateway.ports.platform.close()
        return cut

    async def send(
        self, content: Content, model: ModelId = MODEL, *, target: str | None = None, length: int | None = None
    ) -> Answer:
        """One sealed request."""
        where = target or f"/v1/models/{model}/infer"
        return await self.client.request("POST", self.address, where, content=content, length=length, deadline_s=30)

    async def get(self, target: str) -> Any:
        """JSON or text."""
        answer = await self.client.request("GET", self.address, target)
        return json.loads(answer.body) if "json" in answer.headers.get("content-type") else answer.body.decode()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to become true."""
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110  # what is waited for has no event
                await asyncio.sleep(0.005)

    def load(self) -> dict[str, int]:
        """Requests on each instance, as the dispatcher counts."""
        snapshot = self.gateway.dispatcher.snapshot
        return {name: snapshot.instances[name].in_flight for name in snapshot.order}

    def stand_ins(self) -> list[StandIn]:
        """Of instances that run."""
        return [place.stand_in for place in self.cloud.places.values()]

    async def run(self, body: Callable[[GatewayBench], Awaitable[None]], configuration: str) -> None:
        """Run a scenario, check that no slot, queue place or buffer leaked, and end everything."""
        await self.open(configuration)
        try:
            async with asyncio.timeout(60):
                await body(self)
                gateway = self.gateway
                await self.until(lambda: not gateway.conductor.flights and not gateway.app.held)
                await self.until(lambda: set(self.load().values()) <= {0})
                backlog = gateway.dispatcher.snapshot.backlog
                faults = [event for event in self.log.events if event[0] == "internal-error"]
            assert not backlog and not faults, (backlog, faults)  # noqa: S101, PT018
        finally:
            await self.client.close()
            await self.shut()
            await self.cloud.close()


def answered(content: bytes, answer: Answer) -> dict[str, Any]:
    """Check that this answers exactly that; returns who answered."""
    assert answer.status == 200, answer.body  # noqa: S101
    assert answer.body[:4] == RESPONSE_MAGIC  # noqa: S101
    assert answer.body[4:36] == hashlib.sha256(content).digest()  # noqa: S101
    who: dict[str, Any] = json.loads(answer.body[36:].rstrip(b"\0"))
    return who


def problem_code(answer: Answer) -> str:
    """The stable code of a problem."""
    return str(json.loads(answer.body)["type"]).removeprefix("urn:cloister:error:")
