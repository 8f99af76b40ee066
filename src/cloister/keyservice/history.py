"""The durable log as it is read: state, tree and store of one moment, under the lock of whoever writes (ledger.py).

Nobody sees what is not durable. Every entry that is shown was authenticated at its place and compared with its leaf;
nothing is read any more once the store was found to hold what was never written there (:class:`Soundness`).
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

from cloister.base.clock import Clock
from cloister.base.errors import Tampered, Unavailable
from cloister.base.limits import (
    BACKUP_ROWS,
    BACKUP_ROWS_BYTES,
    REPEATED_STATEMENTS,
    REPLICA_ROWS,
    REPLICA_ROWS_BYTES,
)
from cloister.crypto.digest import same
from cloister.keyservice.anchors.port import Anchor, Unanchored
from cloister.keyservice.proposals import Written, tentative
from cloister.keyservice.snapshots import check_entry, replay
from cloister.keyservice.soundness import Soundness
from cloister.keyservice.state.encoding import version
from cloister.keyservice.state.events import PLACES, Concerned
from cloister.keyservice.state.state import CustodyState, State
from cloister.keyservice.storage.port import Copied, KeyStore, SealedEntry
from cloister.log.entry import STATEMENT, Entry, Genesis
from cloister.log.merkle import MerkleTree
from cloister.wire.calls import LogHead
from cloister.wire.log_keys import LogKeys


@dataclass(frozen=True, slots=True)
class Held:
    """What a log is made of, while nothing changes.

    :param generation: another one after everything was read anew.
    """

    store: KeyStore
    state: State
    tree: MerkleTree
    generation: int


class History:
    """State, log and vault over a store, as far as they are read; thread-safe.

    :ivar begun: entries in the snapshot that was gone on from, which were not read then; ``rows``: that it had.
    :ivar ignored: why a snapshot was not gone on from: a code, or empty.
    """

    def __init__(self, store: KeyStore, clock: Clock, anchor: Anchor | None, code: bytes) -> None:
        """Raises as :class:`~cloister.keyservice.ledger.Ledger`."""
        self._store = store
        self._clock = clock
        self._anchor: Anchor = anchor or Unanchored()
        self._sound = Soundness(self._store.snapshots.discard)  # then the next start reads every entry, and says more
        self._lock = self._sound.lock
        self._time_lock = threading.Lock()
        self._closed = False
        self._stale = False
        self._generation = 0
        self._lasts = 0
        self._latest = clock.now()
        self.version = version(code)
        self._load()

    def _load(self) -> None:
        # Keys that a replica lacks may be ended by entries that it does not have yet (clause 13.17.3).
        found = replay(self._store, self.version, whole=not self._anchor.tentative)
        self._state, self._tree, self._vault = found.state, found.tree, found.vault
        self.begun, self.rows, self.ignored = found.begun, found.rows, found.ignored
        self._generation += 1
        self._stale = False

    def require_genesis(self, keyservice: bytes) -> Genesis:
        """The first entry, which must be of this KeyService.

        :raises Tampered: ``store-empty``, ``store-other``.
        """
        genesis = self._state.genesis
        if genesis is None:
            raise Tampered(
                "store-empty",
                "the store is empty, but the root secret beside it is there",
                hint="Somebody removed the log, or `init` was cut short: then remove the directory and repeat it.",
            )
        if genesis.keyservice != keyservice:
            raise Tampered("store-other", "the store holds the log of another KeyService")
        return genesis

    def log_keys(self) -> LogKeys | None:
        """The KeyService's log keys, as far as the durable log names them."""
        with self._lock:
            return self._state.log_keys

    @property
    def generation(self) -> int:
        """Another number after everything was read anew."""
        return self._generation

    @property
    def condemned(self) -> Tampered | None:
        """What was found in the store that is not what was written there: then nothing is answered any more."""
        return self._sound.condemned

    def watch(self, watcher: Callable[[Tampered], None]) -> None:
        """As :meth:`Soundness.watch`."""
        self._sound.watch(watcher)

    @property
    def open(self) -> bool:
        """Whether it takes proposals."""
        return not self._closed and self.condemned is None

    def now(self) -> float:
        """The KeyService's time: never behind the newest durable entry, its witnesses (13.11), nor itself."""
        with self._time_lock:
            self._latest = max(self._latest, self._anchor.time(), self._state.now(self._clock.now()))
            return self._latest

    @contextmanager
    def read(self) -> Iterator[tuple[State, float]]:
        """The durable state, and the KeyService's time; nothing changes meanwhile, so be short."""
        with self._lock:
            self._sound.require()
            yield self._state, self.now()

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """Everything, between writes; be short.

        :raises Unavailable: ``keyservice-closing``. :raises Tampered: :attr:`condemned`.
        """
        with self._sound.reading():
            if self._closed or self._stale:
                raise Unavailable("keyservice-closing", "the KeyService is shutting down", retry_after=5.0)
            yield Held(self._store, self._state, self._tree, self._generation)

    def head(self) -> LogHead:
        """Size and root of the durable log, and the time."""
        with self._sound.reading():
            return self._head()

    def shown_head(self) -> LogHead:
        """The head for others: the newest confirmed one with its co-signatures, or else the durable one.

        :raises Unavailable: ``keyservice-unconfirmed``: replicas show no head that may yet be replaced (13.21.1).
        """
        confirmed = self._anchor.confirmed()
        if confirmed is None and self._anchor.tentative:
            raise tentative()
        return confirmed or self.head()

    def leaves(self, first: int, count: int) -> bytes:
        """Leaf hashes, one after the other; fewer at the log's end.

        :raises InvalidInput: ``log-size``, ``log-index``.
        """
        with self._sound.reading():
            end = min(self._tree.size, first + count)
            return b"".join(self._tree.leaf(index) for index in range(first, end))

    def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        """:raises InvalidInput: ``log-size``."""
        with self._sound.reading():
            return self._tree.consistency(first, second)

    def entries(self, indices: list[int]) -> list[tuple[int, bytes, tuple[bytes, ...]]]:
        """Entries as written, each checked against its leaf, with its inclusion proof in the present tree.

        :raises Tampered: the store's codes; ``store-record``.
        :raises Unavailable: ``store-unavailable``; ``keyservice-unconfirmed`` as :meth:`shown_head`.
        """
        return self.entries_with_head(indices)[0]

    def entries_with_head(self, indices: list[int]) -> tuple[list[tuple[int, bytes, tuple[bytes, ...]]], LogHead]:
        """As :meth:`entries`, with the head to which the proofs lead: a confirmed one, if all entries are in it."""
        found = []
        with self._sound.reading():
            confirmed = self._anchor.confirmed()
            covered = confirmed is not None and all(index < confirmed.size for index in indices)
            if not covered and self._anchor.tentative:
                raise tentative()
            head = confirmed if confirmed and covered else self._head()
            for index in indices:
                data = check_entry(self._store, self._tree, index)
                found.append((index, data, self._tree.inclusion(index, head.size)))
        return found, head

    def opened(self, first: int, count: int) -> Iterator[bytes]:
        """Entries from ``first``, at most ``count`` and fewer at the end, each checked against its leaf; raises as
        :meth:`entries`. What is not confirmed yet, and may be replaced, is left out.
        """
        with self._sound.reading():
            confirmed = self._anchor.confirmed()
            end = self._tree.size if not self._anchor.tentative else confirmed.size if confirmed else 0
        for index in range(first, min(end, first + count)):
            with self._sound.reading():
                data = check_entry(self._store, self._tree, index)
            yield data

    def concerning(self, party: bytes, least: int, limit: int) -> list[int]:
        """At most ``limit`` indices, from ``least`` on, of entries about this party; raises as :meth:`entries`."""
        with self._sound.reading():
            return self._state.events.after(party, least, limit, self._concerned)

    def _concerned(self, block: int) -> Concerned:
        return {party: array(PLACES, packed) for party, packed in self._store.block(block).concerned.items()}

    def has(self, written: Written) -> bool:
        """Whether the entry is still there: a replica may have taken over another history since it was written."""
        with self._sound.reading():
            return self._has(written)

    def _has(self, written: Written) -> bool:
        return written.index < self._tree.size and same(self._tree.leaf(written.index), written.entry.leaf())

    def find_statement(self, issuer: bytes, statement: bytes) -> Written | None:
        """The entry that holds this very statement, among the newest about its issuer."""
        with self._sound.reading():
            for index in reversed(self._state.events.newest(issuer, REPEATED_STATEMENTS, self._concerned)):
                entry = Entry.decode(check_entry(self._store, self._tree, index))
                if entry.kind == STATEMENT and same(entry.body, statement):
                    return Written(index, entry)
        return None

    def custody(self) -> tuple[CustodyState | None, bytes, bytes]:
        """Who can bring the KeyService back; the recovery record beside that entry; the one in the clear."""
        with self._lock:
            standing = self._state.custody
            record = b"" if standing is None else self._vault.custody_record(standing.entry)
            return standing, record, self._store.recovery()

    @property
    def lasting(self) -> int:
        """How many entries no replica will replace any more, as far as this one knows: those of a confirmed head."""
        with self._lock:
            return self._lasting()

    def _lasting(self) -> int:
        if not self._anchor.tentative:
            return self._tree.size
        head = self._anchor.seen()
        if head is not None and head.size <= self._tree.size and same(self._tree.root(head.size), head.root):
            self._lasts = max(self._lasts, head.size)
        return self._lasts

    def position(self) -> tuple[int, bytes]:
        """How many entries are durable here, and what they hash to in the store."""
        with self._lock:
            return self._tree.size, self._store.link(self._tree.size)

    def holds(self, size: int, link: bytes) -> bool:
        """Whether the first ``size`` entries here are those that hash to ``link``."""
        with self._sound.reading():
            return size <= self._tree.size and same(self._store.link(size), link)

    def link(self, size: int) -> bytes:
        """What the first ``size`` entries hash to; empty when there are fewer."""
        with self._sound.reading():
            return self._store.link(size) if size <= self._tree.size else b""

    def sealed(self, first: int) -> list[SealedEntry]:
        """Entries from ``first`` as they lie in the store, as many as fit one answer; raises as :meth:`entries`."""
        found: list[SealedEntry] = []
        room = REPLICA_ROWS_BYTES
        while len(found) < REPLICA_ROWS:
            with self._sound.reading():
                part = self._store.sealed(first + len(found), 1)
            room -= sum(len(entry.record) + len(entry.secret) for entry in part)
            if not part or (found and room < 0):
                break
            found += part
        return found

    def copied(self, first: int, link: bytes) -> Copied:
        """Entries from ``first`` as they lie in the store, for a backup; at the log's end what is kept with its head.

        :param link: what the first ``first`` entries hash to, as they were copied.
        :raises Unavailable: ``backup-overtaken``: another history replaced some of them; ``store-unavailable``;
            ``keyservice-closing``. :raises Tampered: the store's codes.
        """
        with self._sound.reading():
            if self._closed:
                raise Unavailable("keyservice-closing", "the KeyService is shutting down", retry_after=5.0)
            size = self._tree.size
            if self._stale or first > size or not same(self._store.link(first), link):
                raise Unavailable(
                    "backup-overtaken", "entries that were copied were replaced by another history", retry_after=1.0
                )
            rows, room = self._store.sealed(first, BACKUP_ROWS), BACKUP_ROWS_BYTES
            sizes = (len(row.record) + len(row.secret) for row in rows)
            fitting = sum(total <= room for total in accumulate(sizes))
            rows = rows[: max(1, fitting)]
            end = first + len(rows)
            leaves = b"".join(self._tree.leaf(index) for index in range(first, end))
            return Copied(tuple(rows), leaves, tuple(self._store.kept()) if end == size else ())

    def head_at(self, size: int) -> LogHead:
        """The head of the first ``size`` entries, and the time.

        :raises InvalidInput: ``log-size``.
        """
        with self._sound.reading():
            return LogHead(size, self._tree.root(size), int(self.now()))

    def contains(self, size: int, root: bytes) -> bool:
        """Whether the tree of the first ``size`` entries here is this one."""
        return size <= self.position()[0] and same(self.head_at(size).root, root)

    def leaf(self, index: int) -> bytes:
        """:raises InvalidInput: ``log-index``."""
        with self._sound.reading():
            return self._tree.leaf(index)

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """:raises InvalidInput: ``log-index``, ``log-size``."""
        with self._sound.reading():
            return self._tree.inclusion(index, size)

    def proof(self) -> bytes:
        """What the store keeps as proof; raises as :meth:`entries`."""
        with self._lock:
            return self._store.proof()

    def _head(self) -> LogHead:
        return LogHead(self._tree.size, self._tree.root(), int(self.now()))
