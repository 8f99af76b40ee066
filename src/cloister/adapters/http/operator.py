"""What an operator may ask any untrusted-side service: is it live, is it ready, how is it doing; nothing secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from cloister.adapters.http.message import Request, Response
from cloister.adapters.metrics import CONTENT_TYPE
from cloister.base.errors import InvalidInput, Unavailable

_JSON: Final = (("content-type", "application/json"), ("cache-control", "no-store"))
_TEXT: Final = (("content-type", CONTENT_TYPE),)


class OperatorPages:
    """``/healthz``, ``/readyz``, ``/v1/status`` and ``/metrics``.

    :param ready: whether requests can be served; ``not_ready`` is what is said when they cannot.
    :param status: what packs, balances and scales. :param metrics: Prometheus text.
    """

    def __init__(
        self,
        *,
        ready: Callable[[], bool],
        not_ready: Callable[[], Unavailable],
        status: Callable[[], dict[str, object]],
        metrics: Callable[[], bytes],
    ) -> None:
        self._ready = ready
        self._not_ready = not_ready
        self._status = status
        self._metrics = metrics

    def answer(self, request: Request) -> Response:
        """One of the pages.

        :raises InvalidInput: ``not-found``, ``method-not-allowed``. :raises Unavailable: not ready.
        """
        if request.method not in ("GET", "HEAD"):
            raise InvalidInput("method-not-allowed", "only sealed requests are posted")
        match request.path:
            case "/healthz":
                return Response(200, _JSON, b'{"live":true}')
            case "/readyz":
                if not self._ready():
                    raise self._not_ready()
                return Response(200, _JSON, b'{"ready":true}')
            case "/v1/status":
                return Response(200, _JSON, json.dumps(self._status(), separators=(",", ":")).encode())
            case "/metrics":
                return Response(200, _TEXT, self._metrics())
            case _:
                raise InvalidInput("not-found", "there is nothing here")
