"""Slots, a bounded queue and fairness: N worker threads, users in turn, deadlines.

A job is run or abandoned exactly once, so what it holds (a pin, a visit) is always given back: the paper's runtime
leaked a slot with every failed invocation.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from cloister.base.clock import Clock
from cloister.base.errors import Unavailable

T = TypeVar("T")
_SMOOTHING: Final = 0.1  # of the running mean of service times


@dataclass(slots=True)
class Job:
    """Work for a slot.

    :param user: whose it is; users take turns.
    :param run: does it and returns what tells of the result; neither raises.
    :param abandon: called instead when it will never run.
    :param deadline: monotonic time after which it is abandoned with ``deadline-exceeded``.
    """

    user: bytes
    run: Callable[[], Callable[[], None]]
    abandon: Callable[[BaseException], None]
    deadline: float
    cancelled: bool = field(default=False)


class Mailbox:
    """Takes what slots made to the event loop, waking it once for all that is ready. Belongs to one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._woken = False

    def post(self, future: asyncio.Future[T], result: T | None, error: BaseException | None = None) -> None:
        """Settle a future of the loop, from any thread; one that nobody waits for any more is left alone."""
        self._done.append((future, result, error))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: what is appended after this wakes the loop again
        while self._done:
            future, result, error = self._done.popleft()
            if future.cancelled():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)


class Scheduler:
    """Runs jobs on ``slots`` threads.

    :param slots: jobs at once (``--concurrency``).
    :param queue_limit: jobs that may wait; one more is refused.
    """

    def __init__(self, clock: Clock, *, slots: int, queue_limit: int) -> None:
        self._clock = clock
        self.slots = slots
        self._limit = queue_limit
        self._waiting: OrderedDict[bytes, deque[Job]] = OrderedDict()
        self._queued = 0
        self._running = 0
        self._service_s = 0.0
        self._stopping = False
        self._ready = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"slot-{index}", daemon=True) for index in range(slots)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def in_flight(self) -> int:
        """Jobs running or waiting."""
        return self._running + self._queued

    @property
    def queued(self) -> int:
        """Jobs waiting."""
        return self._queued

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._running and not self._queued

    def retry_after(self) -> float:
        """Seconds until a slot may be free for a newcomer, from the mean service time; 0.1 to 30."""
        return min(30.0, max(0.1, (self._queued + 1) * self._service_s / self.slots))

    def submit(self, job: Job) -> None:
        """Queue a job.

        :raises Unavailable: ``runtime-overloaded`` with Retry-After, ``runtime-draining``; the job was not taken.
        """
        with self._ready:
            if self._stopping:
                raise Unavailable("runtime-draining", "this instance is shutting down", retry_after=0.0)
            if self._queued + self._running >= self.slots + self._limit:
                raise Unavailable(
                    "runtime-overloaded", "the queue of this instance is full", retry_after=self.retry_after()
                )
            turn = self._waiting.get(job.user)
            if turn is None:
                turn = self._waiting[job.user] = deque()
            turn.append(job)
            self._queued += 1
            self._ready.notify()

    def stop(self) -> None:
        """Abandon what waits, let what runs finish, and end the threads."""
        with self._ready:
            self._stopping = True
            left = [job for turn in self._waiting.values() for job in turn]
            self._waiting.clear()
            self._queued = 0
            self._ready.notify_all()
        for job in left:
            job.abandon(Unavailable("runtime-draining", "this instance is shutting down", retry_after=0.0))
        for thread in self._threads:
            thread.join()

    def _next(self) -> Job | None:
        with self._ready:
            while not self._queued:
                if self._stopping:
                    return None
                self._ready.wait()
            user, turn = next(iter(self._waiting.items()))
            job = turn.popleft()
            if turn:
                self._waiting.move_to_end(user)  # the next job of this user waits for everybody else's next
            else:
                del self._waiting[user]
            self._queued -= 1
            self._running += 1
            return job

    def _work(self) -> None:
        while (job := self._next()) is not None:
            started = self._clock.monotonic()
            late: Unavailable | None = None
            deliver: Callable[[], None] | None = None
            if job.cancelled or started > job.deadline:
                late = Unavailable("deadline-exceeded", "no slot was free in time", retry_after=self.retry_after())
            else:
                deliver = job.run()
            spent = self._clock.monotonic() - started
            with self._ready:  # the slot is free before anybody hears of the result
                self._running -= 1
                self._service_s += _SMOOTHING * (spent - self._service_s) if self._service_s else spent
            if deliver is not None:
                deliver()
            elif late is not None:
                job.abandon(late)
            del job, deliver  # what they hold is not to be kept until the next job comes
