"""A model store behind HTTP: an object store, a CDN, a file server; anything that answers range requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from cloister.adapters.http.blocking import BlockingAnswer, HttpClient
from cloister.adapters.http.origin import parse_origin
from cloister.adapters.modelstore import failures
from cloister.adapters.modelstore.patience import Patience
from cloister.adapters.modelstore.port import Place, latest_path, read_hint
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.ids import ModelId

T = TypeVar("T")
_HINT: Final = 256
_DENIED: Final = "An http(s) store is read without credentials: let it be read, or name the bucket itself (s3://...)."


class HttpStore:
    """``ModelStore`` below a URL. Many threads read at once, each over a kept connection of its own.

    :param base: ``http(s)://host[:port]/prefix``.
    """

    parallel: Final = 16

    def __init__(self, client: HttpClient, base: str, patience: Patience) -> None:
        """:raises InvalidInput: ``store-url-malformed``, ``origin-malformed``."""
        scheme, separator, rest = base.partition("://")
        host, _, prefix = rest.partition("/")
        if scheme not in ("http", "https") or not separator or not host or "?" in rest or "#" in rest or "@" in host:
            raise InvalidInput("store-url-malformed", "an HTTP model store is http(s)://host[:port]/prefix")
        parse_origin(f"{scheme}://{host}")
        self._client = client
        self._patience = patience
        self._origin = f"{scheme}://{host}"
        self._prefix = "/" + prefix.strip("/") + "/" if prefix.strip("/") else "/"

    def read(self, place: Place, name: str, *, limit: int) -> bytes:
        """See the port."""
        return self._read(place.path(name), place.model, name, limit, self._patience)

    def read_into(self, place: Place, name: str, offset: int, out: memoryview) -> None:
        """See the port. A connection that is cut is continued from the byte reached, while the ETag is the same."""
        target = self._prefix + place.path(name)
        last = offset + out.nbytes - 1
        done, tag = 0, ""

        def attempt(for_s: float) -> None:
            nonlocal done, tag
            headers = [("range", f"bytes={offset + done}-{last}")]
            with self._client.open("GET", self._origin, target, headers=headers, deadline_s=for_s) as answer:
                if answer.status != 206:
                    raise self._failure(answer, place.model, name)
                unit, _, size = answer.headers.get("content-range").partition("/")
                if unit != f"bytes {offset + done}-{last}":
                    if size.isascii() and size.isdigit() and int(size) <= last:
                        raise failures.too_short(name)
                    raise failures.misconfigured("answers with another range", "A proxy or cache is in the way.")
                if done and answer.headers.get("etag") != tag:
                    done = 0
                    raise failures.unavailable("changed a file while it was read")
                tag = answer.headers.get("etag")
                while done < out.nbytes:
                    count = answer.readinto(out[done:])
                    if not count:
                        raise failures.unavailable("closed the connection within its answer")
                    done += count

        self._patience.insist(lambda for_s: _told(lambda: attempt(for_s)))

    def latest(self, model: ModelId) -> Place | None:
        """See the port."""
        try:
            return read_hint(model, self._read(latest_path(model), model, "latest", _HINT, self._patience.brief()))
        except Unavailable as error:
            if error.code == "model-not-found":
                return None
            raise

    def _read(self, path: str, model: ModelId, name: str, limit: int, patience: Patience) -> bytes:
        def attempt(for_s: float) -> bytes:
            with self._client.open("GET", self._origin, self._prefix + path, deadline_s=for_s) as answer:
                if answer.status != 200:
                    raise self._failure(answer, model, name)
                try:
                    return answer.read(limit)
                except CloisterError as error:
                    if error.code == "answer-too-large":
                        raise failures.too_long(name, limit) from error
                    raise

        return patience.insist(lambda for_s: _told(lambda: attempt(for_s)))

    def _failure(self, answer: BlockingAnswer, model: ModelId, name: str) -> CloisterError:
        if answer.status < 300:
            what = f"answers {answer.status} where a range was asked for" if answer.status == 200 else "answers nothing"
            return failures.misconfigured(what, "The server or a proxy before it must support range requests.")
        wait = answer.headers.get("retry-after")
        retry_after = float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 6 else None
        return failures.of_status(answer.status, model, name, hint=_DENIED, retry_after=retry_after)


def _told(act: Callable[[], T]) -> T:
    """The client's errors as the port's."""
    try:
        return act()
    except CloisterError as error:
        if error.code.startswith(("store-", "model-")):
            raise
        if error.code == "tls-failed":
            raise failures.misconfigured(f"cannot be spoken to: {error.message}", "Check its certificate.") from error
        raise failures.unavailable(f"does not answer: {error.code}") from error
