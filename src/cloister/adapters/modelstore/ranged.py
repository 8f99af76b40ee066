"""A model store behind HTTP: an object store, a CDN, a file server; anything that answers range requests."""

from __future__ import annotations

from typing import Final

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.modelstore.port import Place, latest_path, read_hint
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.ids import ModelId

_HINT: Final = 256
_DEADLINE_S: Final = 60.0


class HttpStore:
    """``ModelStore`` below a URL. Many threads read at once, each over a kept connection of its own.

    :param base: ``http(s)://host[:port]/prefix``.
    """

    def __init__(self, client: HttpClient, base: str) -> None:
        """:raises InvalidInput: ``store-url-malformed``."""
        scheme, separator, rest = base.partition("://")
        host, _, prefix = rest.partition("/")
        if scheme not in ("http", "https") or not separator or not host or "?" in rest or "#" in rest:
            raise InvalidInput("store-url-malformed", "a model store is http(s)://host[:port]/prefix, or a directory")
        self._client = client
        self._origin = f"{scheme}://{host}"
        self._prefix = "/" + prefix.strip("/") + "/" if prefix.strip("/") else "/"

    def read(self, place: Place, name: str, *, limit: int) -> bytes:
        """See the port."""
        found = self._get(place.path(name), place.model, limit)
        if found is None:
            raise _not_found(place.model, name)
        return found

    def read_into(self, place: Place, name: str, offset: int, out: memoryview) -> None:
        """See the port."""
        target = self._prefix + place.path(name)
        try:
            self._client.read_range(self._origin, target, offset, out, deadline_s=_DEADLINE_S)
        except CloisterError as error:
            # 404, 416 and whatever else a store says come as errors of many shapes; none of them is to be believed.
            raise _away(error) from error

    def latest(self, model: ModelId) -> Place | None:
        """See the port."""
        text = self._get(latest_path(model), model, _HINT)
        return None if text is None else read_hint(model, text)

    def _get(self, path: str, model: ModelId, limit: int) -> bytes | None:
        try:
            answer = self._client.request(
                "GET", self._origin, self._prefix + path, deadline_s=_DEADLINE_S, max_answer=limit
            )
        except CloisterError as error:
            if error.code == "answer-too-large":
                raise InvalidInput(
                    "model-file-too-long", f"a file of the model {model.name!r} has more than {limit} bytes"
                ) from error
            raise _away(error) from error
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise Unavailable("store-unavailable", f"the model store answers {answer.status}", retry_after=1.0)
        return bytes(answer.body)


def _not_found(model: ModelId, name: str) -> Unavailable:
    return Unavailable("model-not-found", f"the model store has no {name!r} of {model.name!r} as released")


def _away(error: CloisterError) -> Unavailable:
    retry = error.retry_after if isinstance(error, Unavailable) else None
    return Unavailable("store-unavailable", f"the model store does not answer: {error.code}", retry_after=retry or 1.0)
