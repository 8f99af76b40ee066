"""Composition of the action: listens at once, becomes a runtime at ``/init``, drains at SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import App
from cloister.adapters.http.server import HttpServer
from cloister.adapters.logs import EventLog
from cloister.adapters.payloads import HttpPayloadStore, PayloadStore
from cloister.base.clock import Clock
from cloister.base.errors import Unavailable
from cloister.runtime.app import Listen, housekeeping, process_age
from cloister.runtime.core import Runtime
from cloister.runtime.openwhisk.protocol import MAX_RESULT
from cloister.runtime.openwhisk.service import MAX_INIT, ActionApp


@dataclass(frozen=True, slots=True)
class Setting:
    """What ``/init`` decides of an action.

    :param payloads: URL of the store for large bodies; empty for none.
    :param max_result: bytes of a result that the platform carries.
    """

    runtime: Runtime
    payloads: str
    max_result: int = MAX_RESULT


class Action:
    """One action process: a server, and a runtime once it is initialised.

    :param compose: makes the runtime from the init parameters; called once, in a thread.
    """

    def __init__(
        self,
        compose: Callable[[Mapping[str, str]], Setting],
        *,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._compose = compose
        self._runtime: Runtime | None = None
        self._house: asyncio.Task[None] | None = None
        self._client = AsyncHttpClient()
        self._store: PayloadStore | None = None
        self._app = ActionApp(
            self._begin,
            clock=clock,
            log=log,
            payloads=lambda: self._store,
            stopping=lambda: self.server.draining,
        )
        self.server = HttpServer(self._app, log=log, limits=ServerLimits(max_body=MAX_INIT))

    async def _begin(self, environment: Mapping[str, str]) -> App:
        loop = asyncio.get_running_loop()
        setting = await loop.run_in_executor(None, self._compose, environment)
        runtime = self._runtime = setting.runtime
        self._app.max_result = setting.max_result
        if setting.payloads:
            self._store = HttpPayloadStore(self._client, setting.payloads)
        await loop.run_in_executor(runtime.executor, partial(runtime.connect, process_age()))
        if not runtime.session.ready:  # the platform tries again with another container; what is wrong is in the log
            raise Unavailable(
                "runtime-not-ready",
                "the KeyService did not accept this runtime, or could not be reached",
                hint="The action's log says why (attest-failed).",
            )
        done: asyncio.Future[None] = loop.create_future()
        done.set_result(None)
        self._house = asyncio.ensure_future(housekeeping(runtime, done))
        return runtime.app

    async def close(self, drain_s: float) -> int:
        """Finish what is under way; returns how many activations were cut."""
        cut = await self.server.drain(drain_s)
        if self._house is not None:
            self._house.cancel()
            await asyncio.gather(self._house, return_exceptions=True)
        if self._runtime is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._runtime.stop)
        await self._client.close()
        return cut


async def run_until_told(
    make: Callable[[], Action], listen: Listen, announce: Callable[[str], None], *, drain_s: float
) -> int:
    """Serve until SIGTERM or SIGINT; returns how many activations were cut.

    :raises Unavailable: ``listen-failed``.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    action = make()
    await action.server.start(listen.host, listen.port, path=listen.path)
    announce(action.server.address)
    await stopping.wait()
    return await action.close(drain_s)
