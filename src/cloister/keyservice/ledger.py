"""The one writer: proposals become log entries, durable before anybody hears of them, many to one fsync.

Whoever finds the writer idle writes what is waiting, its own proposal among it; the others wait for the lock and
find theirs done. Readers take the same lock, so nobody sees a state that is not durable, and a decision about a key
stands in one order with every revocation (claim S5).
"""

from __future__ import annotations

import secrets
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, final

from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, Tampered, Unavailable
from cloister.base.limits import (
    BACKUP_ROWS,
    BACKUP_ROWS_BYTES,
    COMMIT_BATCH,
    MAX_COMMIT_QUEUE,
    REPEATED_STATEMENTS,
    REPLICA_ROWS,
    REPLICA_ROWS_BYTES,
)
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import same
from cloister.keyservice.anchors.port import Anchor, Unanchored
from cloister.keyservice.proposals import (
    Committed,
    Job,
    Proposal,
    Propose,
    Written,
    fail,
    no_leader,
    tentative,
)
from cloister.keyservice.snapshots import check_entry, replay
from cloister.keyservice.soundness import Soundness
from cloister.keyservice.state.encoding import version
from cloister.keyservice.state.events import PLACES, Concerned
from cloister.keyservice.state.state import CustodyState, State
from cloister.keyservice.state.transitions import apply
from cloister.keyservice.storage.port import Copied, KeyStore, NewEntry, SealedEntry
from cloister.keyservice.vault import Doomed
from cloister.log.entry import GENESIS, SALT_LENGTH, STATEMENT, Entry, Genesis, entry_leaf
from cloister.log.merkle import MerkleTree
from cloister.wire.calls import LogHead
from cloister.wire.log_keys import LogKeys

_SWEEP_S: Final = 10.0  # how often dead secrets are looked for


@dataclass(frozen=True, slots=True)
class Held:
    """What a ledger is made of, while nothing changes.

    :param generation: another one after everything was read anew.
    """

    store: KeyStore
    state: State
    tree: MerkleTree
    generation: int


@final
class Ledger:
    """State, log and vault over a store; thread-safe.

    :param anchor: confirms heads (clause 13.10); by default nothing does.
    :param code: names what runs: a snapshot that other code wrote is not gone on from (13.23.4).
    :ivar trouble: code of what the store said to the last attempt to write; empty when it was written.
    :ivar begun: entries in the snapshot that was gone on from, which were not read then; ``rows``: that it had.
    :ivar ignored: why a snapshot was not gone on from: a code, or empty.
    """

    def __init__(self, store: KeyStore, clock: Clock, anchor: Anchor | None = None, code: bytes = b"") -> None:
        """Replay what the store holds.

        :raises Tampered: the store's codes; ``log-order``; ``secret-missing``, ``secret-other`` when a secret that the
            state needs is not there (of a replica: only once it leads) or is not the one committed to.
        :raises Unavailable: ``store-unavailable``; ``log-newer``: a newer build wrote it.
        """
        self._store = store
        self._clock = clock
        self._anchor: Anchor = anchor or Unanchored()
        self._sound = Soundness(self._store.snapshots.discard)  # then the next start reads every entry, and says more
        self._lock = self._sound.lock
        self._time_lock = threading.Lock()
        self._grown = threading.Condition()
        self._queue: deque[Job] = deque()
        self._closed = False
        self._following = False
        self._stale = False
        self._generation = 0
        self.version = version(code)
        self.trouble = ""
        self._lasts = 0
        self._doomed = Doomed()
        self._latest = self._swept = clock.now()
        self._load()
        self._anchor.start(self)

    def _load(self) -> None:
        # Keys that a replica lacks may be ended by entries that it does not have yet (clause 13.17.3).
        found = replay(self._store, self.version, whole=not self._anchor.tentative)
        self._state, self._tree, self._vault = found.state, found.tree, found.vault
        self.begun, self.rows, self.ignored = found.begun, found.rows, found.ignored
        self._generation += 1
        self._doomed = Doomed()
        self._stale = False

    @staticmethod
    def begin(store: KeyStore, clock: Clock, genesis: Genesis) -> Ledger:
        """A new log; its first entry says whose it is.

        :raises Tampered: ``log-order`` when the store is not empty.
        """
        ledger = Ledger(store, clock)
        ledger.commit(lambda _state, _vault, _now: Proposal(GENESIS, genesis.encode()))
        return ledger

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

    def commit(self, propose: Propose) -> Committed | None:
        """:meth:`write` and :meth:`confirm`: what is returned may be told to others."""
        written = self.write(propose)
        return None if written is None else self.confirm(written)

    def confirm(self, written: Written) -> Committed:
        """Wait until a head that contains the entry is confirmed, if the log is anchored (clause 13.10).

        :raises Unavailable: ``keyservice-unconfirmed``, ``keyservice-superseded``: the entry is in this log, and may
            be confirmed later; the detail ``written`` says so.
        """
        try:
            head = self._anchor.confirm(written.index + 1)
        except Unavailable as error:
            error.details["written"] = "yes"
            raise
        with self._sound.reading():
            head = head or self._head()
            self._require_same(written, head)
            return Committed(written.index, written.entry, head, self._tree.inclusion(written.index, head.size))

    def has(self, written: Written) -> bool:
        """Whether the entry is still there: a replica may have taken over another history since it was written."""
        with self._sound.reading():
            return self._has(written)

    def _has(self, written: Written) -> bool:
        return written.index < self._tree.size and same(self._tree.leaf(written.index), written.entry.leaf())

    def _require_same(self, written: Written, head: LogHead) -> None:
        known = self._has(written) and head.size <= self._tree.size
        if not known or not same(self._tree.root(head.size), head.root):
            raise Unavailable(
                "keyservice-unconfirmed", "the entry was replaced by another history of the log", retry_after=1.0
            )

    def find_statement(self, issuer: bytes, statement: bytes) -> Written | None:
        """The entry that holds this very statement, among the newest about its issuer."""
        with self._sound.reading():
            for index in reversed(self._state.events.newest(issuer, REPEATED_STATEMENTS, self._concerned)):
                entry = Entry.decode(check_entry(self._store, self._tree, index))
                if entry.kind == STATEMENT and same(entry.body, statement):
                    return Written(index, entry)
        return None

    def write(self, propose: Propose) -> Written | None:
        """Run ``propose`` against the newest state; what it returns is in the log, durable, when this returns.

        ``propose`` runs under the writer's lock with every earlier entry applied: it must not block. It may raise
        (nothing is written, the error is raised here) or return ``None`` (nothing is written).

        :raises Unavailable: ``store-unavailable``: nothing happened; ``keyservice-busy``; ``keyservice-closing``;
            ``keyservice-unconfirmed``, ``keyservice-superseded``: nothing would be confirmed, so nothing was written.
        """
        self._anchor.require()
        if len(self._queue) >= MAX_COMMIT_QUEUE:
            raise Unavailable("keyservice-busy", "too many statements are waiting", retry_after=1.0)
        job = Job(propose)
        self._queue.append(job)
        with self._lock:
            while not job.done:
                self._write_batch()
        if job.error is not None:
            raise job.error
        return None if job.entry is None else Written(job.index, job.entry)

    def custody(self) -> tuple[CustodyState | None, bytes, bytes]:
        """Who can bring the KeyService back; the recovery record beside that entry; the one in the clear."""
        with self._lock:
            standing = self._state.custody
            record = b"" if standing is None else self._vault.custody_record(standing.entry)
            return standing, record, self._store.recovery()

    def keep_recovery(self, record: bytes) -> None:
        """Replace the recovery record in the clear; empty for none.

        :raises Unavailable: ``store-unavailable``: it may have happened.
        """
        with self._lock:
            if not self._closed:
                self._store.append([], recovery=record)

    def sweep(self) -> int:
        """Destroy the secrets whose time is over; returns how many."""
        with self._lock:
            if self._closed:
                return 0
            dead = self._doomed.due(self._state.dead_secrets(self.now()), self._tree.size, self._lasting())
            if dead:
                self._store.append([], dead)
                self._bury(dead)
            return len(dead)

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

    def close(self) -> None:
        """Refuse what comes, after what is under way; close the store."""
        self._anchor.close()
        with self._lock:
            self._closed = True
            self._store.close()
        self._tell()

    def rotate(self, entry: Entry, store_key: SecretBytes) -> None:
        """Write the entry from which on another root signs and seals (13.27.6); only :meth:`close` may follow.

        :raises Tampered: ``log-order``: it does not fit here; otherwise as ``KeyStore.rekey``.
        """
        with self._lock:
            self._closed = True
            apply(self._state, entry)
            self._store.rekey(store_key, NewEntry(entry.encode(), None))

    # --- as one of several replicas (clauses 13.16 to 13.21) ---

    def lead(self) -> None:
        """Write from now on.

        :raises Tampered: ``secret-missing``: this replica does not hold what it needs.
        """
        with self._lock:
            if self._stale:
                self._load()
            self.trouble = ""
            self._vault.require(self._state)
            self._following = False

    def follow(self) -> None:
        """Write nothing by itself from now on; what is being written is done when this returns."""
        with self._lock:
            self._following = True

    @property
    def following(self) -> bool:
        """Whether it is of a replica that does not lead."""
        return self._following

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

    def absorb(self, entries: Sequence[SealedEntry], proof: bytes) -> None:
        """Take over entries that another replica wrote; durable on return.

        :raises Tampered: ``store-record``: they do not continue what is here; ``log-order``, ``secret-other``.
        :raises Unavailable: ``store-unavailable``; nothing happened.
        """
        with self._lock:
            self._require_following()
            opened, size, custody = self._store.open_next(entries), self._tree.size, self._state.custody
            try:
                for new in opened:
                    self._replay(new)
                self._store.append_sealed(entries, proof, recovery=self._shown_since(custody))
            except CloisterError:
                self._state.journal.rollback()
                self._tree.truncate(size)
                self._vault.forget_from(size)
                raise
            self._state.journal.keep()
        self._tell()

    def _shown_since(self, before: CustodyState | None) -> bytes | None:
        """What is to lie in the clear for custodians if that changed; ``None`` if not."""
        standing = self._state.custody
        if standing is None or (before is not None and before.made == standing.made):
            return None
        record = self._vault.custody_record(standing.entry)
        return None if standing.made.custodians and not record else record  # one that was replaced since, and destroyed

    def _replay(self, new: NewEntry) -> None:
        try:
            apply(self._state, Entry.decode(new.data))
        except CloisterError as error:
            raise Tampered("log-order", f"log entry {self._state.size} cannot be replayed: {error}") from error
        index = self._tree.append(entry_leaf(new.data))
        if new.secret is not None:
            self._vault.admit(index, new.secret, self._state)

    def cut(self, size: int, proof: bytes) -> None:
        """Drop the entries from ``size`` on, which were never confirmed and never will be (clause 13.19).

        :raises Unavailable: ``store-unavailable``: it may have happened. :raises Tampered: as the constructor.
        """
        with self._lock:
            self._require_following()
            self._stale = True  # until everything was read anew
            self._store.cut(size, proof)
            self._load()

    def _require_following(self) -> None:
        self._sound.require()
        if self._closed:
            raise Unavailable("keyservice-closing", "the KeyService is shutting down", retry_after=5.0)
        if not self._following:
            msg = "a replica that leads takes entries from nobody"
            raise AssertionError(msg)
        if self._stale:
            self._load()

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

    def wait_beyond(self, size: int, timeout_s: float) -> None:
        """Return once there are more than ``size`` entries, or after the time."""
        with self._grown:
            self._grown.wait_for(lambda: self._closed or self._tree.size > size, timeout_s)

    def _tell(self) -> None:
        with self._grown:
            self._grown.notify_all()

    # --- the writer, under the lock ---

    def _head(self) -> LogHead:
        return LogHead(self._tree.size, self._tree.root(), int(self.now()))

    def _write_batch(self) -> None:
        jobs: list[Job] = []
        while self._queue and len(jobs) < COMMIT_BATCH:
            jobs.append(self._queue.popleft())
        if self._closed:
            return fail(jobs, Unavailable("keyservice-closing", "the KeyService is shutting down", retry_after=5.0))
        if self.condemned is not None:
            return fail(jobs, self.condemned)
        if self._following:
            return fail(jobs, no_leader())
        now, size, custody = self.now(), self._tree.size, self._state.custody
        batch = [new for job in jobs if (new := self._try(job, now)) is not None]
        due = now - self._swept >= _SWEEP_S and not self._anchor.tentative  # of replicas :meth:`sweep` alone knows
        dead = self._state.dead_secrets(now) if due else ()
        try:
            proof = self._anchor.proof() if batch else b""
            self._store.append(batch, dead, proof, recovery=self._shown_since(custody))
        except CloisterError as error:
            self._state.journal.rollback()
            self._tree.truncate(size)
            self._vault.forget_from(size)
            self.trouble = error.code
            return fail(jobs, error)
        self._state.journal.keep()
        self.trouble = ""
        if due:
            self._swept = now
            self._bury(dead)
        for job in jobs:
            job.done = True
        self._tell()
        return None

    def _try(self, job: Job, now: float) -> NewEntry | None:
        """Apply one proposal; whatever goes wrong concerns this one only."""
        mark = self._state.journal.mark()
        try:
            proposal = job.propose(self._state, self._vault, now)
            if proposal is None:
                return None
            entry = Entry(proposal.kind, int(now), secrets.token_bytes(SALT_LENGTH), proposal.body)
            data = entry.encode()
            apply(self._state, entry)
        except CloisterError as error:
            self._state.journal.rollback(mark)
            job.error = error
            return None
        except Exception as error:  # noqa: BLE001  # a bug in one proposal must not take the batch with it
            self._state.journal.rollback(mark)
            job.error = Unavailable("keyservice-internal", "the KeyService could not process this")
            job.error.__cause__ = error
            return None
        job.index, job.entry = self._tree.append(entry_leaf(data)), entry
        if proposal.secret is not None:
            self._vault.put(job.index, proposal.secret)
        return NewEntry(data, proposal.secret)

    def _bury(self, dead: tuple[int, ...]) -> None:
        for index in dead:
            self._vault.destroy(index)
            self._state.forget_secret(index)
        self._state.journal.keep()
