"""A model store in S3, Google Cloud Storage or Azure Blob Storage, through obstore (docs/adr/0011).

obstore signs, connects, and checks that an answer is the range asked for; how often, how long and from where on is
asked again is decided here, the same as for HTTP. All that goes through it is ciphertext, checked by whoever asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from itertools import chain
from typing import Any, Final

from cloister.adapters.modelstore import failures
from cloister.adapters.modelstore.object_failures import failure, unopened
from cloister.adapters.modelstore.object_url import Kind, ObjectUrl
from cloister.adapters.modelstore.patience import Patience
from cloister.adapters.modelstore.port import Place, latest_path, read_hint
from cloister.base.errors import Unavailable
from cloister.base.ids import ModelId

_HINT: Final = 256
_PIECE: Final = 256 * 1024  # taken from a connection at a time; what came before a cut is not fetched again
_PART: Final = 8 * 1024 * 1024  # of an upload: 10,000, which S3 allows, are more than the largest model
_PARTS_AT_ONCE: Final = 3
_PART_ATTEMPT: Final = timedelta(minutes=5)  # 8 MiB through a slow uplink
_CONNECT: Final = timedelta(seconds=5)


class ObjectStore:
    """``PublishingStore`` in a bucket. Safe for many threads.

    :param patience: of reads. An upload's requests are repeated by obstore itself, each for at most three minutes.
    """

    parallel: Final = 16

    def __init__(self, url: ObjectUrl, patience: Patience) -> None:
        """:raises Unavailable: ``objectstores-missing``. :raises InvalidInput: ``store-url-malformed``."""
        try:
            import obstore
            from obstore import exceptions
        except ImportError as error:
            raise Unavailable(
                "objectstores-missing",
                "this installation has no client for object stores",
                hint="Install it: pip install 'cloister[objectstores]'.",
            ) from error
        self._obstore: Any = obstore
        self._errors: tuple[type[Exception], ...] = (exceptions.BaseError, FileNotFoundError, ValueError, OSError)
        self._url = url
        self._patience = patience
        self._reader = self._open(timedelta(seconds=patience.attempt_s), {"max_retries": 0})
        self._writer: Any = None

    def read(self, place: Place, name: str, *, limit: int) -> bytes:
        """See the port."""
        return self._read(place.path(name), place.model, name, limit, self._patience)

    def read_into(self, place: Place, name: str, offset: int, out: memoryview) -> None:
        """See the port. A connection that is cut is continued from the byte reached, while the ETag is the same."""
        path = place.path(name)
        end = offset + out.nbytes
        done = 0
        tag: str | None = None

        def attempt(_for_s: float) -> None:
            nonlocal done, tag
            options: dict[str, Any] = {"range": (offset + done, end)}
            if tag is not None:
                options["if_match"] = tag
            try:
                answer = self._obstore.get(self._reader, path, options=options)
                if answer.range != (offset + done, end):
                    raise failures.too_short(name)
                tag = answer.meta["e_tag"]
                for piece in answer.stream(min_chunk_size=_PIECE):
                    if len(piece) > out.nbytes - done:
                        raise failures.unavailable("answers with more than was asked for")
                    out[done : done + len(piece)] = piece
                    done += len(piece)
            except self._errors as error:
                if type(error).__name__ == "PreconditionError":
                    done, tag = 0, None
                    raise failures.unavailable("changed a file while it was read") from error
                raise failure(error, self._url, place.model, name) from error
            if done < out.nbytes:
                raise failures.unavailable("closed the connection within its answer")

        self._patience.insist(attempt)

    def latest(self, model: ModelId) -> Place | None:
        """See the port."""
        try:
            return read_hint(model, self._read(latest_path(model), model, "latest", _HINT, self._patience.brief()))
        except Unavailable as error:
            if error.code == "model-not-found":
                return None
            raise

    def write(self, place: Place, name: str, parts: Iterable[bytes]) -> None:
        """See the port. A large file goes in parts of 8 MiB, three at once; nothing of it is seen before the last."""
        path = place.path(name)
        pieces = iter(parts)
        size = self._stored(path, place.model, name)
        if size is not None:
            self._compare(place, name, size, pieces)
            return
        small, first = True, bytearray()
        for piece in pieces:
            first += piece
            if len(first) > _PART:
                small = False
                break
        try:
            if small:
                self._obstore.put(self._writing(), path, bytes(first), mode="create", use_multipart=False)
            else:
                self._obstore.put(
                    self._writing(),
                    path,
                    chain([bytes(first)], pieces),
                    chunk_size=_PART,
                    max_concurrency=_PARTS_AT_ONCE,
                )
        except self._errors as error:
            if type(error).__name__ == "AlreadyExistsError":  # since we looked
                size = self._stored(path, place.model, name)
                self._compare(place, name, size or 0, [bytes(first)])
                return
            raise failure(error, self._url, place.model, name) from error

    def point(self, place: Place) -> None:
        """See the port. It is not to be cached, which public buckets of Google's otherwise are for an hour."""
        text = place.digest.hex().encode()
        try:
            self._obstore.put(
                self._writing(),
                latest_path(place.model),
                text,
                attributes={"Cache-Control": "no-cache"},
                use_multipart=False,
            )
        except self._errors as error:
            raise failure(error, self._url, place.model, "latest") from error

    # --- inside ---

    def _open(self, timeout: timedelta, retries: dict[str, Any]) -> Any:
        from obstore import store as stores

        make: Any = {Kind.S3: stores.S3Store, Kind.GCS: stores.GCSStore, Kind.AZURE: stores.AzureStore}[self._url.kind]
        client: dict[str, Any] = {"timeout": timeout, "connect_timeout": _CONNECT, "user_agent": "cloister"}
        if self._url.allow_http:
            client["allow_http"] = True
        extra: dict[str, Any] = {}
        if self._url.credentials is not None:
            from cloister.adapters.modelstore.aws_credentials import CredentialsFile

            extra["credential_provider"] = CredentialsFile(self._url.credentials, self._patience.clock)
        try:
            if self._url.ca is not None:
                client["root_certificate"] = self._url.ca.read_bytes()
            return make(
                self._url.container,
                prefix=self._url.prefix or None,
                config=dict(self._url.settings),
                client_options=client,
                retry_config=retries,
                **extra,
            )
        except self._errors as error:
            raise unopened(error, self._url) from error

    def _writing(self) -> Any:
        if self._writer is None:
            self._writer = self._open(_PART_ATTEMPT, {"max_retries": 8, "retry_timeout": timedelta(minutes=3)})
        return self._writer

    def _read(self, path: str, model: ModelId, name: str, limit: int, patience: Patience) -> bytes:
        def attempt(_for_s: float) -> bytes:
            try:
                answer = self._obstore.get(self._reader, path)
                if answer.meta["size"] > limit:
                    raise failures.too_long(name, limit)
                found = b"".join(answer.stream(min_chunk_size=_PIECE))
            except self._errors as error:
                raise failure(error, self._url, model, name) from error
            if len(found) > limit:
                raise failures.too_long(name, limit)
            return found

        return patience.insist(attempt)

    def _stored(self, path: str, model: ModelId, name: str) -> int | None:
        """How long a file is; None where there is none."""

        def attempt(_for_s: float) -> int | None:
            try:
                return int(self._obstore.head(self._reader, path)["size"])
            except self._errors as error:
                what = failure(error, self._url, model, name)
                if what.code == "model-not-found":
                    return None
                raise what from error

        return self._patience.insist(attempt)

    def _compare(self, place: Place, name: str, size: int, parts: Iterable[bytes]) -> None:
        """An upload that was interrupted goes on where it stopped: what lies there already is read, not written."""
        offset = 0
        for part in parts:
            stored = memoryview(bytearray(len(part)))
            if offset + len(part) > size:
                raise failures.conflict(place.model, name)
            if part:
                self.read_into(place, name, offset, stored)
            if stored != part:
                raise failures.conflict(place.model, name)
            offset += len(part)
        if offset != size:
            raise failures.conflict(place.model, name)
