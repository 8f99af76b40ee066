"""Processor-bound work off the event loop: a bounded pool of threads with a lean way there and back.

    result = await workers.run(decrypt_infer_encrypt, request_body)

``loop.run_in_executor`` makes a second future with a lock and a condition for each call, and wakes the loop once for
each result; here a result is appended to a list and the loop is woken once for all that are ready. Small work (below
some 20 us, such as opening 4 KB) belongs on the loop: handing it over costs more (docs/adr/0003-http.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from cloister.base.errors import Unavailable

T = TypeVar("T")
_STOP: Final = None


class _Job:
    __slots__ = ("args", "call", "error", "future", "result")

    def __init__(self, future: asyncio.Future[Any], call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.future = future
        self.call = call
        self.args = args
        self.result: Any = None
        self.error: BaseException | None = None


class Workers:
    """``threads`` threads and at most ``queue_limit`` calls waiting for one. Belongs to the loop it is made on.

    A call whose caller has gone is dropped if it has not begun; otherwise it runs to its end and its result is dropped.
    """

    def __init__(self, threads: int, queue_limit: int, *, name: str = "worker") -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: deque[_Job] = deque()
        self._limit = threads + queue_limit
        self._count = 0
        self._closed = False
        self._woken = False
        self._alive = threads
        self._ended = asyncio.Event()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def pending(self) -> int:
        """Calls running or waiting."""
        return self._count

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """``call(*args)`` on a thread; raises what it raises.

        :raises Unavailable: ``queue-full``; ``shutting-down`` after :meth:`close`.
        """
        if self._closed:
            raise Unavailable("shutting-down", "this service is shutting down", retry_after=1.0)
        if self._count >= self._limit:
            raise Unavailable("queue-full", "all workers are busy and the queue is full", retry_after=1.0)
        future: asyncio.Future[T] = self._loop.create_future()
        self._count += 1
        self._jobs.put(_Job(future, call, args))
        return await future

    async def close(self) -> None:
        """Finish what was accepted, then end the threads."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(_STOP)
        await self._ended.wait()  # a join before this would block the loop that must take their results
        for thread in self._threads:
            thread.join()
        self._deliver()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not _STOP:
            if not job.future.cancelled():
                try:
                    job.result = job.call(*job.args)
                except BaseException as error:  # noqa: BLE001  # carried to the caller
                    job.error = error
            job.args = ()  # let go of buffers here, before the caller's request ends
            self._done.append(job)
            del job
            if not self._woken:
                self._woken = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    return  # the loop is closed: nobody waits any more
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._thread_ends)

    def _thread_ends(self) -> None:
        self._alive -= 1
        if not self._alive:
            self._ended.set()

    def _deliver(self) -> None:
        self._woken = False  # first: a result appended after this wakes the loop again
        done = self._done
        while done:
            job = done.popleft()
            self._count -= 1
            future = job.future
            if future.cancelled():
                continue
            if job.error is not None:
                future.set_exception(job.error)
            else:
                future.set_result(job.result)
