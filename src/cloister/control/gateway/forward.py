"""One attempt after the other: a request to the instance that the dispatcher chose, its answer back as it streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from cloister.adapters.http.client import Call, StreamedAnswer
from cloister.adapters.http.content import Buffer
from cloister.adapters.http.forward import end_to_end
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.problem import from_response
from cloister.base.errors import CloisterError, Unavailable
from cloister.base.limits import KIB
from cloister.control.gateway.conductor import Conductor
from cloister.control.gateway.flight import Flight, Leg

SMALL: Final = 64 * KIB  # an answer up to here is taken whole: one write instead of two, and its slot is free sooner
# What an instance says when it has not begun a request and another one, or a later moment, may be luckier.
ELSEWHERE: Final = frozenset({
    "activation-lost", "instance-missing", "memory-busy", "room-queue-full", "runtime-draining", "runtime-not-ready",
    "runtime-overloaded", "too-many-connections",
})  # fmt: skip
# What it says when it needs a KeyService that is away, for a moment as a rule: no other instance is better off, and
# requests whose keys are there go on.
LATER: Final = frozenset({"keyservice-unavailable"})
MAX_LATER_S: Final = 1.0
CUT: Final = frozenset({"connect-failed", "no-answer", "answer-truncated"})
MIN_REST_S: Final = 0.05
_TRAVELS: Final = ("content-type", "accept", "traceparent", "tracestate")


class Forwarder:
    """Belongs to the conductor's loop.

    :param answer_s: until an instance's answer begins. :param attempts: at most, for one request.
    """

    def __init__(self, conductor: Conductor, *, answer_s: float, attempts: int) -> None:
        self._conductor = conductor
        self.answer_s = answer_s
        self.attempts = attempts

    async def answer(
        self, request: Request, flight: Flight, content: Buffer | AsyncIterator[Buffer], length: int | None
    ) -> Response:
        """Queue the request, send it, and return the answer; its slot is freed whatever happens.

        :param content: the whole body, which can be sent again, or a stream, which cannot.
        :raises CloisterError: whatever stands against an answer.
        """
        conductor = self._conductor
        conductor.begin(flight)
        try:
            while True:
                await conductor.placed(flight)
                if flight.attempts == 1:
                    conductor.telemetry.sent(flight.sent_at - flight.request.arrived)
                response = await self._attempt(request, flight, content, length)
                if response is not None:
                    return response
        except BaseException:
            if flight.leg is not Leg.LANDED:
                conductor.landed(flight, well=False, loaded=not flight.load)
            raise

    async def _attempt(
        self, request: Request, flight: Flight, content: Buffer | AsyncIterator[Buffer], length: int | None
    ) -> Response | None:
        """The answer, or None when the request is in the queue again."""
        conductor = self._conductor
        target = f"{request.path}?{request.query}" if request.query else request.path
        headers = [(name, value) for name in _TRAVELS if (value := request.headers.get(name))]
        call = conductor.client.open(
            "POST", flight.address, target, headers=headers, content=content, length=length, deadline_s=self.answer_s
        )
        whole = not isinstance(content, AsyncIterator)
        try:
            answer = await call.__aenter__()
        except Unavailable as error:
            cut = error.code in CUT
            # A refused connection has taken nothing of the body: even a stream can go elsewhere.
            if flight.attempts < self.attempts and (error.code == "connect-failed" or (cut and whole)):
                conductor.again(flight, broken=True)
                return None
            conductor.failed(flight, broken=cut)
            raise
        try:
            if answer.length is not None and answer.length <= SMALL:
                return await self._small(flight, call, answer, again=whole)
        except BaseException:
            await call.__aexit__(None, None, None)
            raise
        relay = Relay(conductor, flight, call, answer)
        return Response(answer.status, end_to_end(answer.headers), relay, length=answer.length)

    async def _small(self, flight: Flight, call: Call, answer: StreamedAnswer, *, again: bool) -> Response | None:
        conductor = self._conductor
        try:
            async with asyncio.timeout(conductor.client.limits.stall_s):
                content = bytes(await answer.read(SMALL))
        except (Unavailable, TimeoutError) as error:
            cut = Unavailable("answer-truncated", "the instance stopped within its answer")
            if again and flight.attempts < self.attempts:  # nothing of it has left this gateway
                await call.__aexit__(None, None, None)
                conductor.again(flight, broken=True)
                return None
            conductor.failed(flight, broken=True)
            raise cut from error
        await call.__aexit__(None, None, None)
        if answer.status == 503 and again and flight.attempts < self.attempts:
            told = from_response(answer.status, answer.headers, content)
            if told.code in ELSEWHERE:
                rest = told.retry_after if isinstance(told, Unavailable) else None
                conductor.again(flight, broken=False, rest_s=max(MIN_REST_S, rest or 0.0))
                return None
            if told.code in LATER and isinstance(told, Unavailable):
                conductor.landed(flight, well=False, loaded=not flight.load)
                await asyncio.sleep(min(MAX_LATER_S, told.retry_after or MAX_LATER_S))
                conductor.once_more(flight)
                return None
        land(conductor, flight, answer.status)
        return Response(answer.status, end_to_end(answer.headers), content)


class Relay:
    """An answer's pieces as they come. The slot is free at the end, or when the client goes away."""

    __slots__ = ("_answer", "_call", "_conductor", "_flight", "_pieces")

    def __init__(self, conductor: Conductor, flight: Flight, call: Call, answer: StreamedAnswer) -> None:
        self._conductor = conductor
        self._flight = flight
        self._answer = answer
        self._pieces = answer.stream()
        self._call: Call | None = call

    def __aiter__(self) -> Relay:
        return self

    async def __anext__(self) -> memoryview:
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            await self._end(None)
            raise
        except BaseException as error:
            await self._end(error)
            raise

    async def aclose(self) -> None:
        """Nobody wants the rest."""
        await self._end(asyncio.CancelledError())

    async def _end(self, error: BaseException | None) -> None:
        call, self._call = self._call, None
        if call is None:
            return
        try:
            await call.__aexit__(None, None, None)
        finally:
            if error is None:
                land(self._conductor, self._flight, self._answer.status)
            elif isinstance(error, CloisterError):
                self._conductor.failed(self._flight, broken=True)
            else:
                self._conductor.landed(self._flight, well=False)


def land(conductor: Conductor, flight: Flight, status: int) -> None:
    """An answer is complete. One of 500 and above, 503 apart, counts against its instance."""
    if status >= 500 and status != 503:
        conductor.failed(flight, broken=False)
    else:
        conductor.landed(flight, well=status == 200, loaded=status == 200 or not flight.load)
