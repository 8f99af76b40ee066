"""A set of shares is made and opened, inside the TEE only (spec/protocol.md, 13.24.3 and 13.24.4)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from cloister.base.errors import InvalidInput, Tampered
from cloister.base.secret import KEY_LENGTH, SecretBytes
from cloister.crypto import hpke, sharing
from cloister.crypto.box import open_once, seal_once
from cloister.crypto.digest import Context, derive
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


def make_record(
    root: SecretBytes, keyservice: bytes, code: Code, *, custodians: Mapping[bytes, bytes], threshold: int
) -> CustodyRecord:
    """A new set: a fresh recovery key, which is forgotten here; needs the extra ``custodians``.

    :param root: encoded. :param custodians: id to public key.
    :raises InvalidInput: ``custodian-threshold``, ``custodian-key-other``, ``key-malformed``, ``key-length``.
    :raises Unavailable: ``custodians-extra-missing``.
    """
    check_threshold(threshold, len(custodians))
    for named, public_key in custodians.items():
        if custodian_id(public_key) != named:
            raise InvalidInput("custodian-key-other", f"this is not the public key of custodian {named.hex()}")
    key, made, ids = SecretBytes(secrets.token_bytes(KEY_LENGTH)), secrets.token_bytes(SET_LENGTH), sorted(custodians)
    shares = sharing.split(key, threshold, len(ids))
    commitments = [commitment_to(keyservice, made, number, share) for number, share in enumerate(shares, 1)]
    bound = bound_to(keyservice, made, threshold, list(zip(ids, commitments, strict=True)), code)
    holders = tuple(
        Holder(each, commitment, hpke.seal(custodians[each], share.reveal(), Context.CUSTODY_SHARE, bound, each))
        for each, commitment, share in zip(ids, commitments, shares, strict=True)
    )
    box = seal_once(derive(Context.CUSTODY_RECORD, key.reveal(), bound), root.reveal(), bound)
    return CustodyRecord(keyservice, made, threshold, holders, code, box)


def open_record(record: CustodyRecord, shares: Mapping[bytes, SecretBytes]) -> SecretBytes:
    """The encoded root, from shares by custodian; needs the extra ``custodians``.

    :param shares: as :func:`check_share` accepted them, as many as the threshold.
    :raises Tampered: ``recovery-record``: it was changed. :raises Unavailable: ``custodians-extra-missing``.
    """
    if len(shares) != record.threshold:
        msg = "exactly as many shares as the threshold says"
        raise AssertionError(msg)
    key = sharing.combine({record.number(custodian): share for custodian, share in shares.items()})
    box_key = derive(Context.CUSTODY_RECORD, key.reveal(), record.bound)
    try:
        return SecretBytes(open_once(box_key, record.box, record.bound, what="the recovery record"))
    except Tampered as error:
        raise Tampered(
            "recovery-record",
            "the shares are good, but what they should open was changed",
            hint="Restore the store, or its recovery record, from another backup.",
        ) from error
