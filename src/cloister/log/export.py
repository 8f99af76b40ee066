"""Exported logs, checked without the KeyService (spec/protocol.md, clause 13.13). Pure.

A file is records, each ``u32 length || CBOR``: a header, leaf hashes (all or none), opened entries with their proofs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from cloister.base.errors import InvalidInput, Tampered
from cloister.base.limits import MAX_CHECKPOINT, MAX_ENTRY, MAX_LEAVES, MAX_LOG_KEYS, MAX_WITNESSES
from cloister.crypto.digest import same
from cloister.log.entry import ROTATION, Entry, entry_leaf
from cloister.log.merkle import HASH_LENGTH, MAX_PROOF, MerkleTree, verify_inclusion
from cloister.log.receipt import Receipt, read_proof
from cloister.log.witness import valid_cosignatures
from cloister.wire import cbor
from cloister.wire.calls import LogHead
from cloister.wire.cbor import Fields
from cloister.wire.checkpoint import Checkpoint, Cosignature, SignedNote
from cloister.wire.log_keys import LogKeys

FORMAT: Final = "cloister-log-1"
MAX_RECORD: Final = 2 * MAX_ENTRY
_WHAT: Final = "the exported log"


@dataclass(frozen=True, slots=True)
class ExportHeader:
    """Whose log, and the head to which everything leads.

    :param log_keys: from the first, whose KeyService it is, to the one that signed the head.
    :param checkpoint: over the head, signed by the present log key.
    """

    keyservice: bytes
    log_keys: LogKeys
    head: LogHead
    checkpoint: bytes

    def fields(self) -> dict[str, object]:
        """For CBOR."""
        return {
            "format": FORMAT,
            "ks": self.keyservice,
            "head": self.head.fields(),
            "checkpoint": self.checkpoint,
        } | self.log_keys.fields()

    @staticmethod
    def read(value: object) -> ExportHeader:
        """Checked in itself: the id is that of the first key, and the present one signed the head.

        :raises InvalidInput: ``export-malformed``, ``keyservice-id``, ``log-keys-malformed`` and the codes of CBOR.
        :raises Tampered: ``signature-invalid``, ``log-head``, ``log-key-retired``, ``log-keys-broken``.
        """
        fields = Fields(value, _WHAT)
        if fields.text("format", limit=32) != FORMAT:
            raise _malformed("is of a format unknown to this version")
        keyservice = fields.blob("ks", exactly=32)
        header = ExportHeader(
            keyservice,
            LogKeys.take(fields, keyservice),
            LogHead.read(fields.mapping("head")),
            fields.blob("checkpoint", limit=MAX_CHECKPOINT),
        )
        fields.done()
        signed = SignedNote.parse(header.checkpoint).verify(header.log_keys.current)
        header.log_keys.require_current(header.head.size)
        if signed != Checkpoint(header.keyservice, header.head.size, header.head.root):
            raise Tampered("log-head", "the head of the exported log is not the one that its log key signed")
        return header


@dataclass(frozen=True, slots=True)
class OpenedEntry:
    """An entry, shown; in the log's head by ``inclusion``, which is empty where all leaves are there."""

    index: int
    encoded: bytes
    inclusion: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifiedExport:
    """A log of which everything that is there was checked; only :func:`verify_export` makes one.

    :param tree: of all leaves, or ``None`` where they were left out.
    :param entries: opened, by index.
    :param cosignatures: of the witnesses that were asked for.
    """

    header: ExportHeader
    tree: MerkleTree | None
    entries: tuple[tuple[int, Entry], ...]
    cosignatures: tuple[Cosignature, ...] = field(default=())

    def check_receipt(self, receipt: Receipt) -> None:
        """A receipt that somebody holds speaks of this history (clause 13.4).

        :raises InvalidInput: ``export-without-leaves``. :raises Tampered: ``log-inclusion``, ``log-fork``,
            ``log-rollback``.
        """
        tree = self._tree("a receipt")
        if receipt.keyservice != self.header.keyservice:
            raise InvalidInput("receipt-other", "the receipt is of another KeyService")
        if receipt.index >= tree.size or not same(tree.leaf(receipt.index), receipt.leaf):
            raise Tampered("log-inclusion", f"entry {receipt.index}, for which there is a receipt, is not in this log")
        self._check_head(receipt.head)

    def check_same_history(self, other: VerifiedExport) -> None:
        """Another export is of the same log; the larger one must have its leaves.

        :raises InvalidInput: ``export-without-leaves``, ``export-other``. :raises Tampered: ``log-fork``.
        """
        if other.header.keyservice != self.header.keyservice:
            raise InvalidInput("export-other", "the other export is of another KeyService's log")
        keys, others = self.header.log_keys, other.header.log_keys
        if not keys.continues(others) and not others.continues(keys):
            raise Tampered("log-fork", "the two exports name different log keys after the same one")
        if other.header.head.size > self.header.head.size:
            other.check_same_history(self)
        elif other.header.head != self.header.head:
            self._check_head(other.header.head)

    def _check_head(self, head: LogHead) -> None:
        tree = self._tree("an earlier head")
        if head.size > tree.size:
            raise Tampered("log-rollback", f"the log has {tree.size} entries here, and had {head.size} elsewhere")
        if not same(tree.root(head.size), head.root):
            raise Tampered("log-fork", f"the first {head.size} entries of this log are not those seen elsewhere")

    def _tree(self, what: str) -> MerkleTree:
        if self.tree is None:
            raise InvalidInput(
                "export-without-leaves", f"{what} is compared with all leaves", hint="Export with --leaves."
            )
        return self.tree


def write_export(header: ExportHeader, leaves: bytes, entries: Iterable[OpenedEntry]) -> Iterator[bytes]:
    """The file, in pieces.

    :param leaves: hashes one after the other: of all entries, or none.
    """
    yield _record(header.fields())
    step = MAX_LEAVES * HASH_LENGTH
    for start in range(0, len(leaves), step):
        yield _record({"first": start // HASH_LENGTH, "leaves": leaves[start : start + step]})
    for item in entries:
        yield _record({"index": item.index, "entry": item.encoded, "inclusion": list(item.inclusion)})


def verify_export(data: bytes, *, witnesses: Collection[bytes] = (), threshold: int = 0) -> VerifiedExport:
    """Check a whole file.

    :param witnesses: of whom ``threshold`` must have co-signed the head, at whatever time.
    :raises InvalidInput: ``export-malformed`` and the codes of CBOR, checkpoints and entries.
    :raises Tampered: ``signature-invalid``, ``log-head``, ``log-root``, ``log-inclusion``, ``log-order``,
        ``log-key-retired``, ``log-keys-broken``, ``log-fork``, ``cosignature-invalid``, ``cosignatures-missing``.
    """
    records = _records(data)
    header = ExportHeader.read(next(records, {}))
    leaves, opened = _read(records)
    tree = None
    if leaves or header.head.size == 0:
        tree = MerkleTree(leaves[at : at + HASH_LENGTH] for at in range(0, len(leaves), HASH_LENGTH))
        if tree.size != header.head.size or not same(tree.root(), header.head.root):
            raise Tampered("log-root", "the leaves do not make the root that the log signed")
        for certificate in header.log_keys.certificates:
            if not same(tree.root(certificate.size), certificate.root):
                raise Tampered("log-fork", "a log key was retired at another history than the one of these leaves")
    entries = _check_entries(opened, header.head, tree)
    _check_rotations(entries, header.log_keys)
    found = valid_cosignatures(header.keyservice, header.head, witnesses)
    if len(found) < threshold:
        raise Tampered(
            "cosignatures-missing", f"{len(found)} of our witnesses co-signed this head, and {threshold} must have"
        )
    return VerifiedExport(header, tree, entries, found)


def _read(records: Iterator[object]) -> tuple[bytes, list[OpenedEntry]]:
    leaves = bytearray()
    opened: list[OpenedEntry] = []
    for record in records:
        fields = Fields(record, _WHAT)
        if fields.has("leaves"):
            part = fields.blob("leaves", limit=MAX_LEAVES * HASH_LENGTH)
            if opened or not part or len(part) % HASH_LENGTH or fields.integer("first") * HASH_LENGTH != len(leaves):
                raise _malformed("has leaves that are not in order")
            leaves += part
        else:
            index, encoded = fields.integer("index"), fields.blob("entry", limit=MAX_ENTRY)
            if opened and index <= opened[-1].index:
                raise _malformed("has entries that are not in order")
            opened.append(OpenedEntry(index, encoded, read_proof(fields.items("inclusion", limit=MAX_PROOF))))
        fields.done()
    return bytes(leaves), opened


def _check_entries(opened: list[OpenedEntry], head: LogHead, tree: MerkleTree | None) -> tuple[tuple[int, Entry], ...]:
    entries: list[tuple[int, Entry]] = []
    for item in opened:
        leaf = entry_leaf(item.encoded)
        if tree is None or item.inclusion:
            verify_inclusion(leaf, item.index, head.size, item.inclusion, head.root)
        elif item.index >= tree.size or not same(tree.leaf(item.index), leaf):
            raise Tampered("log-inclusion", f"the entry shown as {item.index} is not the one in the log")
        entry = Entry.decode(item.encoded)
        if entries and entry.time < entries[-1][1].time:
            raise Tampered("log-order", f"entry {item.index} is of a time before entry {entries[-1][0]}")
        entries.append((item.index, entry))
    return tuple(entries)


def _check_rotations(entries: tuple[tuple[int, Entry], ...], log_keys: LogKeys) -> None:
    """What opened entries say of the log keys is what the header says."""
    named = {found.size: encoded for found, encoded in zip(log_keys.certificates, log_keys.encoded, strict=True)}
    for index, entry in entries:
        if (entry.body if entry.kind == ROTATION else None) != named.get(index):
            raise Tampered("log-fork", f"entry {index} and the head of the exported log name different log keys")


def _record(value: dict[str, object]) -> bytes:
    data = cbor.encode(value)
    return len(data).to_bytes(4, "big") + data


def _records(data: bytes) -> Iterator[object]:
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        position += 4
        if not 0 < length <= MAX_RECORD or position + length > len(data):
            raise _malformed("is cut short, or has a record that is too long")
        yield cbor.decode(data[position : position + length], limit=MAX_RECORD, what=_WHAT)
        position += length


def _malformed(what: str) -> InvalidInput:
    return InvalidInput("export-malformed", f"{_WHAT} {what}")


MAX_HEADER_RECORD: Final = MAX_CHECKPOINT + 128 * MAX_WITNESSES + MAX_LOG_KEYS + 1024
