"""What is done beside serving so that starts stay fast: blocks, snapshots, and the scrub (spec/protocol.md, 13.23).

The one writer is stopped for one record at a time, and once for a copy of the state. Nothing that is written here is
acknowledged to anybody: whatever fails is tried again, and a crash leaves the snapshot before.
"""

from __future__ import annotations

import threading
from typing import Final, final

from cloister.adapters.logs import EventLog
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, Tampered, Unavailable
from cloister.base.limits import SCRUB_ENTRIES, SCRUB_PAUSE, SNAPSHOT_ENTRIES, SNAPSHOT_LEAST, SNAPSHOT_SHARE
from cloister.keyservice import snapshots
from cloister.keyservice.history import Held
from cloister.keyservice.ledger import Ledger
from cloister.log.merkle import HASH_LENGTH, MerkleTree

_PAUSE_S: Final = 1.0
_RETRY_S: Final = 30.0
_CONFIRM_S: Final = 10.0  # a replica's newest entries are confirmed a round to the witnesses later
_POLL_S: Final = 0.25


@final
class Keeper:
    """See the module. Two threads, from :meth:`start` to :meth:`stop`; tests call what these do.

    :param every: entries after which a snapshot is due; by default what the limits say.
    :ivar ended: set once the ledger was condemned, or the keeper stopped.
    """

    def __init__(self, ledger: Ledger, clock: Clock, events: EventLog, *, every: int = SNAPSHOT_ENTRIES) -> None:
        self._ledger = ledger
        self._clock = clock
        self._events = events
        self._every = every
        self._generation = ledger.generation
        self._saved = (ledger.begun, ledger.rows)
        self._scrubbed = 0
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        if ledger.ignored:
            events.event("snapshot-ignored", level="warning", code=ledger.ignored)
        if ledger.begun:
            events.event("snapshot-read", sequence=ledger.begun)

    # --- how it stands ---

    @property
    def saved(self) -> int:
        """Entries in the newest snapshot; 0 while there is none."""
        return self._newest()[0]

    def _newest(self) -> tuple[int, int]:
        """Entries and rows of the newest snapshot: of a replica that dropped entries, perhaps not the one before."""
        if self._ledger.generation != self._generation:
            self._generation, self._saved = self._ledger.generation, (self._ledger.begun, self._ledger.rows)
        return self._saved

    @property
    def scrubbed(self) -> int:
        """Entries that were read since the start, of those in the snapshot that it began with."""
        return min(self._scrubbed, self._ledger.begun)

    @property
    def unscrubbed(self) -> int:
        """Entries that were not read since the start."""
        return self._ledger.begun - self.scrubbed

    # --- blocks and snapshots ---

    def due(self) -> bool:
        """Whether reading what came after the newest snapshot would take long."""
        size, rows = self._newest()
        return self._ledger.position()[0] - size >= max(self._every, rows // SNAPSHOT_SHARE)

    def save(self, patience_s: float = 0.0) -> bool:
        """Write a snapshot; returns whether it became the newest: not when its entries were replaced, or may yet be.

        :param patience_s: how long to wait until they cannot be.
        :raises Unavailable: ``store-unavailable``, ``keyservice-closing``. :raises Tampered: the store is not sound.
        """
        began = self._clock.monotonic()
        with self._ledger.hold() as held:
            stopped = self._clock.monotonic()
            copy = snapshots.copy(held.store, held.state, held.tree)
            stopped = self._clock.monotonic() - stopped
            generation, size = held.generation, copy.size
        while True:
            with self._ledger.hold() as held:
                if held.generation != generation:
                    return False
                if not _give_up(held, size):
                    break
        rows = 0
        with self._ledger.hold() as held:
            if held.generation != generation:
                return False
            saved = held.store.snapshots.begin(self._ledger.version, size, copy.link, copy.root)
        for part, count in snapshots.parts(copy):
            with self._ledger.hold() as held:
                if held.generation != generation:
                    return False
                saved = held.store.snapshots.put_part(saved, part)
            rows += count
        until = self._clock.monotonic() + patience_s
        while self._ledger.lasting < size:
            if self._clock.monotonic() >= until or self._stopping.wait(_POLL_S):
                return False
        with self._ledger.hold() as held:
            if held.generation != generation:
                return False
            held.store.snapshots.finish(saved)
            self._generation, self._saved = generation, (size, rows)
        took = self._clock.monotonic() - began
        self._events.event(
            "snapshot",
            sequence=size,
            count=saved.parts,
            duration_ms=round(took * 1000),
            step=f"copied in {stopped * 1000:.1f} ms",
        )
        return True

    # --- the scrub ---

    def scrub(self) -> bool:
        """Read the next few entries that the start did not; returns whether there are more.

        :raises Unavailable: ``store-unavailable``, ``keyservice-closing``. :raises Tampered: they are not as written.
        """
        with self._ledger.hold() as held:
            first, entries = self._scrubbed, held.store.block_entries
            last = min(first + SCRUB_ENTRIES, self._ledger.begun)
            for index in range(first, last):
                if index % entries == 0 and (index + entries) <= self._ledger.begun:
                    _check_block(held, index // entries)
                snapshots.check_entry(held.store, held.tree, index)
            self._scrubbed = max(first, last)
        return self._scrubbed < self._ledger.begun

    # --- as threads ---

    def start(self) -> None:
        """Begin."""
        for name, run in (("snapshots", self._keep), ("scrub", self._scrub)):
            thread = threading.Thread(target=run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Begin nothing more, and write a last snapshot if it saves the next start something."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        if self._ledger.open and self._ledger.position()[0] - self.saved >= SNAPSHOT_LEAST:
            self._try_save()

    def _keep(self) -> None:
        pause = _PAUSE_S
        while not self._stopping.wait(pause):
            pause = _PAUSE_S if not self.due() or self._try_save() else _RETRY_S

    def _try_save(self) -> bool:
        try:
            return self.save(_CONFIRM_S)
        except CloisterError as error:
            self._events.event("snapshot-failed", level="warning", code=error.code, family=error.family)
        except Exception as error:  # noqa: BLE001  # a fault of ours here must not end the service
            self._events.event("internal-error", level="error", where="snapshots", error=type(error).__name__)
        return False

    def _scrub(self) -> None:
        pause, more = 0.0, True
        while more and not self._stopping.wait(pause):
            began = self._clock.monotonic()
            try:
                more = self.scrub()
                pause = SCRUB_PAUSE * (self._clock.monotonic() - began)
            except Tampered:
                return  # the ledger is condemned, which whoever runs it is told
            except Unavailable:
                pause = _RETRY_S
        if not more and self._ledger.begun:
            self._events.event("scrubbed", sequence=self._scrubbed)


def _give_up(held: Held, size: int) -> bool:
    """Write down the next block that ends within the first ``size`` entries; whether there was one."""
    number = held.tree.given_up
    if (number + 1) * held.store.block_entries > size:
        return False
    held.store.give_up(number, held.tree.page(number), held.state.events.concerned(number))
    held.tree.give_up(number + 1)
    held.state.events.give_up(number)
    return True


def _check_block(held: Held, number: int) -> None:
    """The hashes inside a block make its root. :raises Tampered: ``store-record``."""
    entries, nodes = held.store.block_entries, held.store.block(number).nodes
    leaves = (nodes[at : at + HASH_LENGTH] for at in range(0, entries * HASH_LENGTH, HASH_LENGTH))
    inside = MerkleTree(leaves, page=entries, fetch=lambda _: b"")
    if inside.tops(1) != held.tree.top(number) or inside.page(0) != nodes:
        raise Tampered("store-record", f"block {number} in the store is not of the log")
