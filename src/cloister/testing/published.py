"""Models packed, encrypted and stored for tests, without the owner's tools."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cloister.adapters.modelstore.port import Place
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context, digest
from cloister.crypto.sign import SigningKey
from cloister.wire.manifest import (
    CHUNK,
    DESCRIPTION,
    MANIFEST_NAME,
    Description,
    FileCipher,
    FileEntry,
    Manifest,
    RootHash,
    manifest_digest,
    padded_size,
)


class Writable(Protocol):
    """A store that takes files."""

    def write(self, place: Place, name: str, parts: Iterable[bytes]) -> None: ...

    def point(self, place: Place) -> None: ...


@dataclass(frozen=True, slots=True)
class Published:
    """A model in a store, and its key."""

    place: Place
    version: int
    key: SecretBytes


def publish(
    store: Writable,
    owner: SigningKey,
    name: str,
    files: Mapping[str, bytes],
    index: bytes,
    *,
    version: int = 1,
    key: SecretBytes | None = None,
) -> Published:
    """Encrypt and store.

    :param files: everything but the index, as ``engines.optimise.PackedModel`` has it.
    :param index: the package's.
    """
    model = ModelId(digest(Context.IDENTITY, owner.public_key), name)
    model_key = SecretBytes(secrets.token_bytes(32)) if key is None else key
    description = Description({file: len(content) for file, content in files.items()}, index)
    plain = {
        **{file: content + bytes(padded_size(len(content)) - len(content)) for file, content in files.items()},
        DESCRIPTION: description.encode(),
    }
    salt = secrets.token_bytes(32)
    entries: list[FileEntry] = []
    sealed: dict[str, list[bytes]] = {}
    for file, content in sorted(plain.items()):
        cipher = FileCipher(model_key, model=model, version=version, salt=salt, name=file, size=len(content))
        chunks = FileEntry(file, len(content), b"").chunks
        parts = [cipher.seal(index_, content[index_ * CHUNK : (index_ + 1) * CHUNK]) for index_ in range(chunks)]
        root = RootHash()
        for part in parts:
            root.update(hashlib.sha256(part).digest())
        entries.append(FileEntry(file, len(content), root.digest()))
        sealed[file] = parts
    signed = Manifest(model, version, salt, tuple(entries)).sign(owner)
    place = Place(model, manifest_digest(signed))
    for file, parts in sealed.items():
        store.write(place, file, parts)
    store.write(place, MANIFEST_NAME, [signed])
    store.point(place)
    return Published(place, version, model_key)
