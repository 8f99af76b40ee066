"""An instance's address: a runtime's outer HTTP here, activations of its action behind it.

What a gateway asks once a second must not become an activation, which costs time, money and the namespace's rate:
``/v1/status`` is what the last activation told, ``/readyz`` asks the platform only after something went wrong.
"""

from __future__ import annotations

import asyncio
import binascii
import json
import secrets
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, Final

from cloister.adapters.http.head import Headers
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.problem import from_response
from cloister.adapters.payloads import PayloadStore
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.limits import KIB, MAX_REQUEST_BODY, MAX_RESPONSE_BODY, MIB
from cloister.platforms.openwhisk.rest import Activation, OpenWhiskApi

OVERHEAD: Final = 4 * KIB  # of JSON around a body, both ways
MAX_BODY: Final = MAX_REQUEST_BODY + MIB
MAX_ANSWER: Final = MAX_RESPONSE_BODY + MIB
PROBE_S: Final = 30.0
_JSON: Final = (("content-type", "application/json"), ("cache-control", "no-store"))
_TRAVELS: Final = frozenset({"cache-control", "content-type", "retry-after", "server-timing"})


class Bridge:
    """``cloister.adapters.http.message.App`` of one instance.

    :param carries: bytes of JSON that the platform takes in a request.
    :param timeout_s: of the action; what it has not answered then, the platform has ended.
    """

    def __init__(
        self,
        api: OpenWhiskApi,
        action: str,
        *,
        store: PayloadStore | None,
        carries: int,
        timeout_s: float,
    ) -> None:
        self._api = api
        self._action = action
        self._store = store
        self._carries = carries
        self._deadline_s = timeout_s + 30.0  # a cold start and the platform's queue come before the action's own time
        self._status: Mapping[str, object] | None = None
        self._well = False
        self._probing: asyncio.Task[None] | None = None

    async def __call__(self, request: Request) -> Response:
        """Route one request."""
        match request.path:
            case "/healthz":
                return Response(200, _JSON, b'{"live":true}')
            case "/readyz":
                if not self._well:
                    await self._probed()
                return Response(200, _JSON, b'{"ready":true}')
            case "/v1/status":
                if self._status is None:
                    await self._probed()
                return Response(200, _JSON, json.dumps(self._status or {}).encode())
            case "/v1/evidence" | "/metrics" if request.method != "POST":
                raise InvalidInput("not-found", "an action has no metrics of its own; ask the platform")
            case _:
                return await self._forward(request)

    async def probe(self, deadline_s: float) -> None:
        """Invoke the action until it says that it is ready, for example to start its first container.

        :raises CloisterError: it is not, and why.
        """
        answer = await self._invoke({"method": "GET", "path": "/readyz", "status": True}, deadline_s)
        if answer.status != 200:
            self._well = False
            content = answer.content
            assert isinstance(content, bytes)  # noqa: S101
            raise from_response(answer.status, Headers(answer.headers), content)

    async def _probed(self) -> None:
        """One probe for all who ask; it goes on when whoever asked has no more patience than a cold start takes."""
        if self._probing is None:
            self._probing = asyncio.get_running_loop().create_task(self.probe(PROBE_S))
            self._probing.add_done_callback(self._probe_over)
        await asyncio.shield(self._probing)

    def _probe_over(self, task: asyncio.Task[None]) -> None:
        self._probing = None
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def close(self) -> None:
        """End what goes on in the background."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _forward(self, request: Request) -> Response:
        body = bytes(await request.body(MAX_BODY))
        value: dict[str, object] = {
            "method": request.method,
            "path": request.path,
            "content_type": request.headers.get("content-type") or "application/octet-stream",
            "status": True,
        }
        encoded = 4 * ((len(body) + 2) // 3)
        if encoded + OVERHEAD <= self._carries:
            value["body"] = b64encode(body).decode("ascii")
            return await self._invoke(value, self._deadline_s)
        if self._store is None:
            raise InvalidInput(
                "body-too-large",
                f"the request takes {encoded} bytes in JSON, the platform carries {self._carries - OVERHEAD}",
                hint="Larger ones need a payload store: [platform.openwhisk] payloads.",
            )
        name = secrets.token_hex(16)
        await self._store.put(name, body)
        try:
            return await self._invoke({**value, "body_ref": name}, self._deadline_s)
        finally:
            await self._forget(name)

    async def _invoke(self, value: Mapping[str, object], deadline_s: float) -> Response:
        try:
            activation = await self._api.invoke(self._action, value, deadline_s=deadline_s)
        except CloisterError as error:
            self._well = self._well and error.code in ("platform-throttled", "body-too-large")
            raise
        result = activation.result
        match activation.status:
            case "success":
                return await self._answer(result)
            case "application error" if isinstance(result.get("error"), dict):
                return await self._answer(result["error"])
            case _:
                self._well = False
                raise failed(activation)

    async def _answer(self, value: Mapping[str, Any]) -> Response:
        """The runtime's answer, out of an action's result, which is hostile like everything from there."""
        status, body, reference = value.get("status"), value.get("body", ""), value.get("body_ref")
        if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status < 600:
            raise _malformed()
        if isinstance(reference, str):
            if self._store is None:
                raise _malformed()
            content = await self._store.get(reference, MAX_ANSWER)
            await self._forget(reference)
        else:
            try:
                content = b64decode(body, validate=True)
            except (binascii.Error, ValueError, TypeError) as error:
                raise _malformed() from error
        runtime = value.get("runtime")
        if isinstance(runtime, dict):
            self._status = runtime
        self._well = True
        given = value.get("headers")
        headers = [
            (name, text)
            for name, text in (given if isinstance(given, dict) else {}).items()
            if name in _TRAVELS and isinstance(text, str) and text.isprintable() and text.isascii()
        ]
        return Response(status, headers, content)

    async def _forget(self, name: str) -> None:
        if self._store is not None:
            try:
                await self._store.delete(name)
            except CloisterError:
                return  # the store's own rule for old objects has to take it


def failed(activation: Activation) -> Unavailable:
    """Why there is no answer of the action's own."""
    given = activation.result.get("error")
    said = "".join(c if c.isprintable() else " " for c in str(given)[:300]) if given else activation.status
    return Unavailable(
        "activation-failed",
        f"the activation {activation.id} ended as {activation.status}: {said}",
        retry_after=1.0,
        hint=f"`wsk activation logs {activation.id}` has the action's log." if activation.id else None,
    )


def _malformed() -> Unavailable:
    return Unavailable("activation-failed", "the action's result is not that of a runtime", retry_after=1.0)
