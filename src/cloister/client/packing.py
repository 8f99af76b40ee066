"""Pack a model: optimise, split, encrypt; and check a packing, or take it apart again (spec/model-format.md).

A packing is a folder that may lie anywhere: ``manifest`` and one encrypted file for each of its entries. The key stays
with the owner.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.base.errors import InvalidInput, Tampered
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_MANIFEST
from cloister.base.secret import SecretBytes
from cloister.client.files import read_public
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

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much."""

MAX_SOURCE: Final = 2 * 1024**3  # an ONNX file is one protobuf message, which ends at 2 GiB
ENGINES: Final[Mapping[str, str]] = {".onnx": "onnx", ".tflite": "litert"}


@dataclass(frozen=True, slots=True)
class Packing:
    """A packed and encrypted model in a folder.

    :param signed: the manifest as signed.
    """

    folder: Path
    manifest: Manifest
    signed: bytes

    @property
    def digest(self) -> bytes:
        """Of the manifest: what statements and consents name."""
        return manifest_digest(self.signed)


def quiet(_what: str, _done: int, _total: int) -> None:
    """No progress shown."""


def pack_model(
    source: Path,
    folder: Path,
    *,
    model: ModelId,
    version: int,
    key: SecretBytes,
    owner: SigningKey,
    tuned: bool = True,
    progress: Progress = quiet,
) -> Packing:
    """Pack a model file into a folder that does not exist yet.

    :param source: ``.onnx`` or ``.tflite``.
    :param key: a fresh 256-bit model key, one a packing.
    :param tuned: also store a variant optimised for this machine's CPU.
    :raises InvalidInput: ``model-type-unknown``, ``file-too-large``, ``folder-exists`` and what the engine's
        packing says of the model (operators, sizes).
    """
    engine = ENGINES.get(source.suffix)
    if engine is None:
        raise InvalidInput(
            "model-type-unknown",
            f"{source.name} is of no type that can be packed",
            hint=f"Known: {', '.join(ENGINES)}. Convert the model first; docs/how-to/export-a-model.md says how.",
        )
    if folder.exists():
        raise InvalidInput("folder-exists", f"{folder} exists already", hint="Choose another folder with --out.")
    data = read_public(source, limit=MAX_SOURCE, what="the model")
    progress("optimise", 0, 1)
    from cloister.engines import optimise
    from cloister.engines.package import INDEX_FILE

    packed = optimise.pack_onnx(data, tuned=tuned) if engine == "onnx" else optimise.pack_litert(data)
    progress("optimise", 1, 1)
    plain: dict[str, bytes] = {name: content for name, content in packed.files.items() if name != INDEX_FILE}
    description = Description({name: len(content) for name, content in plain.items()}, packed.files[INDEX_FILE])
    plain[DESCRIPTION] = description.encode()
    return encrypt_files(plain, folder, model=model, version=version, key=key, owner=owner, progress=progress)


def encrypt_files(
    plain: Mapping[str, bytes],
    folder: Path,
    *,
    model: ModelId,
    version: int,
    key: SecretBytes,
    owner: SigningKey,
    progress: Progress = quiet,
) -> Packing:
    """Encrypt files chunk by chunk, then sign the manifest. Padding is added here."""
    folder.mkdir(parents=True)
    salt = secrets.token_bytes(32)
    total = sum(map(len, plain.values()))
    done = 0
    entries: list[FileEntry] = []
    for name in sorted(plain):
        content = memoryview(plain[name])
        size = padded_size(content.nbytes)
        cipher = FileCipher(key, model=model, version=version, salt=salt, name=name, size=size)
        root = RootHash()
        with (folder / name).open("xb") as stream:
            for index in range(max(1, -(-size // CHUNK))):
                chunk = content[index * CHUNK : (index + 1) * CHUNK]
                missing = min(CHUNK, size - index * CHUNK) - chunk.nbytes
                stored = cipher.seal(index, bytes(chunk) + bytes(missing) if missing else chunk)
                stream.write(stored)
                root.update(hashlib.sha256(stored).digest())
                done += chunk.nbytes
                progress("encrypt", done, total)
        entries.append(FileEntry(name, size, root.digest()))
    manifest = Manifest(model, version, salt, tuple(entries))
    signed = manifest.sign(owner)
    (folder / MANIFEST_NAME).write_bytes(signed)
    return Packing(folder, Manifest.verify(signed, owner.public_key), signed)


def open_packing(folder: Path, owner_key: bytes) -> Packing:
    """Read a packing's manifest.

    :raises InvalidInput: ``file-unreadable`` and the codes of manifests. :raises Tampered: ``signature-invalid``.
    """
    signed = read_public(folder / MANIFEST_NAME, limit=MAX_MANIFEST, what="the manifest")
    return Packing(folder, Manifest.verify(signed, owner_key), signed)


def check_packing(packing: Packing, progress: Progress = quiet) -> None:
    """Compare every file's root with the manifest; needs no key.

    :raises Tampered: ``model-file-changed``, naming the file.
    """
    done, total = 0, packing.manifest.stored_size
    for entry in packing.manifest.files:
        root = RootHash()
        for stored in _stored_chunks(packing, entry):
            root.update(hashlib.sha256(stored).digest())
            done += len(stored)
            progress("check", done, total)
        if root.digest() != entry.root:
            raise Tampered("model-file-changed", f"the file {entry.name!r} of {packing.folder} is not what was packed")


def unpack_file(packing: Packing, name: str, key: SecretBytes) -> Iterator[bytes]:
    """Plaintext of one file, chunk by chunk, padding included; for the owner.

    :raises InvalidInput: ``model-file-missing``. :raises Tampered: ``model-chunk``.
    """
    entry = packing.manifest.file(name)
    cipher = FileCipher.of(key, packing.manifest, entry)
    for index, stored in enumerate(_stored_chunks(packing, entry)):
        out = bytearray(entry.chunk_range(index)[1] - 16)
        cipher.open_into(index, stored, memoryview(out))
        yield bytes(out)


def _stored_chunks(packing: Packing, entry: FileEntry) -> Iterator[bytes]:
    path = packing.folder / entry.name
    try:
        if path.stat().st_size != entry.stored_size:
            raise Tampered("model-file-changed", f"the file {entry.name!r} of {packing.folder} has another size")
        with path.open("rb") as stream:
            for index in range(entry.chunks):
                yield stream.read(entry.chunk_range(index)[1])
    except OSError as error:
        raise InvalidInput("file-unreadable", f"cannot read {path}: {error.strerror}") from error
