"""A KeyService's state, for comparing: two that are equal answer everything alike."""

from __future__ import annotations

from collections.abc import Mapping

from cloister.keyservice.ledger import Ledger
from cloister.keyservice.state import encoding
from cloister.keyservice.storage.port import SNAPSHOTS
from cloister.testing.rows import MemoryDisk


def canonical(ledger: Ledger) -> Mapping[str, object]:
    """Everything that the state holds, and all of its log's hashes, whatever of it is in blocks."""
    with ledger.hold() as held:
        copy = encoding.copy(held.state, held.tree.size // held.store.block_entries)
        parties = list(copy.events)
        indexes = {name: getattr(held.state, name).copied() for name in (*encoding.INDEXES, *encoding.DERIVED)}
        size, root = held.tree.size, held.tree.root()
    return {
        **copy.values,
        **{name: dict(rows) for name, rows in copy.tables.items()},
        **{name: {key: frozenset(members) for key, members in sets} for name, sets in indexes.items()},
        "events": {party: ledger.concerning(party, 0, size) for party in parties},
        "log": (size, root, ledger.leaves(0, size)),
    }


def without_snapshot(disk: MemoryDisk) -> MemoryDisk:
    """A copy of a disk from which every entry has to be read."""
    other = disk.copy()
    other.tables[SNAPSHOTS].clear()
    return other
