"""An object store of one prefix, for payloads: PUT, GET and DELETE in memory."""

from __future__ import annotations

from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import MIB
from cloister.testing.logs import MemoryLog

PREFIX = "/payloads/"


class PayloadServer:
    """``await server.start()``; :attr:`url` is what gateway and actions are given.

    :ivar objects: what is stored. :ivar away: answer 503. :ivar largest: bytes of the largest that was ever put.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.away = False
        self.largest = 0
        self.server = HttpServer(self, log=MemoryLog(), limits=ServerLimits(max_body=256 * MIB))

    @property
    def url(self) -> str:
        """The store's URL."""
        return self.server.address + PREFIX

    async def __call__(self, request: Request) -> Response:
        """Route one request."""
        if self.away:
            raise Unavailable("store-unavailable", "away for a while")
        if not request.path.startswith(PREFIX):
            raise InvalidInput("not-found", "there is nothing here")
        name = request.path.removeprefix(PREFIX)
        match request.method:
            case "PUT":
                self.objects[name] = bytes(await request.body())
                self.largest = max(self.largest, len(self.objects[name]))
                return Response(201)
            case "GET" if name in self.objects:
                return Response(200, (("content-type", "application/octet-stream"),), self.objects[name])
            case "DELETE" if self.objects.pop(name, None) is not None:
                return Response(204)
            case _:
                raise InvalidInput("not-found", "there is nothing here")
