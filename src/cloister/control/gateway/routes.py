"""The gateway's HTTP: sealed requests by their clear header, and what an operator may know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from cloister.adapters.http.body import BodyStream
from cloister.adapters.http.content import Buffer
from cloister.adapters.http.limits import WINDOW
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.operator import OperatorPages
from cloister.adapters.http.problem import from_response
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_HEADER
from cloister.control.gateway.catalogue import Catalogue
from cloister.control.gateway.conductor import Conductor
from cloister.control.gateway.configuration import LimitSettings
from cloister.control.gateway.flight import Flight
from cloister.control.gateway.forward import Forwarder
from cloister.control.gateway.limits import UserLimits
from cloister.control.snapshot import Request as Ask
from cloister.wire.envelope import REQUEST_MAGIC, SEALED_SECRET, RequestPrefix, plaintext_length

PREFIX: Final = "/v1/models/"
_LONGEST_PREFIX: Final = len(REQUEST_MAGIC) + 2 + MAX_HEADER + SEALED_SECRET

Status = Callable[[], dict[str, object]]


def _not_ready() -> Unavailable:
    return Unavailable("gateway-not-ready", "this gateway takes no requests", retry_after=1.0)


class GatewayApp:
    """``cloister.adapters.http.message.App``.

    :param status: the status page. :param metrics: Prometheus text. :param ready: whether requests are taken.
    """

    def __init__(
        self,
        conductor: Conductor,
        catalogue: Catalogue,
        forwarder: Forwarder,
        users: UserLimits,
        *,
        limits: LimitSettings,
        status: Status,
        metrics: Callable[[], bytes],
        ready: Callable[[], bool],
    ) -> None:
        self._conductor = conductor
        self._catalogue = catalogue
        self._forwarder = forwarder
        self._users = users
        self._pages = OperatorPages(ready=ready, not_ready=_not_ready, status=status, metrics=metrics)
        self.limits = limits
        self.held = 0  # bytes of bodies in memory
        self._count = 0

    async def __call__(self, request: Request) -> Response:
        """Route one request."""
        path = request.path
        if path.startswith(PREFIX):
            visit = _Visit(self, self._conductor.clock.monotonic())
            request.on_finish(visit.finish)
            try:
                response = await self._sealed(request, visit)
            except CloisterError as error:
                visit.outcome = error.code
                visit.ours = isinstance(error, Unavailable)
                raise
            except asyncio.CancelledError:
                visit.outcome = "client-gone"
                raise
            visit.outcome = _outcome(response)
            visit.ours = response.status < 400 or response.status >= 500
            return response
        return self._pages.answer(request)

    async def _sealed(self, request: Request, visit: _Visit) -> Response:
        text, _, action = request.path[len(PREFIX) :].rpartition("/")
        if action not in ("infer", "stream"):
            raise InvalidInput("not-found", "models have `infer` and `stream`")
        model = ModelId.parse(text)
        if request.method != "POST":
            raise InvalidInput("method-not-allowed", "sealed requests are posted")
        length = request.content_length
        if length is not None and length > self.limits.max_body:
            raise InvalidInput("body-too-large", f"a sealed request has at most {self.limits.max_body} bytes")
        content: Buffer | AsyncIterator[Buffer]
        whole = action == "infer" and length is not None and length <= self.limits.retry_body
        if whole and length is not None and visit.hold(length):
            body = await request.body(self.limits.retry_body)
            prefix = RequestPrefix.parse(body)
            if prefix is None:
                raise _truncated()
            plaintext_length(body[prefix.length :])  # its frames are complete: an instance would refuse it otherwise
            content = body
        else:
            if not visit.hold(2 * WINDOW):
                raise Unavailable("gateway-busy", "too many bodies are under way", retry_after=1.0)
            stream = request.stream(self.limits.max_body)
            prefix, first = await _begin(stream)
            content = _rest(first, stream)
        header = prefix.header
        if header.model != model:
            raise InvalidInput("model-mismatch", "the request was sealed for another model than the one in its path")
        await self._catalogue.find(model, text)
        now = self._conductor.clock.monotonic()
        self._users.enter(header.user, now)
        visit.user = header.user
        self._count += 1
        ask = Ask(f"r-{self._count}", text, header.user.hex(), visit.began)
        visit.flight = Flight(ask, now + self._conductor.queue.deadline_s)
        return await self._forwarder.answer(request, visit.flight, content, length)

    def leave(self, visit: _Visit) -> None:
        """A request is over, and its answer written."""
        self.held -= visit.held
        if visit.user is not None:
            self._users.leave(visit.user)
        flight = visit.flight
        path = flight.path.value if flight is not None and flight.attempts else "none"
        telemetry, took = self._conductor.telemetry, self._conductor.clock.monotonic() - visit.began
        telemetry.ended(visit.outcome, path, took)
        if flight is not None and visit.ours:
            model = self._conductor.dispatcher.snapshot.models.get(flight.request.model)
            if model is not None and model.slo_ms is not None:
                telemetry.attained(model.id, met=visit.outcome == "ok" and took * 1000 <= model.slo_ms)


class _Visit:
    """What one request takes of the gateway, until it is over.

    :ivar ours: how it ended says something of the service, and nothing of the caller.
    """

    __slots__ = ("_app", "began", "flight", "held", "ours", "outcome", "user")

    def __init__(self, app: GatewayApp, now: float) -> None:
        self._app = app
        self.began = now
        self.flight: Flight | None = None
        self.held = 0
        self.outcome = "internal"
        self.ours = False
        self.user: bytes | None = None

    def hold(self, size: int) -> bool:
        """Take a share of the memory for bodies; False when there is none left."""
        if self._app.held + size > self._app.limits.buffers:
            return False
        self._app.held += size
        self.held = size
        return True

    def finish(self) -> None:
        """Give everything back."""
        self._app.leave(self)


async def _begin(stream: BodyStream) -> tuple[RequestPrefix, bytes]:
    """The clear prefix of a body that streams, and all bytes that came with it."""
    first = bytearray()
    async for piece in stream:
        first += piece
        prefix = RequestPrefix.parse(first)
        if prefix is not None:
            return prefix, bytes(first)
        if len(first) > _LONGEST_PREFIX:
            break
    raise _truncated()


async def _rest(first: bytes, stream: BodyStream) -> AsyncIterator[Buffer]:
    yield first
    async for piece in stream:
        yield piece


def _truncated() -> InvalidInput:
    return InvalidInput("envelope-truncated", "the sealed request ends within its header")


def _outcome(response: Response) -> str:
    if response.status < 400:
        return "ok"
    content = response.content
    if isinstance(content, bytes):
        from cloister.adapters.http.head import Headers

        return from_response(response.status, Headers(response.headers), content).code
    return str(response.status)
