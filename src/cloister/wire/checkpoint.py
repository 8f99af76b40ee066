"""Checkpoints and co-signatures as C2SP has them: signed-note, tlog-checkpoint, tlog-cosignature, tlog-witness.

spec/protocol.md, clauses 13.7 to 13.9, says what is used of them and what differs. Text in, frozen values out; every
reader accepts exactly one form.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from cloister.base.errors import InvalidInput
from cloister.base.limits import (
    MAX_ADD_CHECKPOINT,
    MAX_CHECKPOINT,
    MAX_NOTE_SIGNATURES,
    MAX_WITNESS_NAME,
    MAX_WITNESSES,
)
from cloister.crypto.digest import Context
from cloister.crypto.sign import PUBLIC_KEY_LENGTH, SIGNATURE_LENGTH, SigningKey, verify_raw

MAX_PROOF_LINES: Final = 63
_ROOT_LENGTH: Final = 32
_MAX_NUMBER: Final = 2**63 - 1
_LOG_SIGNATURE: Final = b"\x01"
_COSIGNATURE: Final = b"\x04"
_DASH: Final = "— "
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A witness's word: at ``time`` the head it stands beside is the largest it knows of this log (13.9).

    :param key: the witness's Ed25519 public key. :param time: Unix seconds by the witness's clock.
    """

    key: bytes
    time: int
    signature: bytes

    def fields(self) -> list[object]:
        """For CBOR."""
        return [self.key, self.time, self.signature]

    @staticmethod
    def read(value: object) -> Cosignature:
        """:raises InvalidInput: ``cosignature-malformed``."""
        match value:
            case [bytes(key), int(time), bytes(signature)] if (
                len(key) == PUBLIC_KEY_LENGTH
                and type(time) is int
                and 0 <= time <= _MAX_NUMBER
                and len(signature) == SIGNATURE_LENGTH
            ):
                return Cosignature(key, time, signature)
            case _:
                raise InvalidInput("cosignature-malformed", "a co-signature is not [key, time, signature]")


def read_cosignatures(items: list[object]) -> tuple[Cosignature, ...]:
    """A head's list: sorted by key, one a key.

    :raises InvalidInput: ``cosignature-malformed``.
    """
    if len(items) > MAX_WITNESSES:
        raise InvalidInput("cosignature-malformed", f"a head carries at most {MAX_WITNESSES} co-signatures")
    found = tuple(map(Cosignature.read, items))
    if any(first.key >= second.key for first, second in itertools.pairwise(found)):
        raise InvalidInput("cosignature-malformed", "a head's co-signatures are not sorted, or one key signed twice")
    return found


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A head for witnesses (13.7).

    :param keyservice: whose log. :param root: 32 bytes.
    """

    keyservice: bytes
    size: int
    root: bytes

    @property
    def origin(self) -> str:
        """The first line."""
        return origin_of(self.keyservice)

    @property
    def text(self) -> bytes:
        """The three lines: what is signed."""
        root = base64.b64encode(self.root).decode()
        return f"{self.origin}\n{self.size}\n{root}\n".encode()

    def sign(self, log_key: SigningKey) -> bytes:
        """The signed note."""
        return self.text + b"\n" + self.signature_line(log_key)

    def signature_line(self, log_key: SigningKey) -> bytes:
        """The log's own line."""
        identifier = _key_id(self.origin, _LOG_SIGNATURE, log_key.public_key)
        return _line(self.origin, identifier + log_key.sign_raw(self.text))

    def cosigned(self, time: int) -> bytes:
        """What a witness signs."""
        return f"cosignature/v1\ntime {time}\n".encode() + self.text

    def cosign(self, witness: SigningKey, time: int) -> Cosignature:
        """A witness's co-signature; that it may be given was decided before (``log.witness.judge``)."""
        return Cosignature(witness.public_key, time, witness.sign_raw(self.cosigned(time)))

    def check(self, cosignature: Cosignature) -> None:
        """:raises Tampered: ``signature-invalid``."""
        what = "a witness's co-signature"
        verify_raw(cosignature.key, cosignature.signature, self.cosigned(cosignature.time), what=what)


def origin_of(keyservice: bytes) -> str:
    """The origin line of a KeyService's log, which is also the key name of its signatures."""
    return f"{Context.KEYSERVICE_HEAD}/{keyservice.hex()}"


def check_name(name: str) -> str:
    """A witness's name: printable, no spaces, no plus.

    :raises InvalidInput: ``witness-name``.
    """
    if not 0 < len(name) <= MAX_WITNESS_NAME or not name.isprintable() or "+" in name or any(map(str.isspace, name)):
        raise InvalidInput("witness-name", "a witness's name is printable, without spaces and plus signs")
    return name


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A checkpoint as it arrived, its signatures not yet verified."""

    checkpoint: Checkpoint
    signatures: tuple[tuple[str, bytes], ...]

    @staticmethod
    def parse(data: bytes) -> SignedNote:
        """:raises InvalidInput: ``checkpoint-malformed``."""
        text, separator, rest = _decode(data, MAX_CHECKPOINT, "the checkpoint").rpartition("\n\n")
        lines = text.split("\n")
        if not separator or len(lines) != 3:
            raise _malformed("is not three lines, an empty one and signatures")
        prefix, _, name = lines[0].rpartition("/")
        if prefix != Context.KEYSERVICE_HEAD or not _HEX.fullmatch(name):
            raise _malformed("is of no KeyService's log")
        root = _base64(lines[2])
        if len(root) != _ROOT_LENGTH:
            raise _malformed("has a root that is no hash of 32 bytes")
        checkpoint = Checkpoint(bytes.fromhex(name), _number(lines[1]), root)
        return SignedNote(checkpoint, _signatures(rest))

    def verify(self, log_key: bytes) -> Checkpoint:
        """The checkpoint, if the log key signed it; lines of unknown keys are skipped, as C2SP has it.

        :raises Tampered: ``signature-invalid``, also when no line is the log key's.
        """
        identifier = _key_id(self.checkpoint.origin, _LOG_SIGNATURE, log_key)
        lines = [data[4:] for name, data in self.signatures if (name, data[:4]) == (self.checkpoint.origin, identifier)]
        for signature in lines or [b""]:
            verify_raw(log_key, signature, self.checkpoint.text, what="the checkpoint")
        return self.checkpoint


def cosigned_note(note: SignedNote, log_key: bytes, name: str, cosignature: Cosignature) -> bytes:
    """A checkpoint with its log's signature and one witness's, and no other line."""
    origin = note.checkpoint.origin
    identifier = _key_id(origin, _LOG_SIGNATURE, log_key)
    own = next((data for found, data in note.signatures if (found, data[:4]) == (origin, identifier)), b"")
    return note.checkpoint.text + b"\n" + _line(origin, own) + cosignature_line(name, cosignature)


def parse_cosigned_note(data: bytes, log_key: bytes, keys: Collection[bytes]) -> tuple[Checkpoint, Cosignature] | None:
    """What :func:`cosigned_note` made; ``None`` when no witness of these keys signed it.

    :raises InvalidInput: ``checkpoint-malformed``. :raises Tampered: ``signature-invalid``.
    """
    checkpoint = SignedNote.parse(data).verify(log_key)
    found = parse_cosignatures(data.rpartition(b"\n\n")[2], checkpoint, keys)
    return (checkpoint, found[0]) if found else None


def cosignature_line(name: str, cosignature: Cosignature) -> bytes:
    """One line of a witness's answer."""
    identifier = _key_id(name, _COSIGNATURE, cosignature.key)
    return _line(name, identifier + cosignature.time.to_bytes(8, "big") + cosignature.signature)


def parse_cosignatures(data: bytes, checkpoint: Checkpoint, keys: Collection[bytes]) -> tuple[Cosignature, ...]:
    """The co-signatures of known witnesses in an answer, verified; lines of unknown keys are skipped.

    :raises InvalidInput: ``checkpoint-malformed``.
    :raises Tampered: ``signature-invalid``: a line in a known witness's name that does not verify.
    """
    found: dict[bytes, Cosignature] = {}
    for name, signature in _signatures(_decode(data, MAX_CHECKPOINT, "the witness's answer")):
        for key in keys:
            if signature[:4] == _key_id(name, _COSIGNATURE, key) and len(signature) == 12 + SIGNATURE_LENGTH:
                cosignature = Cosignature(key, int.from_bytes(signature[4:12], "big"), signature[12:])
                if cosignature.time > _MAX_NUMBER:
                    raise _malformed("has a co-signature of a time beyond 63 bits")
                checkpoint.check(cosignature)
                found[key] = cosignature
    return tuple(found[key] for key in sorted(found))


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """What is sent to a witness: the size it has, the proof from there, the signed checkpoint (13.8)."""

    old: int
    proof: tuple[bytes, ...]
    note: bytes

    def encode(self) -> bytes:
        """The body of ``add-checkpoint``."""
        proof = "".join(base64.b64encode(item).decode() + "\n" for item in self.proof)
        return f"old {self.old}\n{proof}\n".encode() + self.note

    @staticmethod
    def decode(data: bytes) -> AddCheckpoint:
        """:raises InvalidInput: ``checkpoint-malformed``."""
        if len(data) > MAX_ADD_CHECKPOINT:
            raise _malformed(f"comes in more than {MAX_ADD_CHECKPOINT} bytes")
        head, separator, note = data.partition(b"\n\n")
        lines = _decode(head, MAX_ADD_CHECKPOINT, "the request").split("\n")
        if not separator or not lines[0].startswith("old ") or len(lines) > 1 + MAX_PROOF_LINES:
            raise _malformed("is not preceded by an old size and a proof")
        proof = tuple(map(_base64, lines[1:]))
        if any(len(item) != _ROOT_LENGTH for item in proof):
            raise _malformed("is preceded by a proof with something else than hashes")
        return AddCheckpoint(_number(lines[0].removeprefix("old ")), proof, note)


def _key_id(name: str, kind: bytes, key: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + kind + key).digest()[:4]


def _line(name: str, signature: bytes) -> bytes:
    return f"{_DASH}{name} {base64.b64encode(signature).decode()}\n".encode()


def _signatures(text: str) -> tuple[tuple[str, bytes], ...]:
    lines = text.split("\n")
    if lines.pop() or not 0 < len(lines) <= MAX_NOTE_SIGNATURES:
        raise _malformed(f"has no signatures, more than {MAX_NOTE_SIGNATURES}, or an unfinished line")
    found = []
    for line in lines:
        name, _, signature = line.removeprefix(_DASH).partition(" ")
        data = _base64(signature)
        if not line.startswith(_DASH) or not name or "+" in name or any(map(str.isspace, name)) or len(data) < 5:
            raise _malformed("has a line that is no signature")
        found.append((name, data))
    return tuple(found)


def _decode(data: bytes, limit: int, what: str) -> str:
    if len(data) > limit:
        raise InvalidInput("checkpoint-malformed", f"{what} has more than {limit} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("checkpoint-malformed", f"{what} is not UTF-8") from error
    if any(character < " " and character != "\n" for character in text):
        raise InvalidInput("checkpoint-malformed", f"{what} holds control characters")
    return text


def _base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed("holds something that is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise _malformed("holds base64 in another form than the canonical one")
    return data


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > _MAX_NUMBER:
        raise _malformed("holds a size that is no decimal number")
    return int(text)


def _malformed(what: str) -> InvalidInput:
    return InvalidInput("checkpoint-malformed", f"the checkpoint {what}")
