"""A proxy on the user's own machine: unchanged clients speak plaintext to it, and it speaks sealed to the world.

Whatever speaks the Open Inference Protocol v2 over HTTP (Triton's and KServe's clients, curl) is pointed here instead
of at a model server. What it asks of ``/v2/models/NAME`` is sealed for the model of that name that this identity
consented to, as the SDK does it, and the authenticated answer is handed back, its provenance in ``cloister-`` fields.

The proxy holds the user's identity, so it serves this machine only: loopback or a Unix socket, no names but this
machine's (a web page that has its own name lead here would be one), nothing that a browser sends for another page.
Other users of the machine reach a loopback port: where there are such, use the socket, which only its owner opens.
"""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import Final

from cloister import __version__
from cloister.adapters.http import problem
from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.adapters.logs import EventLog
from cloister.base.errors import CloisterError, InvalidInput, Refused
from cloister.base.limits import MAX_REQUEST_BODY
from cloister.client.asynchronous import AsyncClient
from cloister.client.inference import (
    MEASUREMENT_FIELD,
    MODEL_DIGEST_FIELD,
    OWNER_POLICY_FIELD,
    TEE_FIELD,
    TIMING_FIELD,
    USER_POLICY_FIELD,
    WARNING_FIELD,
)
from cloister.wire import oip

_JSON: Final = (("content-type", "application/json"), ("cache-control", "no-store"))
_ASKED: Final = ("content-type", oip.HEADER_LENGTH_FIELD)  # of a request, what the inside reads
_TOLD: Final = (
    *_ASKED,
    *(MODEL_DIGEST_FIELD, MEASUREMENT_FIELD, TEE_FIELD, OWNER_POLICY_FIELD, USER_POLICY_FIELD),
    *(WARNING_FIELD, TIMING_FIELD),
)
_CONNECTIONS: Final = 256


class LocalProxy:
    """See the module. All methods belong to one event loop."""

    def __init__(self, client: AsyncClient, *, log: EventLog) -> None:
        self._client = client
        limits = ServerLimits(max_body=MAX_REQUEST_BODY, max_connections=_CONNECTIONS)
        self._server = HttpServer(self._answer, log=log, limits=limits)

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._server.address

    async def start(self, host: str, port: int, *, path: Path | None = None) -> None:
        """Listen on loopback, or on a Unix socket.

        :raises InvalidInput: ``proxy-not-local``. :raises Unavailable: ``listen-failed``.
        """
        if path is None and not _is_loopback(host):
            raise InvalidInput(
                "proxy-not-local",
                f"{host} is not this machine alone: whoever reaches the proxy speaks for its identity",
                hint="Listen on 127.0.0.1 or [::1], or on a socket with --socket.",
            )
        await self._server.start(host, port, path=path)

    async def stop(self, timeout: float) -> int:  # noqa: ASYNC109  # after it the rest is cut
        """Finish what is under way; returns how many connections were cut."""
        return await self._server.drain(timeout)

    async def _answer(self, request: Request) -> Response:
        try:
            self._check_local(request)
            return await self._route(request)
        except CloisterError as error:
            return _told(error)

    def _check_local(self, request: Request) -> None:
        """:raises Refused: ``proxy-browser``: a page of elsewhere would read with this user's identity."""
        host = re.sub(r":[0-9]{1,5}$", "", request.headers.get("host"))
        over_socket = self.address.startswith("unix:")
        if not over_socket and host != "localhost" and not _is_loopback(host):
            raise Refused("proxy-browser", "the proxy answers to this machine's own names only")
        if "origin" in request.headers or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refused("proxy-browser", "the proxy answers no web page")

    async def _route(self, request: Request) -> Response:
        words = request.path.strip("/").split("/")
        if words[0] != "v2":
            raise InvalidInput("not-found", "the proxy speaks the Open Inference Protocol v2: /v2/models/NAME/infer")
        if words[1:2] == ["models"] and len(words) >= 3:
            return await self._model(request, words[2])
        if request.method not in ("GET", "HEAD"):
            raise InvalidInput("method-not-allowed", "only inferences are posted")
        match words[1:]:
            case []:
                return _json({"name": "cloister", "version": __version__, "extensions": ["binary_tensor_data"]})
            case ["health", "live"]:
                return _json({"live": True})
            case ["health", "ready"]:
                return _json({"ready": True})
            case _:
                raise InvalidInput("not-found", "there is no such page")

    async def _model(self, request: Request, name: str) -> Response:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise InvalidInput("content-encoding", "compressed bodies are not taken: their sizes tell of their content")
        target = await self._client.run(self._client.sync.model_id, name)
        body = await request.body(MAX_REQUEST_BODY)
        fields = [(field, value) for field in _ASKED if (value := request.headers.get(field))]
        response, _ = await self._client.request(
            target, request.method, request.path, fields=fields, content=(body,) if body.nbytes else ()
        )
        told = [(key, value) for key, value in response.fields if key in _TOLD]
        return Response(response.status, [*told, ("cache-control", "no-store")], response.content)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _json(value: dict[str, object]) -> Response:
    return Response(200, _JSON, json.dumps(value).encode())


def _told(error: CloisterError) -> Response:
    """A problem, with the member ``error`` that clients of the protocol look for."""
    told = problem.to_response(error)
    assert isinstance(told.content, bytes)  # noqa: S101  # problems are
    said = {"error": str(error), **json.loads(told.content)}
    return Response(told.status, told.headers, json.dumps(said).encode())
