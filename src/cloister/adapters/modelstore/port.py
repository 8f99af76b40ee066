"""The ModelStore port: ranged reads of encrypted model files, by owner, name and manifest digest.

    <owner, 64 hex digits>/<model name>/<manifest digest, 64 hex digits>/<file>
    <owner, 64 hex digits>/<model name>/latest                            the newest digest, as a hint: 64 hex digits

Versions stand side by side and never change, so a store can be any object store, a cache in front of it, or a mounted
directory. ``latest`` only lets a runtime begin to fetch before its keys are there; what it says is believed by nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from cloister.base.errors import InvalidInput
from cloister.base.ids import ModelId

LATEST: Final = "latest"
_FILE: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Place:
    """One packing of one model.

    :param digest: of the manifest.
    """

    model: ModelId
    digest: bytes

    def path(self, name: str) -> str:
        """Relative path of one of its files.

        :raises InvalidInput: ``file-name-malformed``: a name that could lead elsewhere.
        """
        if not _FILE.fullmatch(name) or ".." in name:
            raise InvalidInput("file-name-malformed", f"{name[:64]!r} is not the name of a model's file")
        return f"{self.model}/{self.digest.hex()}/{name}"


def latest_path(model: ModelId) -> str:
    """Relative path of the hint."""
    return f"{model}/{LATEST}"


def read_hint(model: ModelId, text: bytes) -> Place | None:
    """What a hint says, if it says anything."""
    digits = text[:65].strip().decode("ascii", "replace")
    return Place(model, bytes.fromhex(digits)) if re.fullmatch(r"[0-9a-f]{64}", digits) else None


class ModelStore(Protocol):
    """Port. Real: ``directory.DirectoryStore``, ``ranged.HttpStore``, ``objects.ObjectStore``. Fake:
    ``cloister.testing.modelstore``.

    Every method raises Unavailable: ``store-unavailable`` (try again), ``store-denied`` and ``store-misconfigured``
    (its operator has to do something).
    """

    @property
    def parallel(self) -> int:
        """How many ranges of one model are worth reading at a time: enough to hide the store's latency."""

    def read(self, place: Place, name: str, *, limit: int) -> bytes:
        """A whole small file.

        :raises Unavailable: ``model-not-found``.
        :raises InvalidInput: ``model-file-too-long`` beyond ``limit`` bytes.
        """

    def read_into(self, place: Place, name: str, offset: int, out: memoryview) -> None:
        """Exactly ``len(out)`` bytes from ``offset`` on, at least one. From any thread, many at once.

        :raises Unavailable: ``model-not-found``.
        :raises InvalidInput: ``model-file-short`` when the file ends before.
        """

    def latest(self, model: ModelId) -> Place | None:
        """What the store says is the newest packing; a hint, never trusted. None where it says nothing."""


class PublishingStore(ModelStore, Protocol):
    """Port of whoever publishes: also written. A runtime needs and gets a :class:`ModelStore` only."""

    def write(self, place: Place, name: str, parts: Iterable[bytes]) -> None:
        """Store one file; it appears whole or not at all. Written again, it is left as it is where it is the same.

        :param parts: of at most a few MiB each; read once.
        :raises Refused: ``store-conflict``: another file lies there; versions are never overwritten.
        """

    def point(self, place: Place) -> None:
        """Let ``latest`` name this packing; after all of its files were written."""
