"""Chunked AEAD (STREAM): AES-256-GCM under counter nonces with a final-chunk flag (spec/protocol.md, section 8.4).

A key seals one stream. Nonce = 7 zero bytes || u32 counter || u8 final. Every chunk is authenticated to its place:
reordering, dropping, repeating, joining two streams and cutting the end all fail.
"""

from __future__ import annotations

from typing import Final, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.base.errors import InvalidInput, Tampered
from cloister.base.limits import CHUNK_SIZE
from cloister.crypto.box import TAG_LENGTH

Buffer = bytes | bytearray | memoryview

_PREFIX: Final = bytes(7)
MAX_CHUNKS: Final = 2**32 - 1


def nonce(index: int, *, last: bool) -> bytes:
    """Clause 8.4."""
    return _PREFIX + index.to_bytes(4, "big") + (b"\x01" if last else b"\x00")


class _Chunks:
    """Key, bound data, counter and whether the final chunk has passed; common to both directions."""

    __slots__ = ("_aead", "_bound", "_index", "finished")

    def __init__(self, key: bytes, bound: bytes) -> None:
        self._aead = AESGCM(key)
        self._bound = bound
        self._index = 0
        self.finished = False

    def _next(self, length: int, *, last: bool) -> bytes:
        if self.finished:
            raise InvalidInput("stream-finished", "there is a chunk after the final chunk")
        if length > CHUNK_SIZE:
            raise InvalidInput("chunk-too-long", f"a chunk has {length} bytes; at most {CHUNK_SIZE} are accepted")
        if self._index >= MAX_CHUNKS:
            raise InvalidInput("stream-too-long", f"a stream has at most {MAX_CHUNKS} chunks")
        value = nonce(self._index, last=last)
        self._index += 1
        self.finished = last
        return value


@final
class ChunkSealer(_Chunks):
    """Seals one stream."""

    __slots__ = ()

    def seal(self, plaintext: Buffer, *, last: bool) -> bytes:
        """Ciphertext || tag."""
        view = memoryview(plaintext)
        return self._aead.encrypt(self._next(view.nbytes, last=last), view, self._bound)

    def seal_into(self, plaintext: Buffer, out: Buffer, *, last: bool) -> int:
        """As :meth:`seal`, into a buffer of exactly the right length; returns that length."""
        view = memoryview(plaintext)
        return self._aead.encrypt_into(self._next(view.nbytes, last=last), view, self._bound, out)


@final
class ChunkOpener(_Chunks):
    """Opens one stream."""

    __slots__ = ()

    def open(self, sealed: Buffer, *, last: bool) -> bytes:
        """:raises Tampered: ``chunk-open``. :raises InvalidInput: ``chunk-too-long``, ``stream-finished``."""
        view = memoryview(sealed)
        value = self._next(view.nbytes - TAG_LENGTH, last=last)
        try:
            return self._aead.decrypt(value, view, self._bound)
        except (InvalidTag, ValueError) as error:
            raise _not_authentic(self._index) from error

    def open_into(self, sealed: Buffer, out: Buffer, *, last: bool) -> int:
        """As :meth:`open`, into a buffer of exactly the right length; returns that length."""
        view = memoryview(sealed)
        value = self._next(view.nbytes - TAG_LENGTH, last=last)
        try:
            return self._aead.decrypt_into(value, view, self._bound, out)
        except (InvalidTag, ValueError) as error:
            raise _not_authentic(self._index) from error


def _not_authentic(index: int) -> Tampered:
    return Tampered("chunk-open", f"chunk {index} was made under another key or place, or was changed on the way")
