"""The loop that makes what is there what is wanted: a round when something happens, when a time is over, or again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final

from cloister.adapters.logs import EventLog
from cloister.base.errors import CloisterError, Unavailable
from cloister.platforms.kubernetes.api import jittered
from cloister.platforms.kubernetes.mirror import FIRST_WAIT_S, LAST_WAIT_S

NEWS_WAIT_S: Final = 1.0  # after a failure, for a round that something new asks for
LEAST_WAIT_S: Final = 0.01
MAX_ENDED: Final = 10_000  # what turns up late does so within minutes


class Ended:
    """Instances that are over: what turns up in their name after all is not taken for one that nobody knows."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def add(self, instance: str) -> None:
        """It is over."""
        self._names[instance] = None
        if len(self._names) > MAX_ENDED:
            del self._names[next(iter(self._names))]

    def discard(self, instance: str) -> None:
        """It begins again."""
        self._names.pop(instance, None)

    def __contains__(self, instance: str) -> bool:
        return instance in self._names


class Settler:
    """See the module.

    :param settle: one round; what it raises is logged, and it is tried again, less and less often.
    :param next_at: loop time of the next round if nothing happens before.
    :ivar lock: held during a round.
    """

    def __init__(self, settle: Callable[[], Awaitable[None]], next_at: Callable[[], float], log: EventLog) -> None:
        self._settle = settle
        self._next_at = next_at
        self._log = log
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.lock = asyncio.Lock()

    def wake(self) -> None:
        """Something happened."""
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        wait = FIRST_WAIT_S
        while True:
            await self._news_or(self._next_at() - asyncio.get_running_loop().time())
            self._news.clear()
            try:
                async with self.lock:
                    await self._settle()
                wait = FIRST_WAIT_S
            except CloisterError as error:
                self.complain(error)
                after = error.retry_after if isinstance(error, Unavailable) else None
                rest = jittered(max(wait, min(after or 0.0, LAST_WAIT_S)))
                await asyncio.sleep(min(rest, NEWS_WAIT_S))
                await self._news_or(rest - NEWS_WAIT_S)
                wait = min(LAST_WAIT_S, wait * 2)
                self._news.set()

    def complain(self, error: CloisterError) -> None:
        """Tell the operator what could not be done for now."""
        self._log.event("platform-silent", level="warning", code=error.code, error=error.message, hint=error.hint)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Do something beside, until :meth:`close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def keep(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do something beside until :meth:`close`, whatever happens: a fault in it is logged, and it begins anew."""
        self.spawn(self._again_and_again(work))

    async def close(self) -> None:
        """End everything that was begun here."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _again_and_again(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001  # a fault of ours must not leave instances without a driver
                self._log.event("internal-error", level="error", error=type(error).__name__, where=work.__qualname__)
            await asyncio.sleep(jittered(LAST_WAIT_S))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.event("internal-error", level="error", error=type(error).__name__, where=task.get_name())

    async def _news_or(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(LEAST_WAIT_S, seconds)):
                await self._news.wait()
