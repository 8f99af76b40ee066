"""A set of shares is made and opened, inside the TEE only (spec/protocol.md, 13.24.3 and 13.24.4)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from cloister.base.errors import CloisterError, InvalidInput, Tampered
from cloister.base.secret import KEY_LENGTH, SecretBytes
from cloister.crypto import hpke, sharing
from cloister.crypto.box import open_once, seal_once
from cloister.crypto.digest import Context, derive, same
from cloister.keyservice.root import Root, decode_root
from cloister.log.custody import CustodySet
from cloister.wire.custody import (
    SET_LENGTH,
    Code,
    CustodyRecord,
    Holder,
    bound_to,
    check_threshold,
    commitment_to,
    custodian_id,
)

_HINT = "Restore the store from another backup."


def make_record(root: Root, code: Code, *, custodians: Mapping[bytes, bytes], threshold: int) -> CustodyRecord:
    """A new set: a fresh recovery key, which is forgotten here.

    :param custodians: id to public key.
    :raises InvalidInput: ``custodian-threshold``, ``custodian-key-other``, ``key-malformed``, ``key-length``.
    :raises Unavailable: ``custodians-extra-missing``.
    """
    check_threshold(threshold, len(custodians))
    for named, public_key in custodians.items():
        if custodian_id(public_key) != named:
            raise InvalidInput("custodian-key-other", f"this is not the public key of custodian {named.hex()}")
    key, made, ids = SecretBytes(secrets.token_bytes(KEY_LENGTH)), secrets.token_bytes(SET_LENGTH), sorted(custodians)
    shares = sharing.split(key, threshold, len(ids))
    commitments = [commitment_to(root.id, made, number, share) for number, share in enumerate(shares, 1)]
    pairs = list(zip(ids, commitments, strict=True))
    bound = bound_to(root.id, made, threshold=threshold, holders=pairs, generation=root.generation, code=code)
    holders = tuple(
        Holder(each, commitment, hpke.seal(custodians[each], share.reveal(), Context.CUSTODY_SHARE, bound, each))
        for each, commitment, share in zip(ids, commitments, shares, strict=True)
    )
    box = seal_once(derive(Context.CUSTODY_RECORD, key.reveal(), bound), root.encode().reveal(), bound)
    return CustodyRecord(root.id, made, threshold, holders, root.generation, code, box)


def entry_of(record: CustodyRecord) -> CustodySet:
    """What the log says of it."""
    ids = tuple(holder.custodian for holder in record.holders)
    return CustodySet(record.set, record.threshold, ids, record.digest)


def nobody() -> CustodySet:
    """What the log says when there are custodians no more."""
    return CustodySet(secrets.token_bytes(SET_LENGTH), 0, (), b"")


def open_record(record: CustodyRecord, shares: Mapping[bytes, SecretBytes]) -> Root:
    """The root, from shares by custodian.

    :param shares: each compared with its commitment before; as many as the threshold.
    :raises Tampered: ``recovery-record``: it was changed; ``recovery-other``: it holds another KeyService's root.
    :raises Unavailable: ``custodians-extra-missing``.
    """
    if len(shares) != record.threshold:
        msg = "exactly as many shares as the threshold says"
        raise AssertionError(msg)
    key = sharing.combine({record.number(custodian): share for custodian, share in shares.items()})
    box_key = derive(Context.CUSTODY_RECORD, key.reveal(), record.bound)
    try:
        root = decode_root(SecretBytes(open_once(box_key, record.box, record.bound, what="the recovery record")))
    except CloisterError as error:
        raise Tampered(
            "recovery-record", "the shares are good, but what they should open was changed", hint=_HINT
        ) from error
    if not same(root.id, record.keyservice) or root.generation != record.generation:
        raise Tampered("recovery-other", "the shares open the root of another KeyService", hint=_HINT)
    return root
