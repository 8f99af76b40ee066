"""What custodians hold of a KeyService: its root under a recovery key, that key in shares (spec/protocol.md, 13.24).

A :class:`CustodyRecord` is public: the root in it is sealed under a recovery key that nobody has, and each share of
that key is sealed to one custodian. It lies in the store, and its digest in the log (``cloister.log.custody``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from cloister.base.errors import InvalidInput, Refused, Tampered
from cloister.base.limits import MAX_CUSTODIANS, MAX_CUSTODY_RECORD, MAX_ROOT
from cloister.base.secret import KEY_LENGTH, SecretBytes
from cloister.crypto import hpke
from cloister.crypto.box import TAG_LENGTH
from cloister.crypto.digest import Context, digest, same
from cloister.wire import cbor
from cloister.wire.cbor import Fields

SET_LENGTH: Final = 16
_FORMAT: Final = 1
_WHAT: Final = "the recovery record"
_SHARE_LENGTH: Final = hpke.OVERHEAD + KEY_LENGTH
_MAX_MEASUREMENT: Final = 64


def custodian_id(public_key: bytes) -> bytes:
    """What a configuration names a custodian by (clause 13.24.1)."""
    return digest(Context.CUSTODIAN_ID, public_key)


def read_public_key(data: bytes) -> bytes:
    """A custodian's public key from its file: hexadecimal digits.

    :raises InvalidInput: ``custodian-key-malformed``.
    """
    try:
        key = bytes.fromhex(data.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != hpke.PUBLIC_LENGTH:
        raise InvalidInput(
            "custodian-key-malformed",
            f"this is no custodian's public key: {2 * hpke.PUBLIC_LENGTH} hexadecimal digits",
            hint="`cloister custodian keygen` writes it, with the ending .pub.",
        )
    return key


def check_threshold(threshold: int, count: int) -> None:
    """Clause 13.24.2: two at least must agree, unless there is one only.

    :raises InvalidInput: ``custodian-threshold``.
    """
    if not 1 <= count <= MAX_CUSTODIANS or not min(2, count) <= threshold <= count:
        raise InvalidInput(
            "custodian-threshold",
            f"{threshold} of {count} custodians cannot be: at most {MAX_CUSTODIANS}, and at least two of them together",
            hint="One alone of several would hold everything; name one custodian only if that is what you want.",
        )


@dataclass(frozen=True, slots=True)
class Code:
    """What a KeyService is: kind of TEE, measurement of the code, digest of its measured configuration."""

    tee: str
    measurement: bytes
    configuration: bytes


@dataclass(frozen=True, slots=True)
class Holder:
    """One custodian's part.

    :param commitment: to the share, so that a wrong one is known by itself.
    :param share: sealed to the custodian's key.
    """

    custodian: bytes
    commitment: bytes
    share: bytes


@dataclass(frozen=True)
class CustodyRecord:
    """See the module.

    :param holders: by ascending id; a share's number is its holder's place, from 1.
    :param generation: of the root in it: how often it had been rotated.
    :param code: what made it: what brings the root back must be the same, or its successor (clause 13.24.8).
    :param box: the root, sealed under the recovery key.
    """

    keyservice: bytes
    set: bytes
    threshold: int
    holders: tuple[Holder, ...]
    generation: int
    code: Code
    box: bytes

    @cached_property
    def bound(self) -> bytes:
        """Digest of all but what is sealed, to which everything sealed is bound."""
        return bound_to(
            self.keyservice,
            self.set,
            threshold=self.threshold,
            holders=[(holder.custodian, holder.commitment) for holder in self.holders],
            generation=self.generation,
            code=self.code,
        )

    @cached_property
    def encoded(self) -> bytes:
        """Deterministic CBOR."""
        return cbor.encode(
            {
                "format": _FORMAT,
                "ks": self.keyservice,
                "set": self.set,
                "threshold": self.threshold,
                "holders": [[holder.custodian, holder.commitment, holder.share] for holder in self.holders],
                "generation": self.generation,
                "tee": self.code.tee,
                "measurement": self.code.measurement,
                "configuration": self.code.configuration,
                "box": self.box,
            }
        )

    @property
    def digest(self) -> bytes:
        """What the log's entry and the evidence of whoever asks for shares name it by."""
        return record_digest(self.encoded)

    def number(self, custodian: bytes) -> int:
        """Which share is this custodian's.

        :raises Refused: ``custodian-unknown``.
        """
        for number, holder in enumerate(self.holders, 1):
            if same(holder.custodian, custodian):
                return number
        raise Refused(
            "custodian-unknown",
            f"custodian {custodian.hex()} holds no share in this set",
            hint="Shares were made anew since, or this is the record of another KeyService.",
        )

    @staticmethod
    def decode(data: bytes) -> CustodyRecord:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(cbor.decode(data, limit=MAX_CUSTODY_RECORD, what=_WHAT), _WHAT)
        known = fields.integer("format") == _FORMAT
        record = CustodyRecord(
            keyservice=fields.blob("ks", exactly=32),
            set=fields.blob("set", exactly=SET_LENGTH),
            threshold=fields.integer("threshold"),
            holders=tuple(_holder(item) for item in fields.items("holders", limit=MAX_CUSTODIANS)),
            generation=fields.integer("generation"),
            code=Code(
                fields.text("tee", limit=32),
                fields.blob("measurement", limit=_MAX_MEASUREMENT),
                fields.blob("configuration", exactly=32),
            ),
            box=fields.blob("box", limit=MAX_ROOT + TAG_LENGTH),
        )
        fields.done()
        if not known:
            raise InvalidInput("recovery-record-version", f"{_WHAT} is of another version")
        check_threshold(record.threshold, len(record.holders))
        check_ids([holder.custodian for holder in record.holders])
        return record


def record_digest(encoded: bytes) -> bytes:
    """Of an encoded record."""
    return digest(Context.CUSTODY_RECORD_ID, encoded)


def open_share(record: CustodyRecord, key: hpke.HpkePrivateKey) -> SecretBytes:
    """A custodian's own share.

    :raises Refused: ``custodian-unknown``.
    :raises Tampered: ``hpke-open``: the record was changed; ``custody-share``: what opens is not what was committed to.
    """
    own = custodian_id(key.public_key)
    number = record.number(own)
    holder = record.holders[number - 1]
    share = key.open(holder.share, Context.CUSTODY_SHARE, record.bound, own, what="the custodian's share")
    return check_share(record, own, share)


def check_share(record: CustodyRecord, custodian: bytes, share: bytes) -> SecretBytes:
    """:raises Tampered: ``custody-share`` unless it is the share that the record commits to.

    :raises Refused: ``custodian-unknown``.
    """
    number = record.number(custodian)
    found = SecretBytes(share)
    expected = record.holders[number - 1].commitment
    if len(share) != KEY_LENGTH or not same(commitment_to(record.keyservice, record.set, number, found), expected):
        raise Tampered("custody-share", f"what custodian {custodian.hex()} gave is not the share of this set")
    return found


def bound_to(
    keyservice: bytes,
    made: bytes,
    *,
    threshold: int,
    holders: list[tuple[bytes, bytes]],
    generation: int,
    code: Code,
) -> bytes:
    """What everything sealed of a set is bound to: ``B`` of clause 13.24.4.

    :param holders: id and commitment of each, in order.
    """
    parts = [part for holder in holders for part in holder]
    return digest(
        Context.CUSTODY_SET,
        keyservice,
        made,
        threshold.to_bytes(8, "big"),
        generation.to_bytes(8, "big"),
        code.tee.encode(),
        code.measurement,
        code.configuration,
        *parts,
    )


def commitment_to(keyservice: bytes, made: bytes, number: int, share: SecretBytes) -> bytes:
    """To share ``number`` of a set: clause 13.24.4."""
    return digest(Context.CUSTODY_COMMITMENT, keyservice, made, number.to_bytes(8, "big"), share.reveal())


def _holder(item: Any) -> Holder:
    lengths = [32, 32, _SHARE_LENGTH]
    if type(item) is not list or [len(part) if type(part) is bytes else -1 for part in item] != lengths:
        raise InvalidInput("field-type", f"{_WHAT} holds a holder that is none")
    return Holder(*item)


def check_ids(items: Sequence[Any]) -> tuple[bytes, ...]:
    """Ids of custodians.

    :raises InvalidInput: ``field-range``.
    """
    if any(type(item) is not bytes or len(item) != 32 for item in items) or list(items) != sorted(set(items)):
        raise InvalidInput("field-range", "custodians are named by 32 bytes each, in order, each once")
    return tuple(items)
