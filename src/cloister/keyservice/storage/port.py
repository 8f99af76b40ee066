"""Ports to durable storage. The store is hostile: it may lose, move, copy, swap or bring back records.

Two levels: :class:`Rows` is dumb atomic storage of encrypted records (SQLite, PostgreSQL, memory), and
:class:`~cloister.keyservice.storage.sealed.SealedStore` makes a :class:`KeyStore` of any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cloister.base.secret import SecretBytes

ENTRIES = "entries"
SECRETS = "secrets"
HEAD = "head"
RECOVERY_ROW = 2  # of table head
BLOCKS = "blocks"
SNAPSHOTS = "snapshots"
TABLES = (ENTRIES, SECRETS, HEAD, BLOCKS, SNAPSHOTS)


@dataclass(frozen=True, slots=True)
class Row:
    """One record at its place."""

    table: str
    index: int
    record: bytes


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """For operators: what the storage is.

    :param size: bytes on the disk; ``None`` where that is not known.
    """

    kind: str
    schema: int
    size: int | None = None

    def fields(self) -> dict[str, object]:
        """For JSON."""
        return {"kind": self.kind, "schema": self.schema, "bytes": self.size}


class Rows(Protocol):
    """Port: atomic, durable storage of opaque records by table and index. Fake: ``cloister.testing.rows``."""

    def scan(self, table: str, first: int | None = None) -> Iterator[tuple[int, bytes]]:
        """All records of a table, by ascending index; from ``first`` on, if it is given.

        :raises Unavailable: ``store-unavailable``. :raises Tampered: ``store-corrupt``.
        """

    def get(self, table: str, index: int) -> bytes | None:
        """One record; raises as :meth:`scan`."""

    def write(self, put: Sequence[Row], drop: Sequence[tuple[str, int]]) -> None:
        """All or nothing, durable on return. After an error it may have happened or not; :meth:`reopen` tells.

        :raises Unavailable: ``store-unavailable``. :raises Tampered: ``store-corrupt``.
        """

    def reopen(self) -> None:
        """After a failed write: start again from what the disk holds; raises as :meth:`scan`."""

    def facts(self) -> StoreFacts:
        """What it is; from any thread, beside whatever else goes on, and it raises nothing."""

    def close(self) -> None:
        """Give up the storage and its lock."""


def recovery_record(rows: Rows) -> bytes:
    """What lies there in the clear for custodians (clause 13.24.5); empty for nothing; raises as :meth:`Rows.get`."""
    return rows.get(HEAD, RECOVERY_ROW) or b""


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An encoded log entry, and the secret that arrived beside it."""

    data: bytes
    secret: SecretBytes | None = None


@dataclass(frozen=True, slots=True)
class SealedEntry:
    """An entry as it lies in the store, with the secret beside it, if it is still there: for replicas.

    :param secret: empty for none.
    """

    record: bytes
    secret: bytes = b""


@dataclass(frozen=True, slots=True)
class Copied:
    """A part of the store as it lies there, for a backup.

    :param leaves: leaf hashes of the entries, one after the other.
    :param kept: records of the table ``head`` by index, when these are the newest entries; empty before.
    """

    rows: tuple[SealedEntry, ...]
    leaves: bytes
    kept: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """What is needed of a fixed run of entries besides themselves (clause 13.23.2).

    :param links: the store's chain after each of them. :param nodes: the log's hashes inside, without the root.
    :param concerned: party to the places within the block of the entries that concern it, packed.
    """

    links: bytes
    nodes: bytes
    concerned: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Saved:
    """What a snapshot says of itself.

    :param version: of the encoding and of the code. :param name: random, what its parts are bound to.
    :param size: entries in it; :param link: what they hash to in the store; :param root: and in the log.
    """

    version: bytes
    name: bytes
    size: int
    link: bytes
    root: bytes
    slot: int
    parts: int


class Snapshots(Protocol):
    """Port: the newest complete snapshot, which is replaced whole. All raise as the store's append and read do."""

    def saved(self) -> Saved | None:
        """What it says of itself."""

    def parts(self, saved: Saved) -> Iterator[bytes]:
        """What it holds."""

    def begin(self, version: bytes, size: int, link: bytes, root: bytes) -> Saved:
        """A further one, of which nothing is there yet; the present one stands until it is finished."""

    def put_part(self, saved: Saved, data: bytes) -> Saved:
        """Write its next part."""

    def finish(self, saved: Saved) -> None:
        """From now on it is the newest."""

    def discard(self) -> None:
        """Drop it."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where to go on reading from: what the entries before hash to.

    :param ends: at the end of each complete block. :param links: after each entry since.
    """

    ends: bytes
    links: bytes


class KeyStore(Protocol):
    """Port: the log's entries in order, and secrets each bound to its entry.

    Of replicas (clause 13.17) one writes, and the others take its records as they are: same key, same place.
    """

    @property
    def block_entries(self) -> int:
        """How many entries a block has."""

    @property
    def snapshots(self) -> Snapshots:
        """Where they are kept."""

    def load(self, start: Start | None = None) -> Iterator[bytes]:
        """Every entry from the first, or from there, authenticated; must be exhausted before :meth:`append`.

        :raises Tampered: ``store-record``, ``store-missing``, ``store-truncated``, ``store-head``, ``store-corrupt``.
        :raises Unavailable: ``store-unavailable``.
        """

    def secrets(self) -> Mapping[int, SecretBytes]:
        """All secrets by entry, authenticated; after :meth:`load`, raises as it."""

    def append(
        self,
        entries: Sequence[NewEntry],
        dropped: Sequence[int] = (),
        proof: bytes = b"",
        *,
        recovery: bytes | None = None,
    ) -> None:
        """Add entries at the end, destroy the secrets of others, replace the proof (unless it is empty) and what lies
        in the clear for custodians (unless it is ``None``; empty for nothing): all or nothing, durable on return.

        :raises Unavailable: ``store-unavailable``; nothing happened, and the next append may succeed.
        :raises Tampered: the disk does not hold what was written to it.
        """

    def read(self, index: int) -> bytes:
        """One entry, authenticated.

        :raises InvalidInput: ``log-index``. :raises Tampered: as :meth:`load`.
        """

    def link(self, size: int) -> bytes:
        """What the first ``size`` entries hash to as they lie in the store: equal on replicas that hold the same.

        :raises InvalidInput: ``log-size``.
        """

    def sealed(self, first: int, count: int) -> list[SealedEntry]:
        """Up to ``count`` entries from ``first`` as they lie there; fewer at the end; raises as :meth:`read`."""

    def kept(self) -> list[tuple[int, bytes]]:
        """Every record of the table ``head`` as it lies there, by index: how long the log is, and what is kept beside.

        For backups; raises as :meth:`append`.
        """

    def open_next(self, entries: Sequence[SealedEntry]) -> list[NewEntry]:
        """Authenticate what another replica sent: it must continue what is here.

        :raises Tampered: ``store-record``.
        """

    def append_sealed(self, entries: Sequence[SealedEntry], proof: bytes, *, recovery: bytes | None = None) -> None:
        """Add what :meth:`open_next` accepted, and replace proof and recovery record; as :meth:`append`."""

    def cut(self, size: int, proof: bytes) -> None:
        """Drop every entry from ``size`` on, with its secret, and replace the proof; raises as :meth:`append`.

        After it the store must be loaded anew.
        """

    def block(self, number: int) -> Block:
        """One that was given up; raises as :meth:`read`."""

    def give_up(self, number: int, nodes: bytes, concerned: Mapping[bytes, bytes]) -> None:
        """Write the next complete block down, durably, and keep nothing of it; raises as :meth:`append`."""

    def start(self, size: int) -> Start:
        """Where one would go on from after the first ``size`` entries, all blocks before which may be given up."""

    def proof(self) -> bytes:
        """What was kept as proof last; empty for nothing. After :meth:`load`, raises as it."""

    def rekey(self, key: SecretBytes, entry: NewEntry) -> None:
        """Add one entry, without a secret, under another key, and bring head, proof and all secrets from the present
        key to that one (13.27.6): all or nothing, durable on return. The store must be closed after it.

        :raises Unavailable: ``store-unavailable``; it may have happened. :raises Tampered: as :meth:`load`.
        """

    def recovery(self) -> bytes:
        """:func:`recovery_record` of this store."""

    def close(self) -> None:
        """Give up the storage and its lock."""
