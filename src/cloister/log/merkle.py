"""Merkle tree hashing of RFC 9162, section 2.1 (spec/protocol.md, section 13): append, root, proofs and their checks.

The tree keeps every complete subtree's hash (64 bytes a leaf), so that a proof for any size up to the present one
costs O(log n) and none of it needs the entries themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, final

from cloister.base.errors import InvalidInput, Tampered
from cloister.crypto.digest import same

HASH_LENGTH: Final = 32
MAX_PROOF: Final = 64  # hashes in a proof: more than a tree of 2**63 leaves needs
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@final
class MerkleTree:
    """An append-only tree over leaf hashes; every earlier size stays provable."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._levels: list[bytearray] = [bytearray()]
        for leaf in leaves:
            self.append(leaf)

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self._levels[0]) // HASH_LENGTH

    def append(self, leaf: bytes) -> int:
        """Add one leaf hash; returns its index.

        :raises InvalidInput: ``hash-length``.
        """
        if len(leaf) != HASH_LENGTH:
            raise InvalidInput("hash-length", f"a leaf hash has {HASH_LENGTH} bytes, this one {len(leaf)}")
        index = self.size
        level, node, position = 0, leaf, index
        self._levels[0] += node
        while position & 1:
            node = node_hash(self._node(level, position - 1), node)
            level, position = level + 1, position >> 1
            if level == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level] += node
        return index

    def truncate(self, size: int) -> None:
        """Forget the leaves from ``size`` on: only for leaves that were never written durably."""
        self._check_size(size)
        for level, nodes in enumerate(self._levels):
            del nodes[(size >> level) * HASH_LENGTH :]

    def leaf(self, index: int) -> bytes:
        """One leaf hash.

        :raises InvalidInput: ``log-index``.
        """
        self._check_index(index, self.size)
        return self._node(0, index)

    def root(self, size: int | None = None) -> bytes:
        """The root over the first ``size`` leaves; SHA-256 of nothing when there are none."""
        size = self.size if size is None else size
        self._check_size(size)
        return self._subtree(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """Proof that leaf ``index`` is in the tree of ``size`` leaves (RFC 9162, 2.1.3.1).

        :raises InvalidInput: ``log-index``, ``log-size``.
        """
        size = self.size if size is None else size
        self._check_size(size)
        self._check_index(index, size)
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(start, middle))
                start = middle
        return tuple(reversed(path))

    def consistency(self, first: int, second: int | None = None) -> tuple[bytes, ...]:
        """Proof that the tree of ``second`` leaves continues that of ``first`` (RFC 9162, 2.1.4.1); empty for none.

        :raises InvalidInput: ``log-size``.
        """
        second = self.size if second is None else second
        self._check_size(second)
        if not 0 <= first <= second:
            raise InvalidInput("log-size", f"a log of {second} entries has no earlier state of {first}")
        if first in (0, second):
            return ()
        path: list[bytes] = []
        start, end, whole = 0, second, True
        while first != end:
            middle = start + _split(end - start)
            if first <= middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(start, middle))
                start, whole = middle, False
        if not whole:
            path.append(self._subtree(start, end))
        return tuple(reversed(path))

    def _node(self, level: int, position: int) -> bytes:
        return bytes(self._levels[level][position * HASH_LENGTH : (position + 1) * HASH_LENGTH])

    def _subtree(self, start: int, end: int) -> bytes:
        """Root over leaves start..end, where start is a multiple of the next power of two."""
        width = end - start
        if width & (width - 1) == 0:
            level = width.bit_length() - 1
            return self._node(level, start >> level)
        middle = start + _split(width)
        return node_hash(self._subtree(start, middle), self._subtree(middle, end))

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise InvalidInput("log-size", f"the log has {self.size} entries, not {size}")

    @staticmethod
    def _check_index(index: int, size: int) -> None:
        if not 0 <= index < size:
            raise InvalidInput("log-index", f"there is no entry {index} in a log of {size}")


def _split(width: int) -> int:
    """The largest power of two below ``width``."""
    return 1 << ((width - 1).bit_length() - 1)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check an inclusion proof (RFC 9162, 2.1.3.2); returns nothing.

    :raises Tampered: ``log-inclusion``.
    """
    if not (0 <= index < size and len(proof) <= MAX_PROOF and all(len(node) == HASH_LENGTH for node in proof)):
        raise _no_inclusion(index, size)
    fn, sn, result = index, size - 1, leaf
    for node in proof:
        if sn == 0:
            raise _no_inclusion(index, size)
        if fn & 1 or fn == sn:
            result = node_hash(node, result)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            result = node_hash(result, node)
        fn, sn = fn >> 1, sn >> 1
    if sn or not same(result, root):
        raise _no_inclusion(index, size)


def _no_inclusion(index: int, size: int) -> Tampered:
    return Tampered("log-inclusion", f"the proof does not show entry {index} in the log of {size} entries")


def verify_consistency(first: int, first_root: bytes, second: int, second_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that one head continues another (RFC 9162, 2.1.4.2); returns nothing.

    An empty first tree continues into every tree; equal sizes must have equal roots; both with an empty proof.

    :raises Tampered: ``log-rollback`` when ``second`` is smaller, ``log-fork`` when the histories differ or the proof
        does not show that they agree.
    """
    if second < first:
        raise Tampered("log-rollback", f"the log has {second} entries; it had {first} before")
    if first < 0 or len(proof) > MAX_PROOF or not all(len(node) == HASH_LENGTH for node in proof):
        raise _fork(first, second)
    if first in (0, second):
        if proof or not same(first_root, EMPTY_ROOT if first == 0 else second_root):
            raise _fork(first, second)
        return
    path = list(proof)
    if first & (first - 1) == 0:
        path.insert(0, first_root)
    if not path:
        raise _fork(first, second)
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = path[0]
    for node in path[1:]:
        if sn == 0:
            raise _fork(first, second)
        if fn & 1 or fn == sn:
            old, new = node_hash(node, old), node_hash(node, new)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, node)
        fn, sn = fn >> 1, sn >> 1
    if sn or not (same(old, first_root) and same(new, second_root)):
        raise _fork(first, second)


def _fork(first: int, second: int) -> Tampered:
    return Tampered("log-fork", f"the log of {second} entries does not continue the one of {first} seen before")
