"""A model store in memory, which can be told to misbehave."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cloister.adapters.modelstore import failures
from cloister.adapters.modelstore.port import Place
from cloister.base.ids import ModelId


class MemoryStore:
    """``cloister.adapters.modelstore.port.ModelStore`` for tests.

    :ivar away: while true, nothing answers.
    :ivar reads: how many bytes were read.
    """

    parallel: Final = 4

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.hints: dict[ModelId, Place] = {}
        self.away = False
        self.reads = 0

    def write(self, place: Place, name: str, parts: Iterable[bytes]) -> None:
        """Store one file."""
        data = b"".join(parts)
        if self.files.setdefault(place.path(name), data) != data:
            raise failures.conflict(place.model, name)

    def point(self, place: Place) -> None:
        """Let the hint name this packing."""
        self.hints[place.model] = place

    def read(self, place: Place, name: str, *, limit: int) -> bytes:
        """See the port."""
        data = self._file(place, name)
        if len(data) > limit:
            raise failures.too_long(name, limit)
        self.reads += len(data)
        return data

    def read_into(self, place: Place, name: str, offset: int, out: memoryview) -> None:
        """See the port."""
        part = self._file(place, name)[offset : offset + out.nbytes]
        if len(part) != out.nbytes:
            raise failures.too_short(name)
        out[:] = part
        self.reads += len(part)

    def latest(self, model: ModelId) -> Place | None:
        """See the port."""
        if self.away:
            raise failures.unavailable("does not answer")
        return self.hints.get(model)

    def _file(self, place: Place, name: str) -> bytes:
        if self.away:
            raise failures.unavailable("does not answer")
        data = self.files.get(place.path(name))
        if data is None:
            raise failures.not_found(place.model, name)
        return data
