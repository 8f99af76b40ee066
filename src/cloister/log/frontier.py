"""The right edge of a Merkle tree: its root at every size as leaves go by, in memory that does not grow with them.

For whoever reads a whole log once and wants its root at a few sizes; proofs need
:class:`~cloister.log.merkle.MerkleTree`. Hashing is that of RFC 9162, 2.1.
"""

from __future__ import annotations

from typing import final

from cloister.log.merkle import EMPTY_ROOT, node_hash


@final
class Frontier:
    """Roots of the complete subtrees, largest first: one for each bit that is set in the size."""

    def __init__(self) -> None:
        self.size = 0
        self._nodes: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash, 32 bytes."""
        node, position = leaf, self.size
        while position & 1:
            node, position = node_hash(self._nodes.pop(), node), position >> 1
        self._nodes.append(node)
        self.size += 1

    def root(self) -> bytes:
        """Over the leaves so far; SHA-256 of nothing when there are none."""
        if not self._nodes:
            return EMPTY_ROOT
        *larger, root = self._nodes
        for node in reversed(larger):
            root = node_hash(node, root)
        return root
