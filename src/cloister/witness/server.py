"""A witness over HTTP: C2SP tlog-witness, and what its operator looks at (spec/protocol.md, 13.8)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, final

from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.adapters.http.workers import Workers
from cloister.adapters.logs import EventLog
from cloister.adapters.metrics import CONTENT_TYPE, Registry
from cloister.base.errors import CloisterError, InvalidInput
from cloister.base.limits import MAX_ADD_CHECKPOINT
from cloister.wire.log_keys import MAX_FOLLOW_LOG_KEYS
from cloister.witness.service import Witness

PATH: Final = "/add-checkpoint"
FOLLOW_PATH: Final = "/follow-log-keys"
_NEWEST: Final = re.compile(r"/checkpoint/([0-9a-f]{64})")
THREADS: Final = 4  # they wait for the disk; one log's requests wait for each other
QUEUE: Final = 64
# C2SP's statuses; every other code has that of its family.
_STATUS: Final = {
    "witness-log-unknown": 404,
    "witness-not-signed": 403,
    "log-fork": 422,
    "log-rollback": 422,
    "log-keys-broken": 422,
    "signature-invalid": 403,
}
_TEXT: Final = (("content-type", "text/plain; charset=utf-8"), ("cache-control", "no-store"))
_SIZE: Final = (("content-type", "text/x.tlog.size"), ("cache-control", "no-store"))


@final
class WitnessServer:
    """One witness on one listening address; all methods belong to one event loop."""

    def __init__(self, witness: Witness, *, log: EventLog) -> None:
        self._witness = witness
        self._log = log
        self._workers = Workers(THREADS, QUEUE, name="witness")
        limits = ServerLimits(max_body=MAX_FOLLOW_LOG_KEYS + 1024, max_connections=256)
        self._server = HttpServer(self._answer, log=log, limits=limits)
        self.registry = Registry()
        self._requests = self.registry.counter("cloister_witness_requests_total", "Requests, by outcome.", ("outcome",))

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._server.address

    async def start(self, host: str, port: int) -> None:
        """Listen.

        :raises Unavailable: ``listen-failed``.
        """
        await self._server.start(host, port)

    async def stop(self, timeout: float) -> int:  # noqa: ASYNC109  # after it the rest is cut
        """Take nothing new and finish what is under way; returns how many connections were cut."""
        cut = await self._server.drain(timeout)
        await self._workers.close()
        return cut

    async def _answer(self, request: Request) -> Response:
        match request.method, request.path:
            case "POST", path if path == PATH:
                return await self._add(request, self._witness.add_checkpoint, MAX_ADD_CHECKPOINT)
            case "POST", path if path == FOLLOW_PATH:
                return await self._add(request, self._witness.follow_log_keys, MAX_FOLLOW_LOG_KEYS)
            case "GET", path if found := _NEWEST.fullmatch(path):
                return await self._newest(bytes.fromhex(found[1]))
            case "GET", "/healthz":
                return Response(200, _TEXT, b"ok\n")
            case "GET", "/metrics":
                return Response(200, (("content-type", CONTENT_TYPE),), self.registry.exposition())
            case _:
                raise InvalidInput("not-found", "there is nothing here")

    async def _newest(self, keyservice: bytes) -> Response:
        try:
            return Response(200, _TEXT, await self._workers.run(self._witness.newest, keyservice))
        except CloisterError as error:
            if error.code in _STATUS:
                return Response(_STATUS[error.code], _TEXT, f"{error.message}\n".encode())
            raise

    async def _add(self, request: Request, cosign: Callable[[bytes], bytes | int], limit: int) -> Response:
        body = bytes(await request.body(limit))
        try:
            answer = await self._workers.run(cosign, body)
        except CloisterError as error:
            self._requests.add(error.code)
            if error.code.startswith(("log-", "witness-store")):
                self._log.event("not-cosigned", level="error", code=error.code)
            if error.code in _STATUS:
                return Response(_STATUS[error.code], _TEXT, f"{error.message}\n".encode())
            raise
        if isinstance(answer, int):
            self._requests.add("witness-conflict")
            return Response(409, _SIZE, f"{answer}\n".encode())
        self._requests.add("cosigned")
        return Response(200, _TEXT, answer)
