"""A stand-in for a runtime: its outer HTTP (spec/protocol.md, clause 8.8) with no keys, models or secrets behind it.

Runs in this process (:class:`StandIn` under any ``HttpServer``) or as a child::

    python -m cloister.testing.instance --listen unix:/path/to/socket
    PORT=8080 python -m cloister.testing.instance

A sealed request is answered with ``CLA1``, the SHA-256 of the whole request, and a JSON object that says who answered.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.adapters.logs import JsonLog
from cloister.adapters.payloads import HttpPayloadStore
from cloister.adapters.process import run
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.limits import MIB
from cloister.runtime.app import Listen, default_listen
from cloister.runtime.openwhisk.service import ActionApp
from cloister.wire.envelope import RESPONSE_MAGIC, RESPONSE_MEDIA_TYPE, RequestPrefix

MAX_BODY = 256 * MIB


class StandIn:
    """``cloister.adapters.http.message.App``.

    :param name: what it calls itself in answers.
    :param delay_s: time of an inference; ``load_s`` more for a model it does not have.
    :param answer_bytes: bytes of zeros after each answer.
    :param journal: the nonce of every answered request is appended here, one a line in hexadecimal.
    :ivar fail_with: raise this instead of answering, until it is None again.
    :ivar served: answered requests.
    """

    def __init__(
        self,
        name: str,
        *,
        delay_s: float = 0.0,
        load_s: float = 0.0,
        concurrency: int = 4,
        memory_mb: int = 2048,
        answer_bytes: int = 0,
        journal: Path | None = None,
    ) -> None:
        self.name = name
        self.delay_s = delay_s
        self.load_s = load_s
        self.answer_bytes = answer_bytes
        self.ready = True
        self.fail_with: CloisterError | None = None
        self.hold: asyncio.Event | None = None
        self.served = 0
        self.in_flight = 0
        self.in_flight_max = 0
        self.received = 0
        self.models: list[str] = []
        self._concurrency = concurrency
        self._memory_mb = memory_mb
        self._journal = journal

    async def __call__(self, request: Request) -> Response:
        """Route one request."""
        match request.path:
            case "/healthz":
                return _json({"live": True})
            case "/readyz":
                if not self.ready:
                    raise Unavailable("runtime-not-ready", "not ready yet", retry_after=1.0)
                return _json({"ready": True})
            case "/v1/status":
                return _json(self.status())
            case _:
                return await self._model(request)

    async def _model(self, request: Request) -> Response:
        if request.path.startswith("/v1/models/") and request.method == "POST":
            self.in_flight += 1
            self.in_flight_max = max(self.in_flight_max, self.in_flight)
            try:
                return await self._infer(request)
            finally:
                self.in_flight -= 1
        raise InvalidInput("not-found", "there is nothing here")

    def status(self) -> dict[str, object]:
        """In the shape of ``cloister.runtime.app.Runtime.status``."""
        return {
            "ready": self.ready,
            "isolation": "shared",
            "tee": "insecure-simulation",
            "models": self.models,
            "in_flight": self.in_flight,
            "queued": 0,
            "waiting": 0,
            "concurrency": self._concurrency,
            "memory_mb": {"used": 0, "budget": self._memory_mb},
            "churn_mb": 0,
            "pressure": {},
        }

    async def _infer(self, request: Request) -> Response:
        content = await request.body(MAX_BODY)
        self.received += 1
        prefix = RequestPrefix.parse(content)
        if prefix is None or not request.path.startswith(f"/v1/models/{prefix.header.model}/"):
            raise InvalidInput("request-refused", "the request was refused")
        if self.fail_with is not None:
            raise self.fail_with
        if self.hold is not None:
            await self.hold.wait()
        model = str(prefix.header.model)
        if model not in self.models:
            if self.load_s:
                await asyncio.sleep(self.load_s)
            if model not in self.models:
                self.models.append(model)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        self.served += 1
        if self._journal is not None:
            _append(self._journal, prefix.header.nonce.hex())
        who = json.dumps({"instance": self.name, "pid": os.getpid(), "served": self.served}).encode()
        parts = [RESPONSE_MAGIC, hashlib.sha256(content).digest(), who, bytes(self.answer_bytes)]
        return Response(200, (("content-type", RESPONSE_MEDIA_TYPE),), parts)


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def _json(value: dict[str, object]) -> Response:
    return Response(200, (("content-type", "application/json"),), json.dumps(value).encode())


async def serve_action(stand_in: StandIn, path: Path) -> None:
    """As an OpenWhisk action, ready once it is initialised: with the adapter that the real action has."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    clock, client = SystemClock(), AsyncHttpClient()
    store: list[HttpPayloadStore] = []

    async def begin(environment: Mapping[str, str]) -> StandIn:
        if environment.get("CLOISTER_FAIL"):
            raise Unavailable("runtime-not-ready", environment["CLOISTER_FAIL"])
        stand_in.delay_s = float(environment.get("CLOISTER_DELAY_MS", "0")) / 1000
        if payloads := environment.get("CLOISTER_PAYLOADS"):
            store.append(HttpPayloadStore(client, payloads))
        return stand_in

    app = ActionApp(begin, clock=clock, log=JsonLog(clock), payloads=lambda: store[0] if store else None)
    server = HttpServer(app, log=JsonLog(clock), limits=ServerLimits(max_body=MAX_BODY))
    await server.start(path=path)
    await stopping.wait()
    await server.drain(10.0)
    await client.close()


async def serve(stand_in: StandIn, listen: Listen, *, ready_after_s: float = 0.0) -> None:
    """Until SIGTERM; requests under way are finished."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    server = HttpServer(stand_in, log=JsonLog(SystemClock()), limits=ServerLimits(max_body=MAX_BODY))
    stand_in.ready = not ready_after_s
    await server.start(listen.host, listen.port, path=listen.path)
    loop.call_later(ready_after_s, setattr, stand_in, "ready", True)
    await stopping.wait()
    await server.drain(10.0)


def main() -> None:
    """The child process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default=default_listen(os.environ, ""))
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--load-ms", type=float, default=0.0)
    parser.add_argument("--ready-after-s", type=float, default=0.0)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--answer-bytes", type=int, default=0)
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--openwhisk", action="store_true", help="as an OpenWhisk action")
    options = parser.parse_args()
    listen = Listen.parse(options.listen)
    stand_in = StandIn(
        listen.path.parent.name if listen.path else options.listen,
        delay_s=options.delay_ms / 1000,
        load_s=options.load_ms / 1000,
        concurrency=options.concurrency,
        answer_bytes=options.answer_bytes,
        journal=options.journal,
    )
    if options.openwhisk and listen.path:
        run(serve_action(stand_in, listen.path))
        return
    run(serve(stand_in, listen, ready_after_s=options.ready_after_s))


if __name__ == "__main__":
    main()
