"""The runtime's outer HTTP: sealed bodies in and out, and what an operator may know (spec/protocol.md, clause 8.8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.operator import OperatorPages
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_HEADER, MAX_REQUEST_BODY
from cloister.runtime.presence import PresenceDesk
from cloister.runtime.serve import Sealed, refused
from cloister.runtime.streams import Streams
from cloister.wire.envelope import RESPONSE_MEDIA_TYPE, SEALED_SECRET, sealed_length
from cloister.wire.presence import NONCE_LENGTH

MAX_SEALED: Final = sealed_length(MAX_REQUEST_BODY) + MAX_HEADER + SEALED_SECRET + 64
_SEALED_HEADERS: Final = (("content-type", RESPONSE_MEDIA_TYPE), ("cache-control", "no-store"))
_BYTES: Final = (("content-type", "application/octet-stream"), ("cache-control", "no-store"))

Status = Callable[[], dict[str, object]]


def _not_ready() -> Unavailable:
    return Unavailable("runtime-not-ready", "no session with the KeyService yet", retry_after=1.0)


class RuntimeApp:
    """``cloister.adapters.http.message.App``.

    :param status: what the gateway packs, balances and scales by; nothing secret.
    :param ready: whether keys can be had.
    :param metrics: Prometheus text. :param presence: evidence for whoever asks.
    """

    def __init__(
        self,
        sealed: Sealed,
        *,
        status: Status,
        ready: Callable[[], bool],
        metrics: Callable[[], bytes],
        streams: Streams,
        presence: PresenceDesk,
    ) -> None:
        self._sealed = sealed
        self._pages = OperatorPages(ready=ready, not_ready=_not_ready, status=status, metrics=metrics)
        self._streams = streams
        self._presence = presence

    async def __call__(self, request: Request) -> Response:
        """Route one request."""
        path = request.path
        if path.startswith("/v1/models/"):
            return await self._model(request, path[len("/v1/models/") :])
        if path == "/v1/evidence":
            return await self._evidence(request)
        return self._pages.answer(request)

    async def _evidence(self, request: Request) -> Response:
        if request.method != "POST":
            raise InvalidInput("method-not-allowed", "a nonce is posted")
        nonce = bytes(await request.body(NONCE_LENGTH + 1))
        return Response(200, _BYTES, await self._presence.answer(nonce))

    async def _model(self, request: Request, rest: str) -> Response:
        text, _, action = rest.rpartition("/")
        try:
            model = ModelId.parse(text)
        except InvalidInput as error:
            raise refused() from error
        if request.method != "POST":
            raise InvalidInput("method-not-allowed", "sealed requests are posted")
        if action == "infer":
            body = await request.body(MAX_SEALED)
            return Response(200, _SEALED_HEADERS, await self._sealed.answer(model, body, request.buffer))
        if action == "stream":
            return Response(200, _SEALED_HEADERS, self._streams.answer(model, request.stream()))
        raise refused()
