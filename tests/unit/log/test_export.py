"""Exported logs: what verifies, and what an auditor notices (spec/protocol.md, 13.13)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.base.errors import CloisterError, InvalidInput, Tampered
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.log.entry import STATEMENT, Entry
from cloister.log.export import ExportHeader, OpenedEntry, verify_export, write_export
from cloister.log.merkle import HASH_LENGTH, MerkleTree
from cloister.log.receipt import Receipt
from cloister.wire.calls import LogHead, keyservice_id
from cloister.wire.checkpoint import Checkpoint
from cloister.wire.log_keys import LogKeys

LOG = SigningKey.from_seed(SecretBytes(b"l" * 32))
WITNESSES = [SigningKey.from_seed(SecretBytes(bytes([n]) * 32)) for n in range(3)]
KS = keyservice_id(LOG.public_key)


def entries(count: int, other_from: int | None = None) -> list[Entry]:
    fork = b"x" if other_from is not None else b""
    return [
        Entry(STATEMENT, 1000 + n, bytes([n % 256]) * 32, b"%d" % n + (fork if n >= (other_from or 0) else b""))
        for n in range(count)
    ]


def tree_of(log: list[Entry]) -> MerkleTree:
    return MerkleTree(entry.leaf() for entry in log)


def header_of(log: list[Entry], key: SigningKey = LOG) -> ExportHeader:
    tree = tree_of(log)
    checkpoint = Checkpoint(KS, tree.size, tree.root())
    signed = tuple(checkpoint.cosign(witness, 2000) for witness in WITNESSES)
    head = LogHead(tree.size, tree.root(), 1500, tuple(sorted(signed, key=lambda item: item.key)))
    return ExportHeader(KS, LogKeys(LOG.public_key), head, checkpoint.sign(key))


def exported(
    log: list[Entry], *, leaves: bool = True, shown: tuple[int, ...] = (), header: ExportHeader | None = None
) -> bytes:
    tree = tree_of(log)
    hashes = b"".join(tree.leaf(n) for n in range(tree.size)) if leaves else b""
    opened = [OpenedEntry(n, log[n].encode(), () if leaves else tree.inclusion(n)) for n in shown]
    return b"".join(write_export(header or header_of(log), hashes, opened))


KEYS = [witness.public_key for witness in WITNESSES]


@pytest.mark.parametrize("size", [1, 2, 7, 1024, 1025, 2500])
@pytest.mark.parametrize("leaves", [True, False])
def test_what_was_exported_verifies(size: int, leaves: bool) -> None:
    log = entries(size)
    shown = tuple(sorted({0, size // 2, size - 1}))
    found = verify_export(exported(log, leaves=leaves, shown=shown), witnesses=KEYS, threshold=2)
    assert [(index, entry) for index, entry in found.entries] == [(n, log[n]) for n in shown]
    assert (found.tree is not None) is leaves
    assert len(found.cosignatures) == 3


def code(data: bytes, **how: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        verify_export(data, **how)
    return caught.value.code


def test_removed_reordered_and_swapped_leaves_are_noticed() -> None:
    log = entries(9)
    header = header_of(log)
    for changed in (log[:-1], [*log[:3], *log[4:]], [log[1], log[0], *log[2:]], [*log, log[0]]):
        assert code(exported(changed, header=header)) == "log-root"


def test_an_entry_that_is_another_one_is_noticed() -> None:
    log, other = entries(9), entries(9, other_from=3)
    header = header_of(log)
    tree = tree_of(log)
    hashes = b"".join(tree.leaf(n) for n in range(9))
    for item, leaves in (
        (OpenedEntry(4, other[4].encode()), hashes),
        (OpenedEntry(4, log[5].encode()), hashes),
        (OpenedEntry(4, other[4].encode(), tree.inclusion(4)), b""),
        (OpenedEntry(5, log[4].encode(), tree.inclusion(4)), b""),
        (OpenedEntry(9, log[4].encode(), tree.inclusion(4)), b""),
        (OpenedEntry(4, log[4].encode()), b""),
    ):
        assert code(b"".join(write_export(header, leaves, [item]))) == "log-inclusion"


def test_time_that_goes_back_is_noticed() -> None:
    log = entries(5)
    log[3] = replace(log[3], time=1)
    assert code(exported(log, shown=(2, 3))) == "log-order"


def test_heads_must_be_signed_by_the_log_and_by_witnesses() -> None:
    log = entries(4)
    header = header_of(log)
    assert code(exported(log, header=header_of(log, WITNESSES[0]))) == "signature-invalid"
    assert code(exported(log, header=replace(header, keyservice=bytes(32)))) == "keyservice-id"
    other = replace(header.head, root=bytes(32))
    assert code(exported(log, header=replace(header, head=other))) == "log-head"
    bare = replace(header, head=replace(header.head, cosignatures=()))
    assert code(exported(log, header=bare), witnesses=KEYS, threshold=2) == "cosignatures-missing"
    assert verify_export(exported(log, header=bare)).cosignatures == ()
    late = tuple(replace(item, time=item.time + 1) for item in header.head.cosignatures)
    forged = replace(header, head=replace(header.head, cosignatures=late))
    assert code(exported(log, header=forged), witnesses=KEYS, threshold=2) == "cosignature-invalid"


def test_histories_are_compared() -> None:
    early, late = verify_export(exported(entries(5))), verify_export(exported(entries(12)))
    bare = verify_export(exported(entries(5), leaves=False))
    late.check_same_history(early)
    early.check_same_history(late)
    late.check_same_history(bare)
    late.check_same_history(late)
    fork = verify_export(exported(entries(12, other_from=3)))
    for one, other in ((fork, early), (early, fork), (fork, late)):
        with pytest.raises(Tampered) as caught:
            one.check_same_history(other)
        assert caught.value.code == "log-fork"
    with pytest.raises(InvalidInput) as unknown:
        verify_export(exported(entries(12), leaves=False)).check_same_history(early)
    assert unknown.value.code == "export-without-leaves"


def test_receipts_hold_the_log_to_its_word() -> None:
    log = entries(8)
    tree = tree_of(log)
    head = LogHead(6, tree.root(6), 1100)
    receipt = Receipt(KS, 4, log[4].leaf(), head, tree.inclusion(4, 6))
    verify_export(exported(entries(12))).check_receipt(receipt)
    for without, expected in (
        (entries(12, other_from=4), "log-inclusion"),
        (entries(12, other_from=5), "log-fork"),
        (entries(4), "log-inclusion"),
        (entries(5), "log-rollback"),
    ):
        with pytest.raises(Tampered) as caught:
            verify_export(exported(without)).check_receipt(receipt)
        assert caught.value.code == expected


GOOD = exported(entries(6), shown=(1, 4))


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_nothing_that_was_signed(position: int, value: int) -> None:
    changed = GOOD[:position] + bytes([value]) + GOOD[position + 1 :]
    try:
        found = verify_export(changed, witnesses=KEYS, threshold=3)
    except CloisterError:
        return
    assert found.entries == verify_export(GOOD).entries
    assert found.header.head.root == header_of(entries(6)).head.root


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(CloisterError):
        verify_export(data)


@pytest.mark.parametrize("cut", [1, 3, 50, 300])
def test_a_file_that_is_cut_short_is_refused_or_lacks_whole_entries(cut: int) -> None:
    assert code(GOOD[:-cut]) in ("export-malformed", "log-root")


def test_leaves_out_of_order_are_refused() -> None:
    log = entries(1500)
    tree = tree_of(log)
    hashes = b"".join(tree.leaf(n) for n in range(1500))
    pieces = list(write_export(header_of(log), hashes, ()))
    assert len(hashes) == 1500 * HASH_LENGTH
    assert code(b"".join([pieces[0], pieces[2], pieces[1]])) == "export-malformed"
