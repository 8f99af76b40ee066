"""What a start begins with: the newest snapshot and the entries after it, or all of them (spec/protocol.md, 13.23)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import cbor2

from cloister.base.errors import CloisterError, Tampered
from cloister.base.limits import SNAPSHOT_PART
from cloister.crypto.digest import same
from cloister.keyservice.proposals import newer
from cloister.keyservice.state import encoding
from cloister.keyservice.state.state import State
from cloister.keyservice.state.transitions import apply
from cloister.keyservice.storage.port import KeyStore, Saved, Start
from cloister.keyservice.vault import Vault
from cloister.log.entry import Entry, entry_leaf
from cloister.log.merkle import MerkleTree

_PIECE: Final = 32 * 1024  # of a long value
_LOG: Final = ("ends", "links", "tops", "leaves")


@dataclass(frozen=True, slots=True)
class Replayed:
    """State and log as the store gives them.

    :param begun: entries that were in the snapshot, and were not read. :param rows: that it had.
    :param ignored: why a snapshot that is there was not used: a code; empty if none was ignored.
    """

    state: State
    tree: MerkleTree
    vault: Vault
    begun: int = 0
    rows: int = 0
    ignored: str = ""


@dataclass(frozen=True, slots=True)
class Copy:
    """All that a snapshot holds, at one size; ``size``, ``link`` and ``root`` as of :class:`Saved`."""

    size: int
    link: bytes
    root: bytes
    start: Start
    tops: bytes
    leaves: bytes
    state: encoding.Copy


def replay(store: KeyStore, version: bytes, *, whole: bool = True) -> Replayed:
    """Whatever is wrong with a snapshot, or with what comes after it, is found by reading everything.

    :param whole: whether every secret in use must be there.
    :raises Tampered: the store's codes; ``log-order``; ``secret-missing``, ``secret-other``.
    :raises Unavailable: ``store-unavailable``; ``log-newer``: a newer build wrote it.
    """
    ignored = ""
    try:
        if (saved := store.snapshots.saved()) is not None:
            if same(saved.version, version):
                return _restored(store, saved, whole=whole)
            ignored = "snapshot-other-code"
    except Tampered as error:
        ignored = error.code
    state, tree = State(store.block_entries), new_tree(store)
    _apply(store, None, state, tree)
    return Replayed(state, tree, _filled(store, state, whole=whole), ignored=ignored)


def new_tree(store: KeyStore) -> MerkleTree:
    """An empty one, whose pages are the store's blocks."""
    return MerkleTree(page=store.block_entries, fetch=lambda number: store.block(number).nodes)


def _apply(store: KeyStore, start: Start | None, state: State, tree: MerkleTree) -> None:
    for data in store.load(start):
        try:
            apply(state, Entry.decode(data, sealed=True), sealed=True)
        except CloisterError as error:
            if error.code == "entry-unknown":
                raise newer(state.size) from error
            raise Tampered("log-order", f"log entry {state.size} cannot be replayed: {error}") from error
        tree.append(entry_leaf(data))
        state.journal.keep()


def _restored(store: KeyStore, saved: Saved, *, whole: bool) -> Replayed:
    reader = encoding.Reader(store.block_entries)
    log = {name: bytearray() for name in _LOG}
    rows = 0
    try:
        for part in store.snapshots.parts(saved):
            for section, key, value in cbor2.loads(part):
                rows += 1
                if section in log:
                    log[section] += value
                else:
                    reader.take(section, key, value)
        state = reader.done()
        tree = MerkleTree.restored(
            store.block_entries, lambda number: store.block(number).nodes, bytes(log["tops"]), bytes(log["leaves"])
        )
    except CloisterError:
        raise
    except Exception as error:  # authentic, and yet of another form
        raise Tampered("store-record", "the snapshot in the store is of another form than this code's") from error
    start = Start(bytes(log["ends"]), bytes(log["links"]))
    if not state.size == tree.size == saved.size or not same(tree.root(), saved.root):
        raise Tampered("store-record", "the snapshot in the store does not hold the log that it names")
    _apply(store, start, state, tree)
    if not same(store.link(saved.size), saved.link):
        raise Tampered("store-record", "the snapshot in the store does not continue the log that it names")
    for index in {0, saved.size - 1}:
        check_entry(store, tree, index)
    return Replayed(state, tree, _filled(store, state, whole=whole), saved.size, rows)


def _filled(store: KeyStore, state: State, *, whole: bool) -> Vault:
    vault = Vault()
    vault.fill(store.secrets(), state, whole=whole)
    return vault


def check_entry(store: KeyStore, tree: MerkleTree, index: int) -> bytes:
    """One entry, as the store has it and as the log has it.

    :raises Tampered: the store's codes. :raises Unavailable: ``store-unavailable``.
    """
    data = store.read(index)
    if not same(entry_leaf(data), tree.leaf(index)):
        raise Tampered("store-record", f"log entry {index} in the store is not the one in the log")
    return data


def copy(store: KeyStore, state: State, tree: MerkleTree) -> Copy:
    """Everything, while nothing changes."""
    size, entries = tree.size, store.block_entries
    blocks = size // entries
    return Copy(
        size,
        store.link(size),
        tree.root(),
        store.start(size),
        tree.tops(blocks),
        b"".join(tree.leaf(index) for index in range(blocks * entries, size)),
        encoding.copy(state, blocks),
    )


def parts(copy: Copy) -> Iterator[tuple[bytes, int]]:
    """What the parts of a snapshot hold, each about ``SNAPSHOT_PART`` bytes, and the number of rows in it."""
    rows: list[bytes] = []
    size = 0
    for row in _rows(copy):
        data = cbor2.dumps(row)
        rows.append(data)
        size += len(data)
        if size >= SNAPSHOT_PART:
            yield _part(rows), len(rows)
            rows, size = [], 0
    if rows:
        yield _part(rows), len(rows)


def _rows(copy: Copy) -> Iterator[tuple[str, Any, Any]]:
    for name, value in zip(_LOG, (copy.start.ends, copy.start.links, copy.tops, copy.leaves), strict=True):
        for at in range(0, len(value), _PIECE):
            yield name, None, value[at : at + _PIECE]
    yield from encoding.rows(copy.state)


def _part(rows: list[bytes]) -> bytes:
    """One CBOR array of rows that are encoded already."""
    return b"\x9a" + len(rows).to_bytes(4, "big") + b"".join(rows)
