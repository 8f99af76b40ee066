"""Proofs verify for every tree, and for no other tree, index, size or root."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.base.errors import Tampered
from cloister.log.merkle import MerkleTree, leaf_hash, verify_consistency, verify_inclusion


def leaves(count: int, seed: int = 0) -> list[bytes]:
    return [leaf_hash(seed.to_bytes(4, "big") + index.to_bytes(4, "big")) for index in range(count)]


def naive_root(hashes: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, as it is written."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(hashes[:k]) + naive_root(hashes[k:])).digest()


sizes = st.integers(1, 130)


@given(sizes)
def test_root_is_the_definition(size: int) -> None:
    assert MerkleTree(leaves(size)).root() == naive_root(leaves(size))


@given(st.data())
def test_inclusion_round_trip_and_refusals(data: st.DataObject) -> None:
    total = data.draw(sizes)
    size = data.draw(st.integers(1, total))
    index = data.draw(st.integers(0, size - 1))
    tree = MerkleTree(leaves(total))
    proof, root, leaf = tree.inclusion(index, size), tree.root(size), tree.leaf(index)
    verify_inclusion(leaf, index, size, proof, root)
    wrong = data.draw(st.sampled_from(["leaf", "root", "index", "cut", "longer", "node"]))
    node = bytes(32)
    match wrong:
        case "leaf":
            leaf = node
        case "root":
            root = node
        case "index":
            index += data.draw(st.sampled_from([1, -1, size]))
        case "cut":
            proof = proof[:-1] if proof else (node,)
        case "longer":
            proof = (*proof, node)
        case _:
            at = data.draw(st.integers(0, len(proof)))
            proof = (*proof[:at], node, *proof[at + 1 :])
    with pytest.raises(Tampered):
        verify_inclusion(leaf, index, size, proof, root)


@given(st.data())
def test_consistency_round_trip_and_forks(data: st.DataObject) -> None:
    second = data.draw(sizes)
    first = data.draw(st.integers(1, second))
    tree = MerkleTree(leaves(second))
    proof = tree.consistency(first, second)
    verify_consistency(first, tree.root(first), second, tree.root(second), proof)
    other = MerkleTree(leaves(second, seed=1))
    with pytest.raises(Tampered):
        verify_consistency(first, other.root(first), second, tree.root(second), proof)
    with pytest.raises(Tampered):
        verify_consistency(first, tree.root(first), second, other.root(second), proof)
    with pytest.raises(Tampered):
        verify_consistency(first, tree.root(first), second, tree.root(second), (*proof, bytes(32)))


@given(sizes, sizes)
def test_truncating_equals_never_appending(size: int, more: int) -> None:
    tree = MerkleTree(leaves(size + more))
    tree.truncate(size)
    tree.append(bytes(32))
    assert tree.root() == MerkleTree([*leaves(size), bytes(32)]).root()
