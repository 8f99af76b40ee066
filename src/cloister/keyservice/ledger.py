"""The one writer: proposals become log entries, durable before anybody hears of them, many to one fsync.

Whoever finds the writer idle writes what is waiting, its own proposal among it; the others wait for the lock and
find theirs done. Readers take the same lock, so nobody sees a state that is not durable, and a decision about a key
stands in one order with every revocation (claim S5).
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, final

from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, Tampered, Unavailable
from cloister.base.limits import COMMIT_BATCH, MAX_COMMIT_QUEUE
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import same
from cloister.keyservice.anchors.port import Anchor
from cloister.keyservice.history import History
from cloister.keyservice.proposals import Committed, Job, Proposal, Propose, Written, fail, no_leader
from cloister.keyservice.state.state import CustodyState
from cloister.keyservice.state.transitions import apply
from cloister.keyservice.storage.port import KeyStore, NewEntry, SealedEntry
from cloister.keyservice.vault import Doomed
from cloister.log.entry import GENESIS, SALT_LENGTH, Entry, Genesis, entry_leaf
from cloister.wire.calls import LogHead

_SWEEP_S: Final = 10.0  # how often dead secrets are looked for


@final
class Ledger(History):
    """State, log and vault over a store; thread-safe.

    :param anchor: confirms heads (clause 13.10); by default nothing does.
    :param code: names what runs: a snapshot that other code wrote is not gone on from (13.23.4).
    :ivar trouble: code of what the store said to the last attempt to write; empty when it was written.
    """

    def __init__(self, store: KeyStore, clock: Clock, anchor: Anchor | None = None, code: bytes = b"") -> None:
        """Replay what the store holds.

        :raises Tampered: the store's codes; ``log-order``; ``secret-missing``, ``secret-other`` when a secret that the
            state needs is not there (of a replica: only once it leads) or is not the one committed to.
        :raises Unavailable: ``store-unavailable``; ``log-newer``: a newer build wrote it.
        """
        self._doomed = Doomed()
        super().__init__(store, clock, anchor, code)
        self._grown = threading.Condition()
        self._queue: deque[Job] = deque()
        self._following = False
        self._swept = self._latest
        self.trouble = ""
        self._anchor.start(self)

    def _load(self) -> None:
        super()._load()
        self._doomed = Doomed()

    @staticmethod
    def begin(store: KeyStore, clock: Clock, genesis: Genesis) -> Ledger:
        """A new log; its first entry says whose it is.

        :raises Tampered: ``log-order`` when the store is not empty.
        """
        ledger = Ledger(store, clock)
        ledger.commit(lambda _state, _vault, _now: Proposal(GENESIS, genesis.encode()))
        return ledger

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

    def _require_same(self, written: Written, head: LogHead) -> None:
        known = self._has(written) and head.size <= self._tree.size
        if not known or not same(self._tree.root(head.size), head.root):
            raise Unavailable(
                "keyservice-unconfirmed", "the entry was replaced by another history of the log", retry_after=1.0
            )

    def write(self, propose: Propose) -> Written | None:
        """Run ``propose`` against the newest state; what it returns is in the log, durable, when this returns.

        ``propose`` runs under the writer's lock with every earlier entry applied: it must not block. It may raise
        (nothing is written, the error is raised here) or return ``None`` (nothing is written).

        :raises Unavailable: ``store-unavailable``: nothing happened, unless this process dies before it writes again:
            then it may be there, whole; ``keyservice-busy``; ``keyservice-closing``;
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

    def wait_beyond(self, size: int, timeout_s: float) -> None:
        """Return once there are more than ``size`` entries, or after the time."""
        with self._grown:
            self._grown.wait_for(lambda: self._closed or self._tree.size > size, timeout_s)

    def _tell(self) -> None:
        with self._grown:
            self._grown.notify_all()

    # --- the writer, under the lock ---

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
