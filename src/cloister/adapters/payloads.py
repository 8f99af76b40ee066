"""Where sealed requests and answers go that a platform does not carry: any HTTP server with PUT, GET and DELETE.

What lies there is ciphertext under random names; whoever can read or change it learns sizes, or makes a request fail.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.origin import parse_origin
from cloister.base.errors import CloisterError, InvalidInput, Unavailable

_NAME: Final = re.compile(r"[0-9a-f]{32}(\.answer)?")
_DEADLINE_S: Final = 60.0
_GOOD: Final = frozenset({200, 201, 202, 204})


class PayloadStore(Protocol):
    """Port. Names are 32 hexadecimal digits, and those with ``.answer`` behind them."""

    async def put(self, name: str, data: bytes) -> None:
        """:raises Unavailable: ``payload-store-unavailable``."""

    async def get(self, name: str, limit: int) -> bytes:
        """:raises Unavailable: ``payload-missing``, ``payload-store-unavailable``. :raises InvalidInput: too long."""

    async def delete(self, name: str) -> None:
        """What is not there is ignored.

        :raises Unavailable: ``payload-store-unavailable``.
        """


class HttpPayloadStore:
    """``PayloadStore`` below a URL, ``http(s)://host[:port]/prefix``: an object store's bucket, WebDAV, nginx."""

    def __init__(self, client: AsyncHttpClient, base: str) -> None:
        """:raises InvalidInput: ``payload-url-malformed``."""
        scheme, separator, rest = base.partition("://")
        host, _, prefix = rest.partition("/")
        if scheme not in ("http", "https") or not separator or not host or "?" in rest or "#" in rest:
            raise InvalidInput("payload-url-malformed", "a payload store is http(s)://host[:port]/prefix")
        self._client = client
        self._origin = str(parse_origin(f"{scheme}://{host}"))
        self._prefix = f"/{prefix.strip('/')}/" if prefix.strip("/") else "/"

    async def put(self, name: str, data: bytes) -> None:
        """See the port."""
        await self._call("PUT", name, data)

    async def get(self, name: str, limit: int) -> bytes:
        """See the port."""
        return await self._call("GET", name, limit=limit)

    async def delete(self, name: str) -> None:
        """See the port."""
        await self._call("DELETE", name, missing_is_fine=True)

    async def _call(
        self, method: str, name: str, data: bytes = b"", *, limit: int = 65536, missing_is_fine: bool = False
    ) -> bytes:
        if _NAME.fullmatch(name) is None:
            raise InvalidInput("payload-name", "no name of a payload")
        headers = (("content-type", "application/octet-stream"),) if data else ()
        try:
            answer = await self._client.request(
                method,
                self._origin,
                self._prefix + name,
                headers=headers,
                content=data,
                deadline_s=_DEADLINE_S,
                max_answer=limit,
            )
        except CloisterError as error:
            if error.code == "answer-too-large":
                raise InvalidInput("body-too-large", f"what is stored has more than {limit} bytes") from error
            raise Unavailable(
                "payload-store-unavailable", f"the payload store does not answer: {error.code}", retry_after=1.0
            ) from error
        if answer.status == 404 and missing_is_fine:
            return b""
        if answer.status == 404:
            raise Unavailable("payload-missing", "the payload store does not have what the invocation refers to")
        if answer.status not in _GOOD:
            raise Unavailable(
                "payload-store-unavailable", f"the payload store answers {answer.status}", retry_after=1.0
            )
        return bytes(answer.body)
