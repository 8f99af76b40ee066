"""A model store in a directory: local disk, a mounted volume, a bucket behind a file system."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloister.adapters.modelstore import failures
from cloister.adapters.modelstore.port import Place, latest_path, read_hint
from cloister.base.errors import Unavailable
from cloister.base.ids import ModelId

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class DirectoryStore:
    """``PublishingStore`` below ``root``."""

    parallel: Final = 4

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, place: Place, name: str, *, limit: int) -> bytes:
        """See the port."""
        descriptor = self._open(place.path(name), place.model)
        try:
            parts = []
            left = limit + 1
            while left and (part := os.read(descriptor, min(left, 1 << 20))):
                parts.append(part)
                left -= len(part)
        except OSError as error:
            raise _unavailable(error) from error
        finally:
            os.close(descriptor)
        if not left:
            raise failures.too_long(name, limit)
        return b"".join(parts)

    def read_into(self, place: Place, name: str, offset: int, out: memoryview) -> None:
        """See the port."""
        descriptor = self._open(place.path(name), place.model)
        try:
            done = 0
            while done < out.nbytes:
                count = os.preadv(descriptor, [out[done:]], offset + done)
                if not count:
                    raise failures.too_short(name)
                done += count
        except OSError as error:
            raise _unavailable(error) from error
        finally:
            os.close(descriptor)

    def latest(self, model: ModelId) -> Place | None:
        """See the port."""
        try:
            descriptor = self._open(latest_path(model), model)
        except Unavailable as error:
            if error.code == "model-not-found":
                return None
            raise
        try:
            return read_hint(model, os.read(descriptor, 80))
        except OSError as error:
            raise _unavailable(error) from error
        finally:
            os.close(descriptor)

    def write(self, place: Place, name: str, parts: Iterable[bytes]) -> None:
        """See the port."""
        target = self._root / place.path(name)
        if target.exists():
            self._compare(target, place.model, parts)
        else:
            self._replace(target, parts)

    def point(self, place: Place) -> None:
        """See the port."""
        self._replace(self._root / latest_path(place.model), [place.digest.hex().encode()])

    def _compare(self, target: Path, model: ModelId, parts: Iterable[bytes]) -> None:
        try:
            with target.open("rb") as file:
                same = all(file.read(len(part)) == part for part in parts) and not file.read(1)
        except OSError as error:
            raise _unavailable(error) from error
        if not same:
            raise failures.conflict(model, target.name)

    def _replace(self, target: Path, parts: Iterable[bytes]) -> None:
        temporary = target.with_name(f".{secrets.token_hex(8)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            raise _unavailable(error) from error
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _open(self, path: str, model: ModelId) -> int:
        try:
            return os.open(self._root / path, _FLAGS)
        except FileNotFoundError as error:
            raise failures.not_found(model, path.rpartition("/")[2]) from error
        except OSError as error:
            raise _unavailable(error) from error


def _unavailable(error: OSError) -> Unavailable:
    return Unavailable("store-unavailable", f"the model store does not answer: {error.strerror}", retry_after=1.0)
