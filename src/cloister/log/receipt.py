"""Receipts: the KeyService's signed word that an entry is in its log (spec/protocol.md, clause 13.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_RECEIPT
from cloister.crypto.digest import Context, same
from cloister.crypto.sign import SigningKey
from cloister.log.entry import SALT_LENGTH, STATEMENT, Entry
from cloister.log.merkle import HASH_LENGTH, MAX_PROOF, verify_inclusion
from cloister.wire import cbor, cose
from cloister.wire.calls import LogHead
from cloister.wire.cbor import Fields
from cloister.wire.log_keys import LogKeys

_WHAT: Final = "the receipt"


@dataclass(frozen=True, slots=True)
class Receipt:
    """Entry ``index`` with this leaf is in the log whose head this is.

    :param inclusion: proof of RFC 9162 from the leaf to ``head.root``.
    """

    keyservice: bytes
    index: int
    leaf: bytes
    head: LogHead
    inclusion: tuple[bytes, ...]

    def sign(self, log_key: SigningKey) -> bytes:
        """COSE_Sign1 under ``Context.KEYSERVICE_RECEIPT``."""
        payload = {
            "ks": self.keyservice,
            "entry": self.index,
            "leaf": self.leaf,
            "head": self.head.fields(),
            "inclusion": list(self.inclusion),
        }
        return cose.sign1(log_key, Context.KEYSERVICE_RECEIPT, cbor.encode(payload))


def verify_receipt(data: bytes, log_keys: LogKeys) -> Receipt:
    """The receipt, signed by the log key that signs for its head, its inclusion proof checked.

    :param log_keys: of the KeyService: a retired one signs for the heads of its time and for no later one.
    :raises InvalidInput: anything malformed; ``receipt-other``: of another KeyService.
    :raises Tampered: ``signature-invalid``, ``log-inclusion``; ``log-key-retired``: signed by another key of its.
    """
    signer, payload = log_keys.verify1(data, Context.KEYSERVICE_RECEIPT, limit=MAX_RECEIPT, what=_WHAT)
    receipt = _read(payload)
    if not same(receipt.keyservice, log_keys.keyservice):
        raise InvalidInput("receipt-other", "the receipt is of another KeyService")
    log_keys.require_signer(signer, receipt.head.size)
    verify_inclusion(receipt.leaf, receipt.index, receipt.head.size, receipt.inclusion, receipt.head.root)
    return receipt


def _read(payload: bytes) -> Receipt:
    fields = Fields(cbor.decode(payload, limit=MAX_RECEIPT, what=_WHAT), _WHAT)
    receipt = Receipt(
        keyservice=fields.blob("ks", exactly=32),
        index=fields.integer("entry"),
        leaf=fields.blob("leaf", exactly=HASH_LENGTH),
        head=LogHead.read(fields.mapping("head")),
        inclusion=read_proof(fields.items("inclusion", limit=MAX_PROOF)),
    )
    fields.done()
    return receipt


def read_proof(items: list[Any]) -> tuple[bytes, ...]:
    """Hashes of a proof as they travel; what is no hash becomes one that fits nowhere, so verification refuses it."""
    return tuple(item if type(item) is bytes else b"" for item in items)


def check_statement_receipt(result: Mapping[str, Any], statement: bytes, log_keys: LogKeys) -> Receipt:
    """What a caller does with the reply to a statement (clause 13.4): his very statement is the entry in the log.

    :param result: the opened reply: ``sequence, entry, time, salt, head, inclusion, pending, receipt``.
    :param statement: the COSE_Sign1 as he sent it.
    :raises InvalidInput: anything malformed; ``receipt-other``.
    :raises Tampered: ``signature-invalid``, ``log-inclusion``, ``log-key-retired``.
    """
    fields = Fields(dict(result), "the acknowledgement")
    entry = Entry(STATEMENT, fields.integer("time"), fields.blob("salt", exactly=SALT_LENGTH), statement)
    head = LogHead.read(fields.mapping("head"))
    index, proof = fields.integer("entry"), read_proof(fields.items("inclusion", limit=MAX_PROOF))
    fields.integer("sequence", low=1)
    fields.integer("pending")
    receipt = verify_receipt(fields.blob("receipt", limit=MAX_RECEIPT), log_keys)
    fields.done()
    log_keys.require_current(receipt.head.size)
    verify_inclusion(entry.leaf(), index, head.size, proof, head.root)
    verify_inclusion(entry.leaf(), receipt.index, receipt.head.size, receipt.inclusion, receipt.head.root)
    return receipt
