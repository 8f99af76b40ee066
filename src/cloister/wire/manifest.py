"""The encrypted model's manifest and files (spec/model-format.md).

The manifest is public and says nothing of the model but its id, version and the sizes of its files; what engine it
needs, its tensors and its known answer stand in the file ``description``, encrypted like the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.base.errors import InvalidInput, Tampered
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_MANIFEST, MAX_MODEL_BYTES, MAX_MODEL_FILES, MIB
from cloister.base.secret import SecretBytes
from cloister.crypto.box import TAG_LENGTH
from cloister.crypto.digest import Context, derive, digest
from cloister.crypto.sign import SigningKey
from cloister.crypto.stream import Buffer, nonce
from cloister.wire import cbor, cose
from cloister.wire.cbor import Fields

CHUNK: Final = MIB
DESCRIPTION: Final = "description"
MANIFEST_NAME: Final = "manifest"
_FILE_NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One encrypted file.

    :param size: plaintext bytes; stored bytes are :attr:`stored_size`.
    :param root: SHA-256 over the SHA-256 of each stored chunk, in order.
    """

    name: str
    size: int
    root: bytes

    @property
    def chunks(self) -> int:
        """How many chunks; an empty file has one, empty."""
        return max(1, -(-self.size // CHUNK))

    @property
    def stored_size(self) -> int:
        """Bytes at rest."""
        return self.size + self.chunks * TAG_LENGTH

    def chunk_range(self, index: int) -> tuple[int, int]:
        """Offset and length at rest of one chunk."""
        length = min(CHUNK, self.size - index * CHUNK)
        return index * (CHUNK + TAG_LENGTH), length + TAG_LENGTH


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the owner signed: these files, under this id, version and salt, are the model.

    :param salt: 32 random bytes; no two packings share a file key.
    """

    model: ModelId
    version: int
    salt: bytes
    files: tuple[FileEntry, ...]

    def file(self, name: str) -> FileEntry:
        """:raises InvalidInput: ``model-file-missing``."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise InvalidInput("model-file-missing", f"the manifest of {self.model.name!r} has no file {name!r}")

    @property
    def stored_size(self) -> int:
        """Bytes of all files at rest."""
        return sum(entry.stored_size for entry in self.files)

    def sign(self, owner: SigningKey) -> bytes:
        """COSE_Sign1 under ``Context.MANIFEST``."""
        payload = {
            "v": 1,
            "model": str(self.model),
            "version": self.version,
            "salt": self.salt,
            "chunk": CHUNK,
            "files": [[entry.name, entry.size, entry.root] for entry in self.files],
        }
        return cose.sign1(owner, Context.MANIFEST, cbor.encode(payload))

    @staticmethod
    def parse(data: bytes) -> Manifest:
        """Parse **without** verifying the signature.

        Enough where the manifest's digest was released by the KeyService: the digest covers every byte.

        :raises InvalidInput: anything malformed.
        """
        return _parse(cose.peek1(data, limit=MAX_MANIFEST, what="the manifest"))

    @staticmethod
    def verify(data: bytes, owner_key: bytes) -> Manifest:
        """:raises Tampered: ``signature-invalid``. :raises InvalidInput: anything malformed."""
        return _parse(cose.verify1(data, Context.MANIFEST, owner_key, limit=MAX_MANIFEST, what="the manifest"))


def manifest_digest(data: bytes) -> bytes:
    """What statements, consents and releases name: the digest of the signed bytes."""
    return digest(Context.MANIFEST, data)


def _parse(payload: bytes) -> Manifest:
    fields = Fields(cbor.decode(payload, limit=MAX_MANIFEST, what="the manifest"), "the manifest")
    fields.integer("v", low=1, high=1)
    fields.integer("chunk", low=CHUNK, high=CHUNK)
    files = tuple(_entry(item) for item in fields.items("files", limit=MAX_MODEL_FILES))
    manifest = Manifest(
        model=ModelId.parse(fields.text("model", limit=200)),
        version=fields.integer("version", low=1, high=2**31),
        salt=fields.blob("salt", exactly=32),
        files=files,
    )
    fields.done()
    names = [entry.name for entry in files]
    if names != sorted(set(names)) or DESCRIPTION not in names:
        raise InvalidInput("manifest-files", "the manifest's files are unsorted, repeated or lack the description")
    if manifest.stored_size > MAX_MODEL_BYTES:
        raise InvalidInput("model-too-large", f"the model has more than {MAX_MODEL_BYTES} bytes")
    return manifest


def _entry(item: object) -> FileEntry:
    match item:
        case [str(name), int(size), bytes(root)] if (
            0 < len(name) <= 64
            and _FILE_NAME.issuperset(name)
            and name[0].isalnum()
            and name != MANIFEST_NAME
            and 0 <= size <= MAX_MODEL_BYTES
            and len(root) == 32
            and type(size) is int
        ):
            return FileEntry(name, size, root)
        case _:
            raise InvalidInput("manifest-files", "an entry of the manifest's files is malformed")


# --- files ---


def padded_size(size: int) -> int:
    """Length to which a file is padded with zeros before encryption: 1/64 of an octave, at most 1.6 % (clause 3.4)."""
    if size <= 4096:
        return 4096
    step = 1 << max(0, (size - 1).bit_length() - 7)
    return -(-size // step) * step


class FileCipher:
    """Encrypts and decrypts the chunks of one file; random access, any thread."""

    __slots__ = ("_aead", "_bound", "_chunks", "_entry_name")

    def __init__(
        self, model_key: SecretBytes, *, model: ModelId, version: int, salt: bytes, name: str, size: int
    ) -> None:
        place = (str(model).encode(), version.to_bytes(8, "big"), salt, name.encode(), size.to_bytes(8, "big"))
        self._aead = AESGCM(derive(Context.MODEL_FILE, model_key.reveal(), *place))
        self._bound = Context.MODEL_CHUNK.encode()
        self._chunks = FileEntry(name, size, b"").chunks
        self._entry_name = name

    @classmethod
    def of(cls, model_key: SecretBytes, manifest: Manifest, entry: FileEntry) -> FileCipher:
        """The cipher of one file of a manifest."""
        return cls(
            model_key,
            model=manifest.model,
            version=manifest.version,
            salt=manifest.salt,
            name=entry.name,
            size=entry.size,
        )

    def seal(self, index: int, plaintext: Buffer) -> bytes:
        """One chunk, for its place."""
        return self._aead.encrypt(nonce(index, last=index == self._chunks - 1), plaintext, self._bound)

    def open_into(self, index: int, stored: Buffer, out: memoryview) -> None:
        """One chunk into its place in memory.

        :raises Tampered: ``model-chunk``.
        """
        try:
            self._aead.decrypt_into(nonce(index, last=index == self._chunks - 1), stored, self._bound, out)
        except (InvalidTag, ValueError) as error:
            raise Tampered(
                "model-chunk", f"chunk {index} of the model's file {self._entry_name!r} is not what its owner encrypted"
            ) from error


class RootHash:
    """Computes a file's root as its stored chunks pass by in order."""

    __slots__ = ("_hash",)

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, chunk_digest: bytes) -> None:
        """Add the SHA-256 of the next stored chunk."""
        self._hash.update(chunk_digest)

    def digest(self) -> bytes:
        """The root."""
        return self._hash.digest()


# --- the description (encrypted) ---


@dataclass(frozen=True, slots=True)
class Description:
    """What a runtime needs to know of a model, for its eyes only.

    :param sizes: true length of each file but this one; the files themselves are padded (:func:`padded_size`).
    :param package: the packed model's index (``cloister.engines.package``): engine, tensors, variants, known answer.
    """

    sizes: Mapping[str, int]
    package: bytes

    def encode(self) -> bytes:
        """Deterministic CBOR, padded as a file is: u32 length || CBOR || zeros."""
        body = cbor.encode({"v": 1, "sizes": dict(self.sizes), "package": self.package})
        framed = len(body).to_bytes(4, "big") + body
        return framed + bytes(padded_size(len(framed)) - len(framed))

    @staticmethod
    def decode(data: bytes) -> Description:
        """:raises InvalidInput: anything malformed."""
        what = "the model's description"
        length = int.from_bytes(data[:4], "big")
        if len(data) < 4 or 4 + length > len(data):
            raise InvalidInput("description-length", f"{what} is cut short")
        fields = Fields(cbor.decode(data[4 : 4 + length], limit=2 * MAX_MANIFEST, what=what), what)
        fields.integer("v", low=1, high=1)
        sizes = fields.mapping("sizes")
        description = Description(sizes, fields.blob("package", limit=MAX_MANIFEST))
        fields.done()
        for name, size in sizes.items():
            if type(name) is not str or type(size) is not int or not 0 <= size <= MAX_MODEL_BYTES:
                raise InvalidInput("description-sizes", f"the sizes in {what} are malformed")
        return description
