"""Merkle tree hashing of RFC 9162, section 2.1 (spec/protocol.md, section 13): append, root, proofs and their checks.

The tree keeps every complete subtree's hash (64 bytes a leaf), so that a proof for any size up to the present one
costs O(log n) and none of it needs the entries themselves. A long one may give up the hashes inside of complete
subtrees of one size, its pages, and have each fetched when a proof needs it: then 64 bytes a page are left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
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
    """An append-only tree over leaf hashes; every earlier size stays provable.

    :param page: leaves of one page, a power of two; 0: no page is ever given up.
    :param fetch: a page that was given up, as :meth:`page` gave it; what it raises, every method may raise.
    """

    def __init__(
        self, leaves: Iterable[bytes] = (), *, page: int = 0, fetch: Callable[[int], bytes] | None = None
    ) -> None:
        if page & (page - 1) or (page and fetch is None):
            msg = "a page is a power of two of leaves, and is fetched from somewhere"
            raise AssertionError(msg)
        self._levels: list[bytearray] = [bytearray()]
        self._page = page
        self._height = page.bit_length() - 1 if page else 64
        self._fetch = fetch
        self._gone = 0
        for leaf in leaves:
            self.append(leaf)

    @staticmethod
    def restored(page: int, fetch: Callable[[int], bytes], tops: bytes, leaves: bytes) -> MerkleTree:
        """A tree whose complete pages were given up.

        :param tops: the root of each page, one after the other; ``leaves``: the leaf hashes after them.
        """
        tree = MerkleTree(page=page, fetch=fetch)
        tree._gone = len(tops) // HASH_LENGTH
        tree._levels = [bytearray() for _ in range(tree._height)]
        nodes = bytearray(tops)
        while True:
            tree._levels.append(nodes)
            pairs = len(nodes) // HASH_LENGTH // 2
            if not pairs:
                break
            nodes = bytearray().join(
                node_hash(bytes(nodes[at : at + HASH_LENGTH]), bytes(nodes[at + HASH_LENGTH : at + 2 * HASH_LENGTH]))
                for at in range(0, pairs * 2 * HASH_LENGTH, 2 * HASH_LENGTH)
            )
        for at in range(0, len(leaves), HASH_LENGTH):
            tree.append(leaves[at : at + HASH_LENGTH])
        return tree

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return self._gone * self._page + len(self._levels[0]) // HASH_LENGTH

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
            # within a page, and so are the pages' roots: what lies before it on its level is never given up
            node = node_hash(bytes(self._levels[level][-2 * HASH_LENGTH : -HASH_LENGTH]), node)
            level, position = level + 1, position >> 1
            if level == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level] += node
        return index

    def truncate(self, size: int) -> None:
        """Forget the leaves from ``size`` on: only for leaves never written durably, and of no page given up."""
        self._check_size(size)
        if size < self._gone * self._page:
            msg = f"a tree of {size} leaves ends within a page that was given up"
            raise AssertionError(msg)
        for level, nodes in enumerate(self._levels):
            del nodes[((size >> level) - self._given_up(level)) * HASH_LENGTH :]

    @property
    def given_up(self) -> int:
        """How many pages were."""
        return self._gone

    def page(self, number: int) -> bytes:
        """The hashes inside one complete page: leaves, then level by level, without its root."""
        if number < self._gone or (number + 1) * self._page > self.size:
            msg = f"page {number} is not here"
            raise AssertionError(msg)
        parts = []
        for level in range(self._height):
            first = (number << (self._height - level)) - self._given_up(level)
            parts.append(self._levels[level][first * HASH_LENGTH : (first + (self._page >> level)) * HASH_LENGTH])
        return b"".join(parts)

    def give_up(self, pages: int) -> None:
        """Keep of the first ``pages`` pages the roots only: from now on they are fetched."""
        for level in range(min(self._height, len(self._levels))):
            count = (pages << (self._height - level)) - self._given_up(level)
            del self._levels[level][: count * HASH_LENGTH]
        self._gone = pages

    def tops(self, pages: int) -> bytes:
        """The roots of the first ``pages`` pages, one after the other."""
        level = self._levels[self._height] if pages else b""
        return bytes(level[: pages * HASH_LENGTH])

    def top(self, page: int) -> bytes:
        """The root of one page."""
        return self._node(self._height, page)

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
        gone = self._given_up(level)
        if position < gone and self._fetch is not None:
            within = self._height - level
            return page_node(self._fetch(position >> within), self._page, level, position & ((1 << within) - 1))
        return bytes(self._levels[level][(position - gone) * HASH_LENGTH : (position - gone + 1) * HASH_LENGTH])

    def _given_up(self, level: int) -> int:
        """How many nodes of this level are in pages that were given up."""
        return self._gone << (self._height - level) if level < self._height and self._gone else 0

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


def page_length(page: int) -> int:
    """How many bytes the hashes inside a page of so many leaves have."""
    return (2 * page - 2) * HASH_LENGTH


def page_node(nodes: bytes, page: int, level: int, position: int) -> bytes:
    """One node of a page, as :meth:`MerkleTree.page` gives it."""
    at = (2 * page - (2 * page >> level) + position) * HASH_LENGTH
    return nodes[at : at + HASH_LENGTH]


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
