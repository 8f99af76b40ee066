"""The one writer: proposals become log entries, durable before anybody hears of them, many to one fsync.

Whoever finds the writer idle writes what is waiting, its own proposal among it; the others wait for the lock and
find theirs done. Readers take the same lock, so nobody sees a state that is not durable, and a decision about a key
stands in one order with every revocation (claim S5).
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, final

from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, Tampered, Unavailable
from cloister.base.limits import COMMIT_BATCH, MAX_COMMIT_QUEUE
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import same
from cloister.keyservice.anchor import Anchor, Unanchored
from cloister.keyservice.state import State
from cloister.keyservice.store import KeyStore, NewEntry
from cloister.keyservice.transitions import apply
from cloister.keyservice.vault import Vault
from cloister.log.entry import GENESIS, SALT_LENGTH, Entry, Genesis, entry_leaf
from cloister.log.merkle import MerkleTree
from cloister.wire.calls import LogHead

_SWEEP_S: Final = 10.0  # how often dead secrets are looked for


@dataclass(frozen=True, slots=True)
class Proposal:
    """What shall become the next entry, and the secret beside it."""

    kind: str
    body: bytes
    secret: SecretBytes | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """An entry that is durable and not yet confirmed: nobody may hear of it."""

    index: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Committed:
    """An entry that is durable and, where the log is anchored, in a confirmed head; its place there."""

    index: int
    entry: Entry
    head: LogHead
    inclusion: tuple[bytes, ...]


Propose = Callable[[State, Vault, float], Proposal | None]


@final
class _Job:
    __slots__ = ("done", "entry", "error", "index", "propose")

    def __init__(self, propose: Propose) -> None:
        self.propose = propose
        self.index = -1
        self.entry: Entry | None = None
        self.error: CloisterError | None = None
        self.done = False


@final
class Ledger:
    """State, log and vault over a store; thread-safe.

    :param anchor: confirms heads (clause 13.10); by default nothing does.
    """

    def __init__(self, store: KeyStore, clock: Clock, anchor: Anchor | None = None) -> None:
        """Replay what the store holds.

        :raises Tampered: the store's codes; ``log-order``; ``secret-missing``, ``secret-other`` when a secret that the
            state needs is not there or is not the one committed to.
        :raises Unavailable: ``store-unavailable``.
        """
        self._store = store
        self._clock = clock
        self._anchor: Anchor = anchor or Unanchored()
        self._state = State()
        self._tree = MerkleTree()
        self._vault = Vault()
        self._lock = threading.Lock()
        self._time_lock = threading.Lock()
        self._queue: deque[_Job] = deque()
        self._closed = False
        self._latest = self._swept = clock.now()
        for data in store.load():
            try:
                apply(self._state, Entry.decode(data))
            except CloisterError as error:
                raise Tampered("log-order", f"log entry {self._state.size} cannot be replayed: {error}") from error
            self._tree.append(entry_leaf(data))
            self._state.journal.keep()
        self._vault.fill(store.secrets(), self._state)
        self._state.journal.keep()
        self._anchor.start(self)

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

    @property
    def open(self) -> bool:
        """Whether it takes proposals."""
        return not self._closed

    def now(self) -> float:
        """The KeyService's time: never behind the newest durable entry, its witnesses (13.11), nor itself."""
        with self._time_lock:
            self._latest = max(self._latest, self._anchor.time(), self._state.now(self._clock.now()))
            return self._latest

    @contextmanager
    def read(self) -> Iterator[tuple[State, float]]:
        """The durable state, and the KeyService's time; nothing changes meanwhile, so be short."""
        with self._lock:
            yield self._state, self.now()

    def head(self) -> LogHead:
        """Size and root of the durable log, and the time."""
        with self._lock:
            return self._head()

    def shown_head(self) -> LogHead:
        """The head for others: the newest confirmed one with its co-signatures, or else the durable one."""
        return self._anchor.confirmed() or self.head()

    def leaves(self, first: int, count: int) -> bytes:
        """Leaf hashes, one after the other; fewer at the log's end.

        :raises InvalidInput: ``log-size``, ``log-index``.
        """
        with self._lock:
            end = min(self._tree.size, first + count)
            return b"".join(self._tree.leaf(index) for index in range(first, end))

    def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        """:raises InvalidInput: ``log-size``."""
        with self._lock:
            return self._tree.consistency(first, second)

    def entries(self, indices: list[int]) -> list[tuple[int, bytes, tuple[bytes, ...]]]:
        """Entries as written, each checked against its leaf, with its inclusion proof in the present tree.

        :raises Tampered: the store's codes; ``store-record``. :raises Unavailable: ``store-unavailable``.
        """
        return self.entries_with_head(indices)[0]

    def entries_with_head(self, indices: list[int]) -> tuple[list[tuple[int, bytes, tuple[bytes, ...]]], LogHead]:
        """As :meth:`entries`, with the head to which the proofs lead: a confirmed one, if all entries are in it."""
        found = []
        with self._lock:
            confirmed = self._anchor.confirmed()
            head = confirmed if confirmed and all(index < confirmed.size for index in indices) else self._head()
            for index in indices:
                data = self._store.read(index)
                if not same(entry_leaf(data), self._tree.leaf(index)):
                    raise Tampered("store-record", f"log entry {index} in the store is not the one in the log")
                found.append((index, data, self._tree.inclusion(index, head.size)))
        return found, head

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
        with self._lock:
            head = head or self._head()
            return Committed(written.index, written.entry, head, self._tree.inclusion(written.index, head.size))

    def confirm_through(self, index: int) -> None:
        """Wait until entry ``index`` is in a confirmed head; raises as :meth:`confirm`."""
        self._anchor.confirm(index + 1)

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
        job = _Job(propose)
        self._queue.append(job)
        with self._lock:
            while not job.done:
                self._write_batch()
        if job.error is not None:
            raise job.error
        return None if job.entry is None else Written(job.index, job.entry)

    def sweep(self) -> int:
        """Destroy the secrets whose time is over; returns how many."""
        with self._lock:
            if self._closed:
                return 0
            dead = self._state.dead_secrets(self.now())
            if dead:
                self._store.append([], dead)
                self._bury(dead)
            return len(dead)

    def close(self) -> None:
        """Refuse what comes, after what is under way; close the store."""
        self._anchor.close()
        with self._lock:
            self._closed = True
            self._store.close()

    # --- the writer, under the lock ---

    def _head(self) -> LogHead:
        return LogHead(self._tree.size, self._tree.root(), int(self.now()))

    def _write_batch(self) -> None:
        jobs: list[_Job] = []
        while self._queue and len(jobs) < COMMIT_BATCH:
            jobs.append(self._queue.popleft())
        if self._closed:
            return _fail(jobs, Unavailable("keyservice-closing", "the KeyService is shutting down", retry_after=5.0))
        now, size = self.now(), self._tree.size
        batch = [new for job in jobs if (new := self._try(job, now)) is not None]
        dead = self._state.dead_secrets(now) if now - self._swept >= _SWEEP_S else ()
        try:
            self._store.append(batch, dead)
        except CloisterError as error:
            self._state.journal.rollback()
            self._tree.truncate(size)
            self._vault.forget_from(size)
            return _fail(jobs, error)
        self._state.journal.keep()
        if now - self._swept >= _SWEEP_S:
            self._swept = now
            self._bury(dead)
        for job in jobs:
            job.done = True
        return None

    def _try(self, job: _Job, now: float) -> NewEntry | None:
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


def _fail(jobs: list[_Job], error: CloisterError) -> None:
    for job in jobs:
        job.error = job.error or error
        job.entry = None
        job.done = True
