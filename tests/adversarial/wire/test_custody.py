"""S2, S8, S9: a recovery record and the answers of custodians, changed and confused in every way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered
from cloister.base.secret import SecretBytes
from cloister.crypto import hpke
from cloister.crypto.digest import Context
from cloister.crypto.hpke import HpkePrivateKey
from cloister.keyservice.custody.sets import make_record, open_record
from cloister.keyservice.root import root_of
from cloister.log.custody import CustodySet, Recovery
from cloister.wire import cbor
from cloister.wire.calls import WireEvidence
from cloister.wire.custody import Code, CustodyRecord, custodian_id, open_share
from cloister.wire.recovery import Answer, Offer, open_answer, seal_answer

ROOT = root_of(SecretBytes(b"r" * 32))
KEYS = [HpkePrivateKey.generate() for _ in range(3)]
IDS = [custodian_id(key.public_key) for key in KEYS]
CODE = Code("insecure-simulation", b"m" * 48, b"c" * 32)
KS = ROOT.id


def made(threshold: int = 2) -> CustodyRecord:
    custodians = {custodian_id(key.public_key): key.public_key for key in KEYS}
    return make_record(ROOT, CODE, custodians=custodians, threshold=threshold)


RECORD = made()
SESSION = HpkePrivateKey.generate()
OFFER = Offer(RECORD, SESSION.public_key, b"configuration", b"b" * 32, WireEvidence("insecure-simulation", b"e", {}))


def refused(family: type[CloisterError], code: str, attempt: Callable[[], object]) -> None:
    with pytest.raises(family) as caught:
        attempt()
    assert caught.value.code == code


def test_s2_any_k_custodians_open_it_and_it_is_read_as_written() -> None:
    record = CustodyRecord.decode(RECORD.encoded)
    assert record == RECORD
    assert Offer.decode(OFFER.encode()) == OFFER
    for pair in combinations(KEYS, 2):
        assert (
            open_record(record, {custodian_id(k.public_key): open_share(record, k) for k in pair}).secret == ROOT.secret
        )


def test_s2_neither_the_root_nor_a_share_stands_in_it_in_the_clear() -> None:
    shares = [open_share(RECORD, key).reveal() for key in KEYS]
    for secret in (
        ROOT.encode().reveal(),
        ROOT.secret.reveal(),
        *shares,
        *(share[:16] for share in shares),
        *(share[16:] for share in shares),
    ):
        assert secret not in RECORD.encoded
        assert secret not in seal_answer(OFFER, IDS[0], SecretBytes(shares[0])).encode()


def test_s2_every_set_has_a_recovery_key_of_its_own() -> None:
    """Old shares open nothing that was sealed later, whoever holds them."""
    other = made()
    assert (other.set, other.box) != (RECORD.set, RECORD.box)
    old = {id_: open_share(RECORD, key) for id_, key in zip(IDS, KEYS, strict=True)}
    mixed = {IDS[0]: old[IDS[0]], IDS[1]: open_share(other, KEYS[1])}
    for shares in (dict(list(old.items())[:2]), mixed):
        refused(Tampered, "recovery-record", lambda shares=shares: open_record(other, shares))


CHANGES: dict[str, Callable[[CustodyRecord], CustodyRecord]] = {
    "another KeyService": lambda r: replace(r, keyservice=b"o" * 32),
    "another set": lambda r: replace(r, set=b"s" * 16),
    "a lower threshold": lambda r: replace(r, threshold=2),
    "another generation of the root": lambda r: replace(r, generation=1),
    "other code": lambda r: replace(r, code=replace(CODE, measurement=b"n" * 48)),
    "another configuration": lambda r: replace(r, code=replace(CODE, configuration=b"n" * 32)),
    "another TEE": lambda r: replace(r, code=replace(CODE, tee="sgx")),
    "a custodian left out": lambda r: replace(r, holders=r.holders[:2], threshold=2),
    "another commitment": lambda r: replace(r, holders=(*r.holders[:2], replace(r.holders[2], commitment=bytes(32)))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_s9_a_share_opens_only_within_the_record_it_was_made_for(change: str) -> None:
    """So a custodian gives nothing away for a record that somebody changed, whatever that one says."""
    record = made(threshold=3)
    changed = CustodyRecord.decode(CHANGES[change](record).encoded)
    for key in KEYS:
        with pytest.raises((Tampered, Refused)) as caught:
            open_share(changed, key)
        assert caught.value.code in ("hpke-open", "custodian-unknown")
    shares = {id_: open_share(record, key) for id_, key in zip(IDS, KEYS, strict=True)}
    held = {holder.custodian for holder in changed.holders}
    kept = {id_: share for id_, share in shares.items() if id_ in held}
    if changed.threshold == len(kept):
        refused(Tampered, "recovery-record", lambda: open_record(changed, kept))


def test_s9_shares_of_two_custodians_do_not_change_places() -> None:
    first, second, third = RECORD.holders
    swapped = replace(RECORD, holders=(replace(first, share=second.share), replace(second, share=first.share), third))
    by_id = {custodian_id(key.public_key): key for key in KEYS}
    for holder in swapped.holders[:2]:
        refused(Tampered, "hpke-open", lambda holder=holder: open_share(swapped, by_id[holder.custodian]))
    assert open_share(swapped, by_id[third.custodian])


def test_s8_a_share_that_was_made_up_for_a_custodian_is_told_by_its_commitment() -> None:
    """Anybody can seal to a public key: it is not the share that was committed to."""
    number = RECORD.number(IDS[0]) - 1
    fake = hpke.seal(KEYS[0].public_key, b"f" * 32, Context.CUSTODY_SHARE, RECORD.bound, IDS[0])
    holders = list(RECORD.holders)
    holders[number] = replace(holders[number], share=fake)
    refused(Tampered, "custody-share", lambda: open_share(replace(RECORD, holders=tuple(holders)), KEYS[0]))


def test_s9_an_answer_is_for_one_enclave_one_record_and_one_custodian() -> None:
    share = open_share(RECORD, KEYS[0])
    answer = Answer.decode(seal_answer(OFFER, IDS[0], share).encode())
    bound = OFFER.report_data()
    assert open_answer(answer, RECORD, bound, SESSION) == share
    elsewhere = HpkePrivateKey.generate()
    refused(Tampered, "hpke-open", lambda: open_answer(answer, RECORD, bound, elsewhere))
    for other in (
        replace(OFFER, configuration=b"another"),
        replace(OFFER, bundle_digest=bytes(32)),
        replace(OFFER, record=made()),
        replace(OFFER, session_key=elsewhere.public_key),
    ):
        refused(Tampered, "hpke-open", lambda other=other: open_answer(answer, RECORD, other.report_data(), SESSION))
    refused(Tampered, "hpke-open", lambda: open_answer(replace(answer, custodian=IDS[1]), RECORD, bound, SESSION))
    refused(
        Refused, "custodian-unknown", lambda: open_answer(replace(answer, custodian=bytes(32)), RECORD, bound, SESSION)
    )


def test_s8_a_malicious_custodian_is_told_by_name_before_anything_is_combined() -> None:
    bound = OFFER.report_data()
    other = open_share(RECORD, KEYS[1])
    for share in (SecretBytes(b"f" * 32), other, open_share(made(), KEYS[0])):
        answer = seal_answer(OFFER, IDS[0], share)
        with pytest.raises(Tampered, match=IDS[0].hex()) as caught:
            open_answer(answer, RECORD, bound, SESSION)
        assert caught.value.code == "custody-share"


@pytest.mark.parametrize("parsed", ["record", "offer", "answer", "entry", "recovery"])
def test_s8_every_cut_and_every_changed_byte_is_refused_or_changes_nothing_that_is_sealed(parsed: str) -> None:
    answer = seal_answer(OFFER, IDS[0], open_share(RECORD, KEYS[0]))
    data, decode = {
        "record": (RECORD.encoded, CustodyRecord.decode),
        "offer": (OFFER.encode(), Offer.decode),
        "answer": (answer.encode(), Answer.decode),
        "entry": (CustodySet(RECORD.set, 2, tuple(sorted(IDS)), RECORD.digest).encode(), CustodySet.decode),
        "recovery": (
            Recovery(RECORD.set, tuple(sorted(IDS[:2])), "sgx", {"m": b"1"}, bytes(32)).encode(),
            Recovery.decode,
        ),
    }[parsed]
    reader: Callable[[bytes], Any] = decode
    for length in range(0, len(data), 7):
        with pytest.raises(InvalidInput):
            reader(data[:length])
    with pytest.raises(InvalidInput):
        reader(data + b"\x00")
    good = reader(data)
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 0x01
        try:
            assert reader(bytes(changed)) != good
        except InvalidInput:
            continue


def test_s8_a_record_of_impossible_numbers_is_refused() -> None:
    holders = RECORD.holders
    for bad in (
        replace(RECORD, threshold=1),
        replace(RECORD, threshold=4),
        replace(RECORD, threshold=0),
        replace(RECORD, holders=()),
        replace(RECORD, holders=(holders[1], holders[0], holders[2])),
        replace(RECORD, holders=(holders[0], holders[0], holders[2])),
        replace(RECORD, holders=tuple(replace(holders[0], custodian=bytes([n]) * 32) for n in range(17))),
        replace(RECORD, box=bytes(1 << 16)),
    ):
        refused_by = pytest.raises(InvalidInput)
        with refused_by:
            CustodyRecord.decode(bad.encoded)
    old = cbor.decode(RECORD.encoded, limit=1 << 20, what="it") | {"format": 2}
    refused(InvalidInput, "recovery-record-version", lambda: CustodyRecord.decode(cbor.encode(old)))


def test_s8_a_set_is_made_for_those_it_names_and_of_two_at_least() -> None:
    custodians = {custodian_id(key.public_key): key.public_key for key in KEYS}
    for threshold, chosen in ((1, 3), (0, 3), (4, 3), (3, 2), (2, 1), (0, 0), (1, 2)):
        some = dict(list(custodians.items())[:chosen])
        refused(
            InvalidInput,
            "custodian-threshold",
            lambda some=some, threshold=threshold: make_record(ROOT, CODE, custodians=some, threshold=threshold),
        )
    alone = dict(list(custodians.items())[:1])
    record = make_record(ROOT, CODE, custodians=alone, threshold=1)
    by_id = {custodian_id(key.public_key): key for key in KEYS}
    assert open_record(record, {id_: open_share(record, by_id[id_]) for id_ in alone}).secret == ROOT.secret
    swapped = {IDS[0]: KEYS[1].public_key, IDS[1]: KEYS[0].public_key}
    refused(
        InvalidInput,
        "custodian-key-other",
        lambda: make_record(ROOT, CODE, custodians=swapped, threshold=2),
    )
