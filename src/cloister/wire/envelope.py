"""Sealed requests and responses (spec/protocol.md, section 8).

    request  = "CLQ1" || u16 length || header || [HPKE-sealed content secret] || frames
    response = "CLA1" || 32-byte nonce || frames
    frame    = u32 (bit 31: final; rest: plaintext length) || ciphertext || 16-byte tag

Both modes put a 32-byte content secret into the same envelope: derived from the request key and the header, or sealed
to the service key. Header bytes are hashed as received and never encoded again.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, final

from cloister.base.errors import InvalidInput, Tampered
from cloister.base.ids import ID_LENGTH, ModelId
from cloister.base.limits import CHUNK_SIZE, MAX_HEADER
from cloister.base.secret import SecretBytes
from cloister.crypto import hpke
from cloister.crypto.box import TAG_LENGTH
from cloister.crypto.digest import Context, derive, digest
from cloister.crypto.sign import SIGNATURE_LENGTH, SigningKey, verify
from cloister.crypto.stream import Buffer, ChunkOpener, ChunkSealer
from cloister.wire import cbor
from cloister.wire.cbor import Fields
from cloister.wire.statements import REQUEST_KEY, SERVICE_KEY

REQUEST_MAGIC: Final = b"CLQ1"
RESPONSE_MAGIC: Final = b"CLA1"
NONCE_LENGTH: Final = 32
FRAME_HEAD: Final = 4
FRAME_OVERHEAD: Final = FRAME_HEAD + TAG_LENGTH
RESPONSE_PREFIX: Final = len(RESPONSE_MAGIC) + NONCE_LENGTH
SEALED_SECRET: Final = hpke.OVERHEAD + 32
_FINAL_BIT: Final = 1 << 31
REQUEST_MEDIA_TYPE: Final = "application/vnd.cloister.request"
RESPONSE_MEDIA_TYPE: Final = "application/vnd.cloister.response"


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """What stands in the clear, authenticated (clause 8.2).

    :param key_id: the request key's commitment, or the service key's id.
    :param nonce: 32 fresh random bytes: the request's name, and what makes its keys its own.
    :param issued_at: Unix seconds.
    """

    mode: str
    model: ModelId
    user: bytes
    key_id: bytes
    nonce: bytes
    issued_at: int

    def encode(self) -> bytes:
        """Deterministic CBOR."""
        return cbor.encode(
            {
                "suite": 1,
                "mode": self.mode,
                "model": str(self.model),
                "user": self.user,
                "key": self.key_id,
                "nonce": self.nonce,
                "iat": self.issued_at,
            }
        )

    @staticmethod
    def decode(data: bytes) -> RequestHeader:
        """:raises InvalidInput: anything malformed."""
        usual = _decode_usual(data)
        if usual is not None:
            return usual
        fields = Fields(cbor.decode(data, limit=MAX_HEADER, what="the request's header"), "the request's header")
        fields.integer("suite", low=1, high=1)
        header = RequestHeader(
            mode=fields.text("mode", limit=16),
            model=ModelId.parse(fields.text("model", limit=200)),
            user=fields.blob("user", exactly=ID_LENGTH),
            key_id=fields.blob("key", exactly=32),
            nonce=fields.blob("nonce", exactly=NONCE_LENGTH),
            issued_at=fields.integer("iat"),
        )
        fields.done()
        if header.mode not in (REQUEST_KEY, SERVICE_KEY):
            raise InvalidInput("field-range", "a request's mode is request-key or service-key")
        return header


_model_id = lru_cache(maxsize=1024)(ModelId.parse)
_BEFORE_TIME: Final = b"\xa7\x63iat\x1a"
_BEFORE_KEY: Final = b"\x63key\x58\x20"
_BEFORE_MODE: Final = b"\x64mode\x6b"
_BEFORE_USER: Final = b"\x64user\x58\x20"
_BEFORE_MODEL: Final = b"\x65model\x78"
_BEFORE_NONCE: Final = b"\x65nonce\x58\x20"
_END: Final = b"\x65suite\x01"
_MODES: Final = {mode.encode(): mode for mode in (REQUEST_KEY, SERVICE_KEY)}


def _decode_usual(data: bytes) -> RequestHeader | None:
    """A header in the one form that any header issued before the year 2106 has; ``None``: decode it the long way.

    What is read is written again and compared, so this accepts nothing that the long way would not: it saves the hot
    path 40 us.
    """
    if len(data) < 112:
        return None
    size = data[111]
    issued_at, key_id, mode, user = data[6:10], data[16:48], data[54:65], data[72:104]
    model, nonce = data[112 : 112 + size], data[120 + size : 152 + size]
    again = (
        _BEFORE_TIME, issued_at, _BEFORE_KEY, key_id, _BEFORE_MODE, mode, _BEFORE_USER, user, _BEFORE_MODEL,
        data[111:112], model, _BEFORE_NONCE, nonce, _END,
    )  # fmt: skip
    # Beyond 255 bytes, and below 24, CBOR writes a length otherwise; no model id is so long or so short.
    if b"".join(again) != data or mode not in _MODES or len(nonce) != NONCE_LENGTH or not 24 <= size <= 200:
        return None
    seconds = int.from_bytes(issued_at, "big")
    if seconds < 1 << 16:
        return None
    try:
        model_id = _model_id(model.decode("ascii"))
    except (UnicodeDecodeError, InvalidInput):
        return None
    return RequestHeader(_MODES[mode], model_id, user, key_id, nonce, seconds)


@dataclass(frozen=True, slots=True)
class RequestPrefix:
    """Everything before the frames, as received.

    :param sealed: the HPKE-sealed content secret; empty in request-key mode.
    :param length: bytes up to the first frame.
    """

    header: RequestHeader
    header_bytes: bytes
    sealed: bytes

    @property
    def length(self) -> int:
        """Where the frames begin."""
        return len(REQUEST_MAGIC) + 2 + len(self.header_bytes) + len(self.sealed)

    @property
    def digest(self) -> bytes:
        """The request's hash: binds chunks, signature and response to this prefix (clause 8.3)."""
        return digest(Context.REQUEST_HEADER, self.header_bytes, self.sealed)

    def encode(self) -> bytes:
        """The bytes before the frames."""
        return REQUEST_MAGIC + len(self.header_bytes).to_bytes(2, "big") + self.header_bytes + self.sealed

    @staticmethod
    def parse(data: Buffer) -> RequestPrefix | None:
        """Read the prefix; ``None`` when more bytes are needed.

        :raises InvalidInput: ``envelope-malformed`` and the codes of the header.
        """
        view = memoryview(data)
        if view[:4] != REQUEST_MAGIC[: view[:4].nbytes]:
            raise InvalidInput("envelope-malformed", "this is not a sealed request of version 1")
        if view.nbytes < 6:
            return None
        length = int.from_bytes(view[4:6], "big")
        if not 0 < length <= MAX_HEADER:
            raise InvalidInput("envelope-malformed", f"a request's header has 1 to {MAX_HEADER} bytes, not {length}")
        if view.nbytes < 6 + length:
            return None
        header_bytes = bytes(view[6 : 6 + length])
        header = RequestHeader.decode(header_bytes)
        sealed_length = SEALED_SECRET if header.mode == SERVICE_KEY else 0
        if view.nbytes < 6 + length + sealed_length:
            return None
        return RequestPrefix(header, header_bytes, bytes(view[6 + length : 6 + length + sealed_length]))


# --- the content secret, and the keys from it (clause 8.3) ---


def derive_content_secret(request_key: SecretBytes, header_bytes: bytes) -> SecretBytes:
    """Request-key mode: HKDF over request key and header; the nonce in the header makes it unique."""
    return SecretBytes(derive(Context.REQUEST_SECRET, request_key.reveal(), header_bytes))


def open_content_secret(service_key: hpke.HpkePrivateKey, prefix: RequestPrefix) -> SecretBytes:
    """Service-key mode.

    :raises Tampered: ``hpke-open``.
    """
    secret = service_key.open(prefix.sealed, Context.REQUEST_SEAL, prefix.header_bytes, what="the request")
    return SecretBytes.key(secret)


def request_opener(secret: SecretBytes, request_digest: bytes) -> ChunkOpener:
    """For the runtime."""
    return ChunkOpener(*_request_key(secret, request_digest))


def response_sealer(secret: SecretBytes, request_digest: bytes, nonce: bytes) -> ChunkSealer:
    """For the runtime; ``nonce`` is 32 fresh bytes, sent in the clear before the frames."""
    return ChunkSealer(*_response_key(secret, request_digest, nonce))


def _request_key(secret: SecretBytes, request_digest: bytes) -> tuple[bytes, bytes]:
    return (
        derive(Context.REQUEST_CHUNKS, secret.reveal(), request_digest),
        Context.REQUEST_CHUNKS.encode() + request_digest,
    )


def _response_key(secret: SecretBytes, request_digest: bytes, nonce: bytes) -> tuple[bytes, bytes]:
    return (
        derive(Context.RESPONSE_CHUNKS, secret.reveal(), request_digest, nonce),
        Context.RESPONSE_CHUNKS.encode() + request_digest + nonce,
    )


def verify_request_signature(prefix: RequestPrefix, signature: bytes, user_key: bytes) -> None:
    """Service-key mode: the user's signature, from the first 64 bytes of the plaintext (clause 8.5).

    :raises Tampered: ``signature-invalid``.
    """
    verify(user_key, signature, Context.REQUEST_SIGNATURE, prefix.digest, what="the request")


# --- frames ---


def frame_head(length: int, *, last: bool) -> bytes:
    """u32: final bit and plaintext length."""
    return (length | (_FINAL_BIT if last else 0)).to_bytes(4, "big")


def parse_frame_head(data: Buffer) -> tuple[int, bool]:
    """Plaintext length and final flag.

    :raises InvalidInput: ``chunk-too-long``.
    """
    word = int.from_bytes(data, "big")
    length, last = word & ~_FINAL_BIT, bool(word & _FINAL_BIT)
    if length > CHUNK_SIZE:
        raise InvalidInput("chunk-too-long", f"a chunk has {length} bytes; at most {CHUNK_SIZE} are accepted")
    return length, last


def sealed_length(plaintext: int) -> int:
    """Bytes of frames for a message of this many bytes sealed by :func:`seal_frames`."""
    return plaintext + max(1, -(-plaintext // CHUNK_SIZE)) * FRAME_OVERHEAD


def seal_frames(sealer: ChunkSealer, message: Buffer, out: memoryview) -> int:
    """Seal a whole message into ``out`` (of :func:`sealed_length`); returns the bytes written."""
    view = memoryview(message).cast("B")
    written = 0
    position = 0
    while True:
        chunk = view[position : position + CHUNK_SIZE]
        position += chunk.nbytes
        last = position >= view.nbytes
        out[written : written + FRAME_HEAD] = frame_head(chunk.nbytes, last=last)
        written += FRAME_HEAD
        written += sealer.seal_into(chunk, out[written : written + chunk.nbytes + TAG_LENGTH], last=last)
        if last:
            return written


def plaintext_length(frames: Buffer) -> int:
    """Sum of the plaintext lengths of complete frames, read from their heads alone; for sizing a buffer.

    :raises InvalidInput: ``envelope-truncated``, ``envelope-trailing``, ``chunk-too-long``.
    """
    view = memoryview(frames)
    total = position = 0
    while True:
        if position + FRAME_OVERHEAD > view.nbytes:
            raise InvalidInput("envelope-truncated", "the sealed message ends before its final chunk")
        length, last = parse_frame_head(view[position : position + FRAME_HEAD])
        position += FRAME_OVERHEAD + length
        total += length
        if last:
            break
    if position != view.nbytes:
        code = "envelope-trailing" if position < view.nbytes else "envelope-truncated"
        raise InvalidInput(code, "the sealed message does not end with its final chunk")
    return total


def open_frames(opener: ChunkOpener, frames: Buffer, out: memoryview) -> int:
    """Open a whole message into ``out`` (at least :func:`plaintext_length` bytes); returns the bytes written.

    Nothing of ``out`` may be used when this raises.

    :raises InvalidInput: ``envelope-truncated``, ``envelope-trailing``, ``chunk-too-long``.
    :raises Tampered: ``chunk-open``.
    """
    view = memoryview(frames)
    plaintext_length(view)
    position = written = 0
    while not opener.finished:
        length, last = parse_frame_head(view[position : position + FRAME_HEAD])
        position += FRAME_HEAD
        sealed = view[position : position + length + TAG_LENGTH]
        written += opener.open_into(sealed, out[written : written + length], last=last)
        position += sealed.nbytes
    return written


@final
class FrameReader:
    """Opens frames as they arrive, in bounded memory: for streams larger than a chunk (clause 8.6)."""

    def __init__(self, opener: ChunkOpener) -> None:
        self._opener = opener
        self._pending = bytearray()

    def feed(self, data: Buffer) -> Iterator[bytes]:
        """Plaintext of every frame that is now complete.

        :raises InvalidInput: ``chunk-too-long``, ``envelope-trailing``.
        :raises Tampered: ``chunk-open``.
        """
        self._pending += data
        while len(self._pending) >= FRAME_HEAD and not self._opener.finished:
            length, last = parse_frame_head(self._pending[:FRAME_HEAD])
            end = FRAME_OVERHEAD + length
            if len(self._pending) < end:
                return
            sealed = bytes(self._pending[FRAME_HEAD:end])
            del self._pending[:end]
            yield self._opener.open(sealed, last=last)
        if self._opener.finished and self._pending:
            raise InvalidInput("envelope-trailing", "there are bytes after the final chunk")

    def close(self) -> None:
        """The stream has ended.

        :raises Tampered: ``stream-truncated`` when its final chunk never came: an error, never a short answer.
        """
        if not self._opener.finished:
            raise Tampered("stream-truncated", "the stream ended before its final chunk")


def seal_stream(sealer: ChunkSealer, parts: Iterable[Buffer]) -> Iterator[bytes]:
    """One frame a part (at most a chunk each), the last with the final flag; an empty stream is one empty frame."""
    held: Buffer = b""
    first = True
    for part in parts:
        if not first:
            yield _frame(sealer, held, last=False)
        held, first = part, False
    yield _frame(sealer, held, last=True)


def _frame(sealer: ChunkSealer, part: Buffer, *, last: bool) -> bytes:
    return frame_head(memoryview(part).nbytes, last=last) + sealer.seal(part, last=last)


# --- the user's side ---


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """A request ready to be sealed.

    :param prefix: bytes before the frames.
    :param signature: 64 bytes that go before the message in the first chunk; empty in request-key mode.
    """

    prefix: bytes
    signature: bytes
    digest: bytes
    secret: SecretBytes

    def sealer(self) -> ChunkSealer:
        """Seals the request's frames; one call a request."""
        return ChunkSealer(*_request_key(self.secret, self.digest))

    def seal(self, message: Buffer) -> bytearray:
        """The whole sealed request. ``message`` begins with :attr:`signature`."""
        view = memoryview(message)
        out = bytearray(len(self.prefix) + sealed_length(view.nbytes))
        out[: len(self.prefix)] = self.prefix
        seal_frames(self.sealer(), view, memoryview(out)[len(self.prefix) :])
        return out

    def response_opener(self, head: Buffer) -> ChunkOpener:
        """From the first ``RESPONSE_PREFIX`` bytes of a response.

        :raises InvalidInput: ``envelope-malformed``.
        """
        view = memoryview(head)
        if view.nbytes != RESPONSE_PREFIX or bytes(view[:4]) != RESPONSE_MAGIC:
            raise InvalidInput("envelope-malformed", "this is not a sealed response of version 1")
        return ChunkOpener(*_response_key(self.secret, self.digest, bytes(view[4:])))

    def open_response(self, data: Buffer) -> bytearray:
        """The whole message of a response.

        :raises InvalidInput: ``envelope-malformed``, ``envelope-truncated``, ``envelope-trailing``.
        :raises Tampered: ``chunk-open``: it answers another request, or was changed on the way.
        """
        view = memoryview(data)
        opener = self.response_opener(view[:RESPONSE_PREFIX])
        out = bytearray(plaintext_length(view[RESPONSE_PREFIX:]))
        open_frames(opener, view[RESPONSE_PREFIX:], memoryview(out))
        return out


def new_request_with_key(
    *, request_key: SecretBytes, key_id: bytes, model: ModelId, user: bytes, issued_at: int
) -> OutgoingRequest:
    """Request-key mode (clause 8.3)."""
    header = RequestHeader(REQUEST_KEY, model, user, key_id, secrets.token_bytes(NONCE_LENGTH), issued_at)
    prefix = RequestPrefix(header, header.encode(), b"")
    return OutgoingRequest(prefix.encode(), b"", prefix.digest, derive_content_secret(request_key, prefix.header_bytes))


def new_request_to_service(
    *, service_key: bytes, key_id: bytes, identity: SigningKey, model: ModelId, user: bytes, issued_at: int
) -> OutgoingRequest:
    """Service-key mode (clause 8.5)."""
    header = RequestHeader(SERVICE_KEY, model, user, key_id, secrets.token_bytes(NONCE_LENGTH), issued_at)
    header_bytes = header.encode()
    secret = SecretBytes(secrets.token_bytes(32))
    prefix = RequestPrefix(
        header, header_bytes, hpke.seal(service_key, secret.reveal(), Context.REQUEST_SEAL, header_bytes)
    )
    signature = identity.sign(Context.REQUEST_SIGNATURE, prefix.digest)
    return OutgoingRequest(prefix.encode(), signature, prefix.digest, secret)


def signature_length(mode: str) -> int:
    """Bytes before the message in the first chunk."""
    return SIGNATURE_LENGTH if mode == SERVICE_KEY else 0


def join(parts: Sequence[Buffer]) -> bytearray:
    """One buffer of several parts, copied once."""
    out = bytearray(sum(memoryview(part).nbytes for part in parts))
    position = 0
    for part in parts:
        view = memoryview(part).cast("B")
        out[position : position + view.nbytes] = view
        position += view.nbytes
    return out
