"""A model store in memory, which can be told to misbehave."""

from __future__ import annotations

from collections.abc import Iterable

from cloister.adapters.modelstore.port import Place
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.ids import ModelId


class MemoryStore:
    """``cloister.adapters.modelstore.port.ModelStore`` for tests.

    :ivar away: while true, nothing answers.
    :ivar reads: how many bytes were read.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.hints: dict[ModelId, Place] = {}
        self.away = False
        self.reads = 0

    def write(self, place: Place, name: str, parts: Iterable[bytes]) -> None:
        """Store one file."""
        self.files[place.path(name)] = b"".join(parts)

    def point(self, place: Place) -> None:
        """Let the hint name this packing."""
        self.hints[place.model] = place

    def read(self, place: Place, name: str, *, limit: int) -> bytes:
        """See the port."""
        data = self._file(place, name)
        if len(data) > limit:
            raise InvalidInput("model-file-too-long", f"the model's file {name!r} has more than {limit} bytes")
        self.reads += len(data)
        return data

    def read_into(self, place: Place, name: str, offset: int, out: memoryview) -> None:
        """See the port."""
        part = self._file(place, name)[offset : offset + out.nbytes]
        if len(part) != out.nbytes:
            raise InvalidInput("model-file-short", f"the model's file {name!r} ends before its last chunk")
        out[:] = part
        self.reads += len(part)

    def latest(self, model: ModelId) -> Place | None:
        """See the port."""
        if self.away:
            raise Unavailable("store-unavailable", "the model store does not answer", retry_after=1.0)
        return self.hints.get(model)

    def _file(self, place: Place, name: str) -> bytes:
        if self.away:
            raise Unavailable("store-unavailable", "the model store does not answer", retry_after=1.0)
        data = self.files.get(place.path(name))
        if data is None:
            raise Unavailable("model-not-found", f"the model store has no {name!r} of {place.model.name!r} as released")
        return data
