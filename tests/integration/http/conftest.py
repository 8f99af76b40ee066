"""A real server on a real socket, on the loop that production uses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import App
from cloister.adapters.http.server import HttpServer
from cloister.testing.logs import MemoryLog


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine to its end on a fresh loop, at most 60 s."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def runner(coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(60):
                return await coroutine

        with asyncio.Runner(loop_factory=factory) as loop:
            return loop.run(bounded())

    return runner


@pytest.fixture
def serving() -> Callable[..., contextlib.AbstractAsyncContextManager[HttpServer]]:
    """``async with serving(app) as server``; no connection and no fault may be left at the end."""

    @contextlib.asynccontextmanager
    async def context(app: App, limits: ServerLimits | None = None, **where: Any) -> AsyncIterator[HttpServer]:
        log = MemoryLog()
        server = HttpServer(app, log=log, limits=limits)
        await server.start(**where)
        server.test_log = log  # type: ignore[attr-defined]
        try:
            yield server
        finally:
            await server.drain(5.0)
        assert server.connections == 0

    return context
