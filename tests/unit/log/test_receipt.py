"""A receipt convinces its holder of exactly his own entry, under the KeyService's key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.base.errors import CloisterError, InvalidInput, Tampered
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.log.entry import (
    STATEMENT,
    BundleRecord,
    Entry,
    Genesis,
    HandOverRecord,
    ReleaseRecord,
    ServiceKeyEpoch,
    sealed_release_parties,
)
from cloister.log.merkle import MerkleTree
from cloister.log.receipt import Receipt, check_statement_receipt, verify_receipt
from cloister.wire import cbor
from cloister.wire.calls import LogHead
from cloister.wire.log_keys import LogKeys

KEY = SigningKey.from_seed(SecretBytes(bytes(32)))
ENTRIES = [Entry("statement", 1000 + i, bytes([i]) * 32, b"statement %d" % i) for i in range(5)]
TREE = MerkleTree(entry.leaf() for entry in ENTRIES)
HEAD = LogHead(5, TREE.root(), 1004)
RECEIPT = Receipt(LogKeys(KEY.public_key).keyservice, 3, ENTRIES[3].leaf(), HEAD, TREE.inclusion(3))


def acknowledgement(**changed: object) -> dict[str, object]:
    whole: dict[str, object] = {
        "sequence": 9,
        "entry": 3,
        "time": 1003,
        "salt": bytes([3]) * 32,
        "head": HEAD.fields(),
        "pending": 0,
        "inclusion": list(TREE.inclusion(3)),
        "receipt": RECEIPT.sign(KEY),
    }
    return whole | changed


def test_a_receipt_verifies() -> None:
    assert verify_receipt(RECEIPT.sign(KEY), LogKeys(KEY.public_key)) == RECEIPT
    assert check_statement_receipt(acknowledgement(), b"statement 3", LogKeys(KEY.public_key)) == RECEIPT


def test_another_key_is_refused() -> None:
    with pytest.raises(Tampered) as caught:
        verify_receipt(RECEIPT.sign(SigningKey.generate()), LogKeys(KEY.public_key))
    assert caught.value.code == "signature-invalid"


@pytest.mark.parametrize(
    "wrong",
    [
        replace(RECEIPT, index=2),
        replace(RECEIPT, leaf=ENTRIES[2].leaf()),
        replace(RECEIPT, head=LogHead(4, HEAD.root, 0)),
        replace(RECEIPT, inclusion=RECEIPT.inclusion[:-1]),
        replace(RECEIPT, inclusion=(b"",)),
    ],
)
def test_a_signed_receipt_whose_proof_fails_is_refused(wrong: Receipt) -> None:
    with pytest.raises(Tampered) as caught:
        verify_receipt(wrong.sign(KEY), LogKeys(KEY.public_key))
    assert caught.value.code == "log-inclusion"


@pytest.mark.parametrize("changed", [{"time": 1}, {"salt": bytes(32)}, {"entry": 2}, {"receipt": b"x"}, {"more": 1}])
def test_an_acknowledgement_of_something_else_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(CloisterError):
        check_statement_receipt(acknowledgement(**changed), b"statement 3", LogKeys(KEY.public_key))


def test_an_acknowledgement_of_another_statement_is_refused() -> None:
    with pytest.raises(Tampered):
        check_statement_receipt(acknowledgement(), b"statement 4", LogKeys(KEY.public_key))


def test_records_round_trip() -> None:
    model = ModelId(b"o" * 32, "m")
    release = ReleaseRecord(
        user=b"u" * 32,
        model=model,
        manifest_digest=b"m" * 32,
        version=2,
        mode="request-key",
        key_id=b"k" * 32,
        tee="sgx",
        measurements={"mrenclave": b"e" * 32},
        configuration_digest=b"c" * 32,
        owner_policy=b"p" * 32,
        owner_rule="a",
        user_policy=b"q" * 32,
        user_rule="b",
        lease_s=60,
        lease_requests=5,
    )
    assert ReleaseRecord.decode(release.encode()) == release
    assert sealed_release_parties(release.encode()) == (release.user, model.owner)
    for manifest in (None, b"m" * 32):
        epoch = ServiceKeyEpoch(model, manifest, b"p" * 32, 1, b"k" * 1216, 5, 6)
        assert ServiceKeyEpoch.decode(epoch.encode()) == epoch
    named = BundleRecord(3, b"d" * 32, b"a signed bundle")
    assert BundleRecord.decode(named.encode()) == named
    given = HandOverRecord("sgx", {"mrenclave": b"m" * 32, "mrsigner": b"s" * 32}, b"c" * 32, b"d" * 32, 3)
    assert HandOverRecord.decode(given.encode()) == given
    for measurements in ({1: b"m"}, {"mrenclave": "m"}):
        with pytest.raises(InvalidInput, match="field-type"):
            HandOverRecord.decode(replace(given, measurements=measurements).encode())  # type: ignore[arg-type]
    genesis = Genesis(b"k" * 32, b"l" * 32, b"\xa0")
    assert Genesis.decode(genesis.encode()) == genesis
    assert Entry.decode(ENTRIES[1].encode()) == ENTRIES[1]


def test_salts_hide_equal_entries() -> None:
    assert replace(ENTRIES[0], salt=b"x" * 32).leaf() != ENTRIES[0].leaf()


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", cbor.encode([]), cbor.encode({"user": b"u" * 32}), cbor.encode({"user": b"u", "model": "a" * 65})]
    + [cbor.encode({"user": b"u" * 32, "model": model}) for model in (1, "a", "A" * 64)],
)
def test_what_is_no_release_is_refused_from_the_store_too(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        sealed_release_parties(body)


def test_an_entry_from_the_store_is_read_as_any_other() -> None:
    entry = Entry(STATEMENT, 5, b"s" * 32, b"body")
    assert Entry.decode(entry.encode(), sealed=True) == entry
    for data in (b"", b"\xff", cbor.encode({"kind": "other"}), entry.encode()[:-1]):
        with pytest.raises(InvalidInput):
            Entry.decode(data, sealed=True)
