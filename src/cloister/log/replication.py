"""What replicas of a KeyService say to each other (spec/protocol.md, 13.17).

An exchange is one request and one reply, each under a key of its own that only holders of the root secret can derive;
a reply opens for its request only. So whoever carries them can drop them, and nothing else. Replicas of two builds talk
while a KeyService is upgraded: fields that only a newer one knows are left alone (13.26.8).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.base.errors import InvalidInput
from cloister.base.limits import (
    MAX_ENTRY,
    MAX_REPLICA_REPLY,
    MAX_REPLICA_REQUEST,
    REPLICA_ROWS,
    REPLICA_WAIT_S,
)
from cloister.base.secret import SecretBytes
from cloister.crypto.box import open_once, seal_once
from cloister.crypto.digest import Context, derive
from cloister.log.merkle import HASH_LENGTH, MAX_PROOF
from cloister.log.receipt import read_proof
from cloister.wire import cbor
from cloister.wire.calls import LogHead
from cloister.wire.cbor import Fields

REPLICA_ID_LENGTH: Final = 16
TERM_LENGTH: Final = 16
HELLO: Final = "hello"
PULL: Final = "pull"
LINK: Final = "link"
ENTRY: Final = "entry"
_NONCE: Final = 32
_NO_BOUND: Final = b""
_MAX_RECORD: Final = MAX_ENTRY + 1024


# --- the exchange ---


def seal_request(key: SecretBytes, content: Mapping[str, Any]) -> bytes:
    """``nonce || box``.

    :param key: the replication key.
    """
    nonce = secrets.token_bytes(_NONCE)
    body = cbor.encode(cbor.plain(content))
    return nonce + seal_once(derive(Context.REPLICA_REQUEST, key.reveal(), nonce), body, _NO_BOUND)


def open_request(key: SecretBytes, data: bytes) -> Fields:
    """:raises Tampered: ``box-open``. :raises InvalidInput: anything malformed."""
    what = "the replica's request"
    if not _NONCE < len(data) <= MAX_REPLICA_REQUEST:
        raise InvalidInput("request-length", f"{what} has {len(data)} bytes")
    body = open_once(derive(Context.REPLICA_REQUEST, key.reveal(), data[:_NONCE]), data[_NONCE:], _NO_BOUND, what=what)
    return Fields(cbor.decode(body, limit=MAX_REPLICA_REQUEST, what=what), what)


def seal_answer(key: SecretBytes, request: bytes, content: Mapping[str, Any]) -> bytes:
    """``nonce || box``, for whoever made this request."""
    nonce = secrets.token_bytes(_NONCE)
    derived = derive(Context.REPLICA_REPLY, key.reveal(), nonce, hashlib.sha256(request).digest())
    return nonce + seal_once(derived, cbor.encode(cbor.plain(content)), _NO_BOUND)


def open_answer(key: SecretBytes, request: bytes, data: bytes) -> Fields:
    """:raises Tampered: ``box-open``. :raises InvalidInput: anything malformed."""
    what = "the replica's answer"
    if not _NONCE < len(data) <= MAX_REPLICA_REPLY:
        raise InvalidInput("reply-length", f"{what} has {len(data)} bytes")
    derived = derive(Context.REPLICA_REPLY, key.reveal(), data[:_NONCE], hashlib.sha256(request).digest())
    body = open_once(derived, data[_NONCE:], _NO_BOUND, what=what)
    return Fields(cbor.decode(body, limit=MAX_REPLICA_REPLY, what=what), what)


# --- what is said ---


@dataclass(frozen=True, slots=True)
class Standing:
    """How a replica stands.

    :param term: of one that leads: 16 random bytes, new each time; zeros otherwise.
    :param able: whether it may take over: it knows of no co-signed head that its log does not continue to.
    :param confirming: whether it leads and witnesses confirm its heads.
    :param size: entries that are durable there.
    :param head: the newest co-signed head that it knows; unverified.
    :param level: of the entries that it can read, and if it leads may write; 0 of one that does not say.
    """

    replica: bytes
    term: bytes
    able: bool
    confirming: bool
    size: int
    head: LogHead | None
    level: int = 0

    @property
    def leads(self) -> bool:
        """Whether it says so."""
        return any(self.term)

    def fields(self) -> dict[str, object]:
        """For CBOR."""
        return {
            "replica": self.replica,
            "term": self.term,
            "able": self.able,
            "confirming": self.confirming,
            "size": self.size,
            "head": {} if self.head is None else self.head.fields(),
            "level": self.level,
        }

    @staticmethod
    def read(value: object) -> Standing:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(value, "the replica's standing")
        head = fields.mapping("head")
        standing = Standing(
            fields.blob("replica", exactly=REPLICA_ID_LENGTH),
            fields.blob("term", exactly=TERM_LENGTH),
            fields.boolean("able"),
            fields.boolean("confirming"),
            fields.integer("size"),
            LogHead.read(head) if head else None,
            fields.integer("level") if fields.has("level") else 0,
        )
        fields.leave_newer()
        return standing


@dataclass(frozen=True, slots=True)
class Pull:
    """What one that follows holds, and that it wants what comes next; an answer may be held back for ``wait_ms``."""

    replica: bytes
    term: bytes
    size: int
    link: bytes
    wait_ms: int

    def fields(self) -> dict[str, object]:
        """For CBOR."""
        return {
            "kind": PULL,
            "replica": self.replica,
            "term": self.term,
            "size": self.size,
            "link": self.link,
            "wait_ms": self.wait_ms,
        }

    @staticmethod
    def read(fields: Fields) -> Pull:
        """After ``kind`` was read.

        :raises InvalidInput: anything malformed.
        """
        pull = Pull(
            fields.blob("replica", exactly=REPLICA_ID_LENGTH),
            fields.blob("term", exactly=TERM_LENGTH),
            fields.integer("size"),
            fields.blob("link", exactly=HASH_LENGTH),
            fields.integer("wait_ms", high=int(REPLICA_WAIT_S * 1000)),
        )
        fields.leave_newer()
        return pull


@dataclass(frozen=True, slots=True)
class Rows:
    """The answer to a pull.

    :param same: whether what the other one holds is a beginning of our log; only then there are rows.
    :param rows: sealed records of entries, each with its secret's or nothing.
    """

    standing: Standing
    same: bool
    rows: tuple[tuple[bytes, bytes], ...] = ()

    def fields(self) -> dict[str, object]:
        """For CBOR."""
        return {"standing": self.standing.fields(), "same": self.same, "rows": [list(row) for row in self.rows]}

    @staticmethod
    def read(fields: Fields) -> Rows:
        """:raises InvalidInput: anything malformed."""
        rows = Rows(
            Standing.read(fields.mapping("standing")),
            fields.boolean("same"),
            tuple(_row(item) for item in fields.items("rows", limit=REPLICA_ROWS)),
        )
        fields.leave_newer()
        return rows


@dataclass(frozen=True, slots=True)
class Place:
    """What stands at one place of a log, proven by a co-signed head of it.

    :param leaf: of the entry; :param inclusion: its proof in ``head``.
    """

    head: LogHead
    leaf: bytes
    inclusion: tuple[bytes, ...]

    def fields(self) -> dict[str, object]:
        """For CBOR."""
        return {"head": self.head.fields(), "leaf": self.leaf, "inclusion": list(self.inclusion)}

    @staticmethod
    def read(fields: Fields) -> Place:
        """:raises InvalidInput: anything malformed."""
        place = Place(
            LogHead.read(fields.mapping("head")),
            fields.blob("leaf", exactly=HASH_LENGTH),
            read_proof(fields.items("inclusion", limit=MAX_PROOF)),
        )
        fields.leave_newer()
        return place


def _row(item: object) -> tuple[bytes, bytes]:
    match item:
        case [bytes(record), bytes(secret)] if 0 < len(record) <= _MAX_RECORD and len(secret) <= _MAX_RECORD:
            return record, secret
        case _:
            raise InvalidInput("field-type", "a row of a replica is not a pair of records")


def at_fields(kind: str, at: int) -> dict[str, object]:
    """A request about one place: ``link`` or ``entry``."""
    return {"kind": kind, "at": at}
