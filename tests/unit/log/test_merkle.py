"""RFC 9162 trees: the test vectors of Certificate Transparency's reference implementation, and each refusal."""

from __future__ import annotations

import pytest

from cloister.base.errors import InvalidInput, Tampered
from cloister.log.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    leaf_hash,
    page_length,
    verify_consistency,
    verify_inclusion,
)

# The eight leaves and nine roots used by the Certificate Transparency reference implementations.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def tree() -> MerkleTree:
    return MerkleTree(map(leaf_hash, LEAVES))


@pytest.mark.parametrize("size", range(9))
def test_roots(size: int) -> None:
    assert tree().root(size).hex() == ROOTS[size]
    assert MerkleTree(map(leaf_hash, LEAVES[:size])).root().hex() == ROOTS[size]


@pytest.mark.parametrize(
    ("index", "size", "proof"),
    [
        (0, 1, []),
        (
            0,
            8,
            [
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            5,
            8,
            [
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
        (
            1,
            5,
            [
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ],
)
def test_inclusion(index: int, size: int, proof: list[str]) -> None:
    made = tree().inclusion(index, size)
    assert [node.hex() for node in made] == proof
    verify_inclusion(leaf_hash(LEAVES[index]), index, size, made, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(
    ("first", "second", "proof"),
    [
        (1, 1, []),
        (
            1,
            8,
            [
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            6,
            8,
            [
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (
            2,
            5,
            [
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ],
)
def test_consistency(first: int, second: int, proof: list[str]) -> None:
    made = tree().consistency(first, second)
    assert [node.hex() for node in made] == proof
    verify_consistency(first, bytes.fromhex(ROOTS[first]), second, bytes.fromhex(ROOTS[second]), made)


def test_rollback_is_named() -> None:
    with pytest.raises(Tampered) as caught:
        verify_consistency(8, bytes.fromhex(ROOTS[8]), 7, bytes.fromhex(ROOTS[7]), ())
    assert caught.value.code == "log-rollback"


def test_fork_of_the_same_size_is_named() -> None:
    with pytest.raises(Tampered) as caught:
        verify_consistency(8, bytes.fromhex(ROOTS[8]), 8, bytes.fromhex(ROOTS[7]), ())
    assert caught.value.code == "log-fork"


def test_truncate_takes_back_what_was_not_written() -> None:
    whole = tree()
    whole.truncate(5)
    assert (whole.size, whole.root().hex()) == (5, ROOTS[5])
    for data in LEAVES[5:]:
        whole.append(leaf_hash(data))
    assert whole.root().hex() == ROOTS[8]


@pytest.mark.parametrize("call", [lambda t: t.root(9), lambda t: t.inclusion(8), lambda t: t.consistency(3, 2)])
def test_what_is_not_there_is_refused(call: object) -> None:
    with pytest.raises(InvalidInput):
        call(tree())  # type: ignore[operator]


def test_the_empty_tree() -> None:
    assert MerkleTree().root() == EMPTY_ROOT
    verify_consistency(0, EMPTY_ROOT, 3, bytes.fromhex(ROOTS[3]), ())
    with pytest.raises(InvalidInput):
        MerkleTree([b"short"])


@pytest.mark.parametrize("page", [2, 4, 8])
def test_a_tree_whose_pages_are_elsewhere_proves_the_same(page: int) -> None:
    whole, stored = MerkleTree(), dict[int, bytes]()
    paged = MerkleTree(page=page, fetch=stored.__getitem__)
    for number in range(90):
        leaf = leaf_hash(b"%d" % number)
        whole.append(leaf)
        paged.append(leaf)
        if number % 11 == 7:
            complete = paged.size // page
            for index in range(paged.given_up, complete):
                stored[index] = paged.page(index)
                assert len(stored[index]) == page_length(page)
            paged.give_up(complete)
        if number % 23 == 21:
            lost = [whole.leaf(index) for index in range(paged.given_up * page, whole.size)]
            for tree in (whole, paged):
                tree.truncate(paged.given_up * page)
                for old in lost:
                    tree.append(old)
        rest = b"".join(whole.leaf(index) for index in range(paged.given_up * page, whole.size))
        again = MerkleTree.restored(page, stored.__getitem__, paged.tops(paged.given_up), rest)
        for tree in (paged, again):
            assert (tree.size, tree.root()) == (whole.size, whole.root())
            for size in range(1, whole.size + 1, 7):
                assert tree.root(size) == whole.root(size)
                assert tree.inclusion(size - 1) == whole.inclusion(size - 1)
                assert tree.inclusion(size // 2, size) == whole.inclusion(size // 2, size)
                assert tree.consistency(size) == whole.consistency(size)
                assert tree.leaf(size - 1) == whole.leaf(size - 1)


def test_what_was_given_up_is_not_cut() -> None:
    stored = dict[int, bytes]()
    tree = MerkleTree(map(leaf_hash, LEAVES), page=2, fetch=stored.__getitem__)
    stored[0] = tree.page(0)
    tree.give_up(1)
    for wrong in (lambda: tree.truncate(1), lambda: tree.page(0), lambda: MerkleTree(page=3, fetch=stored.__getitem__)):
        with pytest.raises(AssertionError):
            wrong()
