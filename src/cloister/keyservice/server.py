"""The KeyService over HTTP (spec/protocol.md, appendix B). Whatever needs a key or the disk runs on threads."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar, final

from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.adapters.http.workers import Workers
from cloister.adapters.keyservice import BUNDLE_PATH
from cloister.adapters.logs import EventLog
from cloister.adapters.metrics import CONTENT_TYPE
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.limits import KIB, MAX_CALL, MAX_REPLICA_REQUEST, MAX_REPLICAS
from cloister.keyservice.keeper import Keeper
from cloister.keyservice.replication.handover import (
    CHALLENGE_PATH,
    DESCRIPTION_PATH,
    HANDOVER_PATH,
    LEADER_CHALLENGE_PATH,
    LEADER_HANDOVER_PATH,
)
from cloister.keyservice.replication.peers import EXCHANGE_PATH, ROLE_PATH, Forwarder
from cloister.keyservice.replication.replica import LEADER, Replica
from cloister.keyservice.service import NONCE_LENGTH, KeyService, call_refused
from cloister.keyservice.telemetry import Telemetry

if TYPE_CHECKING:
    import ssl

THREADS: Final = 16  # calls wait for the disk, not for each other: those that wait share one fsync
QUEUE: Final = 256  # calls waiting for a thread; one more is answered 503
_UPKEEP_S: Final = 5.0
_MEDIA_TYPE: Final = (("content-type", "application/octet-stream"), ("cache-control", "no-store"))

_EXCHANGES: Final = 2 * MAX_REPLICAS  # each of the others is answered late once, and may ask once more meanwhile
_OWN: Final = frozenset({
    DESCRIPTION_PATH, CHALLENGE_PATH, HANDOVER_PATH, EXCHANGE_PATH, ROLE_PATH, "/healthz", "/metrics"
})  # fmt: skip  # what each replica answers for itself

# Calls and replies are small, so whoever takes longer holds a place that somebody else could have.
LIMITS: Final = ServerLimits(
    max_body=MAX_CALL + KIB,
    max_connections=1024,
    head_s=5.0,
    body_idle_s=5.0,
    min_body_rate=8 * KIB,
    write_stall_s=10.0,
)

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


@final
class KeyServiceServer:
    """One KeyService on one listening address; all methods belong to one event loop."""

    def __init__(
        self,
        service: KeyService,
        telemetry: Telemetry,
        *,
        log: EventLog,
        keeper: Keeper | None = None,
        replica: Replica | None = None,
        limits: ServerLimits = LIMITS,
    ) -> None:
        self._service = service
        self._keeper = keeper
        self._replica = replica
        self._forwarder: Forwarder | None = None if replica is None else Forwarder(replica)
        self._telemetry = telemetry
        self._log = log
        self._workers = Workers(THREADS, QUEUE, name="keyservice")
        self._exchanges = None if replica is None else Workers(_EXCHANGES, QUEUE, name="replica")
        self._server = HttpServer(self._answer, log=log, limits=limits)
        self._upkeep: asyncio.Task[None] | None = None
        self._routes: dict[str, tuple[str, Handler]] = {
            "/v1/description": ("GET", self._description),
            BUNDLE_PATH: ("GET", self._bundle),
            "/v1/status": ("POST", self._status),
            "/v1/challenge": ("POST", self._challenge),
            "/v1/consistency": ("POST", self._consistency),
            "/v1/leaves": ("POST", self._leaves),
            "/v1/checkpoint": ("GET", self._checkpoint),
            "/v1/call": ("POST", self._call),
            "/v1/session": ("POST", self._session),
            "/healthz": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
            DESCRIPTION_PATH: ("GET", self._description),
            CHALLENGE_PATH: ("POST", self._handover_challenge),
            HANDOVER_PATH: ("POST", self._handover),
            LEADER_CHALLENGE_PATH: ("POST", self._handover_challenge),
            LEADER_HANDOVER_PATH: ("POST", self._handover),
            EXCHANGE_PATH: ("POST", self._exchange),
            ROLE_PATH: ("GET", self._role),
        }

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._server.address

    async def start(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        """Listen, with TLS where it is given.

        :raises Unavailable: ``listen-failed``.
        """
        await self._server.start(host, port, tls=tls)
        self._upkeep = asyncio.create_task(self._keep_up())
        if self._keeper is not None:
            self._keeper.start()

    async def stop(self, timeout: float) -> int:  # noqa: ASYNC109  # after it the rest is cut
        """Take nothing new, finish what is under way, close the store; returns how many connections were cut."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._upkeep
        if self._replica is not None:
            await asyncio.to_thread(self._replica.stop)
        cut = await self._server.drain(timeout)
        await self._workers.close()
        if self._exchanges is not None:
            await self._exchanges.close()
        if self._forwarder is not None:
            await self._forwarder.close()
        if self._keeper is not None:
            await asyncio.to_thread(self._keeper.stop)
        self._service.close()
        return cut

    async def _answer(self, request: Request) -> Response:
        route = self._routes.get(request.path)
        if route is None:
            raise InvalidInput("not-found", "there is nothing here")
        if request.method != route[0]:
            raise InvalidInput("method-not-allowed", f"this takes {route[0]} only")
        replica, forwarder = self._replica, self._forwarder
        if replica is not None and forwarder is not None and replica.role != LEADER and request.path not in _OWN:
            return await forwarder.forward(request)
        return await route[1](request)

    async def _description(self, _request: Request) -> Response:
        return Response(200, _MEDIA_TYPE, self._service.description())

    async def _bundle(self, _request: Request) -> Response:
        return Response(200, _MEDIA_TYPE, await self._workers.run(self._service.bundle))

    async def _status(self, request: Request) -> Response:
        nonce = bytes(await request.body(NONCE_LENGTH + 1))
        return await self._run(self._service.status, nonce)

    async def _challenge(self, request: Request) -> Response:
        await request.body(0)
        return Response(200, _MEDIA_TYPE, self._service.challenge())

    async def _consistency(self, request: Request) -> Response:
        return await self._run(self._service.consistency, bytes(await request.body(64)))

    async def _checkpoint(self, _request: Request) -> Response:
        return Response(200, _MEDIA_TYPE, await self._workers.run(self._service.checkpoint))

    async def _leaves(self, request: Request) -> Response:
        return await self._run(self._service.leaves, bytes(await request.body(64)))

    async def _call(self, request: Request) -> Response:
        return await self._run(self._service.call, bytes(await request.body(MAX_CALL)))

    async def _session(self, request: Request) -> Response:
        return await self._run(self._service.session, bytes(await request.body(MAX_CALL)))

    async def _handover_challenge(self, request: Request) -> Response:
        await request.body(0)
        return Response(200, _MEDIA_TYPE, self._service.handover_challenge())

    async def _handover(self, request: Request) -> Response:
        return await self._run(self._service.hand_over, bytes(await request.body(MAX_CALL)))

    async def _exchange(self, request: Request) -> Response:
        data = bytes(await request.body(MAX_REPLICA_REQUEST))
        if self._replica is None or self._exchanges is None:
            raise InvalidInput("not-found", "there is nothing here")
        _authentic(self._replica.genuine, data)  # here, so that strangers take no thread from replicas
        return Response(200, _MEDIA_TYPE, await self._exchanges.run(_authentic, self._replica.handle, data))

    async def _role(self, _request: Request) -> Response:
        replica = self._replica
        known = {} if replica is None else {"leader": replica.leader, "behind": replica.behind}
        content = {"role": "single" if replica is None else replica.role, **known}
        return Response(200, (("content-type", "application/json"),), json.dumps(content).encode())

    async def _run(self, call: Callable[[bytes], bytes], data: bytes) -> Response:
        return Response(200, _MEDIA_TYPE, await self._workers.run(call, data))

    async def _health(self, _request: Request) -> Response:
        if not self._service.healthy():
            raise Unavailable("keyservice-closing", "the KeyService is shutting down")
        return Response(200, (("content-type", "text/plain"),), b"ok\n")

    async def _metrics(self, _request: Request) -> Response:
        return Response(200, (("content-type", CONTENT_TYPE),), self._telemetry.registry.exposition())

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(_UPKEEP_S)
            try:
                await self._workers.run(_upkeep, self._service)
            except CloisterError as error:
                self._log.event("upkeep-failed", level="warning", code=error.code, family=error.family)


def _authentic(handle: Callable[[bytes], T], data: bytes) -> T:
    try:
        return handle(data)
    except Unavailable:
        raise
    except CloisterError as error:
        raise call_refused() from error


def _upkeep(service: KeyService) -> None:
    service.maintain()
