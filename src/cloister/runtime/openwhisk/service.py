"""The action's server: ``/init`` once, ``/run`` as often and as many at once as the platform likes."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from cloister.adapters.http.answer import Answer
from cloister.adapters.http.buffers import BufferPool
from cloister.adapters.http.head import Headers
from cloister.adapters.http.inside import call_app
from cloister.adapters.http.message import App, Request, Response
from cloister.adapters.http.problem import internal_error, to_response
from cloister.adapters.logs import EventLog
from cloister.adapters.payloads import PayloadStore
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.limits import MIB
from cloister.runtime.openwhisk import protocol
from cloister.runtime.openwhisk.protocol import Run
from cloister.runtime.server import MAX_SEALED

MARGIN_S: Final = 0.25  # an answer this long before the deadline still gets out before the container is destroyed
MAX_INIT: Final = 64 * MIB  # the platform allows 48 MB of code, which comes along as base64 and is ignored
OPERATORS: Final = frozenset({"/v1/status", "/metrics"})  # a web action is called by anybody; these are nobody else's
_JSON: Final = (("content-type", "application/json"),)

Begin = Callable[[Mapping[str, str]], Awaitable[App]]


def write_sentinels() -> None:
    """End this activation's part of both streams; what is logged is flushed with every line."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, protocol.SENTINEL)
        except OSError:
            continue


class ActionApp:
    """``cloister.adapters.http.message.App`` between the platform and a runtime's own ``App``.

    The platform destroys a container whose ``/run`` answers anything but 200, so that is only done for a request which
    never came from the platform, or when this process is unfit; 503 makes it try the activation in another container.

    :param begin: makes the runtime, from the action's init parameters; raises what keeps it from serving.
    :param end_log: called once for each activation, before its answer is written.
    :param payloads: of large bodies; None where there is none.
    :ivar max_result: bytes of a result that the platform carries; what begins the runtime may know better.
    """

    def __init__(
        self,
        begin: Begin,
        *,
        clock: Clock,
        log: EventLog,
        payloads: Callable[[], PayloadStore | None] = lambda: None,
        pool: BufferPool | None = None,
        end_log: Callable[[], None] = write_sentinels,
        max_result: int = protocol.MAX_RESULT,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._begin = begin
        self._clock = clock
        self._log = log
        self._payloads = payloads
        self._pool = pool or BufferPool()
        self._end_log = end_log
        self.max_result = max_result
        self._stopping = stopping
        self._asked = False
        self._app: App | None = None

    async def __call__(self, request: Request) -> Response:
        """Route one request."""
        if request.method in ("GET", "HEAD") and request.path == "/healthz":
            return Response(200, _JSON, b'{"live":true}')
        if request.method != "POST" or request.path not in ("/init", "/run"):
            return _refuse(404, "There are POST /init and POST /run.")
        if request.path == "/init":
            return await self._init(bytes(await request.body(MAX_INIT)))
        return await self._run(bytes(await request.body(protocol.MAX_RUN)))

    async def _init(self, data: bytes) -> Response:
        if self._asked:
            self._log.event("init-refused", level="error", error=protocol.INITIALISED_TWICE)
            return _refuse(403, protocol.INITIALISED_TWICE)
        self._asked = True
        try:
            self._app = await self._begin(protocol.parse_init(data).environment)
        except CloisterError as error:
            self._log.event("init-failed", level="error", code=error.code, error=str(error))
            return _refuse(502, str(error))
        except Exception as error:  # noqa: BLE001  # the platform and the operator learn that it did not work
            self._log.event("init-failed", level="error", error=type(error).__name__)
            return _refuse(502, f"The runtime could not be started: {type(error).__name__}.")
        return Response(200, _JSON, b'{"ok":true}')

    async def _run(self, data: bytes) -> Response:
        if self._app is None:
            return _refuse(403, protocol.NOT_INITIALISED)
        if self._stopping():
            return _refuse(503, "The container is shutting down.")
        try:
            return await self._activation(self._app, data)
        finally:
            self._end_log()

    async def _activation(self, app: App, data: bytes) -> Response:
        try:
            run = protocol.parse_run(data)
        except InvalidInput as error:
            if error.code == "run-malformed":
                return _refuse(400, str(error))
            return Response(200, _JSON, _problem(error, web=protocol.is_web(data)))
        left = None if run.deadline is None else max(0.0, run.deadline - self._clock.now() - MARGIN_S)
        try:
            async with asyncio.timeout(left):
                return Response(200, _JSON, await self._result(app, run))
        except TimeoutError:
            late = Unavailable(
                "activation-deadline",
                "the action's time limit came before the answer",
                retry_after=1.0,
                hint="Raise the action's timeout limit.",
            )
            return Response(200, _JSON, _problem(late, web=run.web))
        except CloisterError as error:
            return Response(200, _JSON, _problem(error, web=run.web))
        except Exception as error:  # noqa: BLE001  # the container is still good
            self._log.event("internal-error", level="error", error=type(error).__name__, where="activation")
            fault = internal_error()
            assert isinstance(fault.content, bytes)  # noqa: S101
            answer = Answer(fault.status, Headers(fault.headers), fault.content)
            return Response(200, _JSON, protocol.result(run, answer))

    async def _result(self, app: App, run: Run) -> bytes:
        if run.web and run.path in OPERATORS:
            raise InvalidInput("not-found", "there is nothing here")
        store = self._payloads()
        content = run.body
        if run.reference:
            content = await self._stored(store).get(run.reference, MAX_SEALED)
        answer = await call_app(
            app, run.method, run.path, pool=self._pool, query=run.query, headers=run.headers, content=content
        )
        status = None
        if run.want_status:
            told = await call_app(app, "GET", "/v1/status", pool=self._pool)
            status = protocol.parse_status(told)
        encoded = protocol.result(run, answer, status=status)
        if len(encoded) <= self.max_result:
            return encoded
        if run.web or store is None or answer.status >= 400:
            raise protocol.too_large(len(encoded), self.max_result, store=store is not None)
        name = (run.reference or secrets.token_hex(16)) + ".answer"
        await store.put(name, answer.body)
        return protocol.result(run, answer, status=status, stored=name)

    @staticmethod
    def _stored(store: PayloadStore | None) -> PayloadStore:
        if store is None:
            raise Unavailable(
                "payload-store-missing",
                "the request is said to be in a payload store, and this action has none",
                hint="Set CLOISTER_PAYLOADS among the action's init parameters.",
            )
        return store


def _problem(error: CloisterError, *, web: bool) -> bytes:
    told = to_response(error)
    assert isinstance(told.content, bytes)  # noqa: S101
    run = Run("GET", "/", "", (), b"", "", web, want_status=False, deadline=None, activation="")
    return protocol.result(run, Answer(told.status, Headers(told.headers), told.content))


def _refuse(status: int, message: str) -> Response:
    return Response(status, _JSON, protocol.encode({"error": message}))
