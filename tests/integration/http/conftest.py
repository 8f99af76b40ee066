"""A real server on a real socket, on the loop that production uses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import App
from cloister.adapters.http.server import HttpServer
from cloister.testing.authority import Authority
from cloister.testing.logs import MemoryLog


class Blocking:
    """The blocking client behind the asynchronous one's methods, so that one suite tests both."""

    def __init__(self, **options: Any) -> None:
        self.client = HttpClient(SystemClock(), **options)

    async def request(self, *args: Any, **options: Any) -> Any:
        return await asyncio.to_thread(self.client.request, *args, **options)

    async def close(self) -> None:
        self.client.close()


@pytest.fixture(params=[AsyncHttpClient, Blocking], ids=["async", "blocking"])
def client_class(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, SystemClock().now())


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
