"""Scenarios with a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from cloister.testing.gateway import GatewayBench, toml
from cloister.testing.instance import StandIn


@pytest.fixture
def scenario() -> Callable[..., None]:
    """Runs ``body(bench)`` with a gateway in this process; nothing may leak."""

    def run(
        body: Callable[[GatewayBench], Awaitable[None]],
        configuration: str | None = None,
        *,
        make: Any = StandIn,
        store: Any = None,
    ) -> None:
        async def whole() -> None:
            await GatewayBench(make, store).run(body, configuration or toml())

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(whole())

    return run
