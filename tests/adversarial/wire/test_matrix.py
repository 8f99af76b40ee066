"""S9, the whole matrix: what one key signs or seals for one purpose is refused for each other purpose.

The worst case: all parties share a single key, so that only the context strings stand between the purposes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cloister.attest.bundle import TrustBundle, open_bundle
from cloister.base.errors import CloisterError, Tampered
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.crypto import hpke
from cloister.crypto.digest import Context, derive, digest, report_data
from cloister.crypto.hpke import HpkePrivateKey
from cloister.crypto.sign import SigningKey
from cloister.log.entry import Entry
from cloister.log.merkle import MerkleTree
from cloister.log.receipt import Receipt, verify_receipt
from cloister.testing.people import simulation_policy
from cloister.wire import calls, cose
from cloister.wire.calls import Description, LogHead, WireEvidence
from cloister.wire.checkpoint import Checkpoint, SignedNote
from cloister.wire.log_keys import KeyCertificate, LogKeys
from cloister.wire.manifest import FileEntry, Manifest
from cloister.wire.provisioning import ServiceKeyEndorsement
from cloister.wire.statements import (
    DisableIdentity,
    Query,
    Statement,
    identity_id,
    sign_query,
    sign_statement,
    verify_query,
    verify_statement,
)

KEY = SigningKey.from_seed(SecretBytes(b"one key for everything, 32 bytes"))
HPKE = HpkePrivateKey.generate()
NOW = 1_800_000_000
KS = calls.keyservice_id(KEY.public_key)
ME = identity_id(KEY.public_key)
MODEL = ModelId(ME, "model")
ENTRY = Entry("statement", NOW, bytes(32), b"body")
TREE = MerkleTree([ENTRY.leaf()])
HEAD = LogHead(1, TREE.root(), NOW)
DESCRIPTION = Description(
    KS, b"e" * 16, HPKE.public_key, LogKeys(KEY.public_key), b"c", bytes(32), WireEvidence("simulation", b"b", {})
)


@dataclass(frozen=True)
class Kind:
    """An object that a key signs, and who reads it."""

    context: Context
    signed: bytes
    read: Callable[[bytes], Any]

    @property
    def payload(self) -> bytes:
        return cose.peek1(self.signed, limit=1 << 20, what="it")


KINDS: dict[str, Kind] = {
    "statement": Kind(
        Context.STATEMENT,
        sign_statement(Statement(KS, ME, ME, 1, NOW, 600, DisableIdentity()), KEY),
        lambda data: verify_statement(data, KEY.public_key),
    ),
    "query": Kind(
        Context.QUERY,
        sign_query(Query(KS, ME, bytes(16), NOW, 60, "whoami", {}), KEY),
        lambda data: verify_query(data, KEY.public_key),
    ),
    "trust bundle": Kind(
        Context.BUNDLE,
        TrustBundle(
            root=KEY.public_key,
            version=1,
            name="bundle",
            issued_at=NOW - 10,
            expires_at=NOW + 1000,
            keyservice=simulation_policy(b"m" * 48, configuration=[b"c" * 32]),
            accept_simulation=True,
            simulation_keys=(KEY.public_key,),
            accept_rollback_unsafe=True,
        ).sign(KEY),
        lambda data: open_bundle(data, KEY.public_key, 1, NOW),
    ),
    "manifest": Kind(
        Context.MANIFEST,
        Manifest(MODEL, 1, bytes(32), (FileEntry("description", 256, bytes(32)),)).sign(KEY),
        lambda data: Manifest.verify(data, KEY.public_key),
    ),
    "endorsement": Kind(
        Context.SERVICE_KEY,
        ServiceKeyEndorsement(KS, MODEL, None, bytes(32), 1, HPKE.public_key, NOW, NOW + 1).sign(KEY),
        lambda data: ServiceKeyEndorsement.verify(data, KEY.public_key),
    ),
    "status": Kind(
        Context.KEYSERVICE_STATUS,
        calls.sign_status(KEY, epoch=b"e" * 16, nonce=b"n" * 32, head=HEAD),
        lambda data: calls.verify_status(data, DESCRIPTION, b"n" * 32),
    ),
    "receipt": Kind(
        Context.KEYSERVICE_RECEIPT,
        Receipt(KS, 0, ENTRY.leaf(), HEAD, TREE.inclusion(0)).sign(KEY),
        lambda data: verify_receipt(data, LogKeys(KEY.public_key)),
    ),
    "log key's certificate": Kind(
        Context.LOG_KEY_CERTIFICATE,
        KeyCertificate(KS, 1, b"k" * 32, 3, bytes(32), NOW).sign(KEY),
        lambda data: LogKeys(KEY.public_key).then(data),
    ),
}


@pytest.mark.parametrize("reader", KINDS)
@pytest.mark.parametrize("written", KINDS)
def test_s9_each_signed_object_is_read_as_itself_only(written: str, reader: str) -> None:
    if written == reader:
        KINDS[reader].read(KINDS[written].signed)
        return
    with pytest.raises(CloisterError, match=r"signature-invalid|cbor-too-long"):  # too long for that object at all
        KINDS[reader].read(KINDS[written].signed)


@pytest.mark.parametrize("context", list(Context))
@pytest.mark.parametrize("reader", KINDS)
def test_s9_the_right_words_signed_for_any_other_purpose_are_refused(reader: str, context: Context) -> None:
    kind = KINDS[reader]
    signed = cose.sign1(KEY, context, kind.payload)
    if context is kind.context:
        kind.read(signed)
        return
    with pytest.raises(Tampered, match="signature-invalid"):
        kind.read(signed)


@pytest.mark.parametrize("reader", KINDS)
def test_s9_a_checkpoint_is_nothing_else_and_nothing_else_a_checkpoint(reader: str) -> None:
    note = Checkpoint(KS, 1, TREE.root()).sign(KEY)
    SignedNote.parse(note).verify(KEY.public_key)
    with pytest.raises(CloisterError):
        KINDS[reader].read(note)
    with pytest.raises(CloisterError):
        SignedNote.parse(KINDS[reader].signed).verify(KEY.public_key)


@pytest.mark.parametrize("sealed_for", list(Context))
@pytest.mark.parametrize("opened_as", [Context.KEYSERVICE_CALL, Context.SESSION, Context.REQUEST_SEAL])
def test_s9_what_is_sealed_to_one_key_for_one_purpose_opens_for_that_one(
    sealed_for: Context, opened_as: Context
) -> None:
    data = hpke.seal(HPKE.public_key, b"secret", sealed_for, b"bound")
    if sealed_for is opened_as:
        assert HPKE.open(data, opened_as, b"bound", what="it") == b"secret"
    else:
        with pytest.raises(Tampered):
            HPKE.open(data, opened_as, b"bound", what="it")
    with pytest.raises(Tampered):
        HPKE.open(data, opened_as, b"other", what="it")


def test_s9_no_two_contexts_hash_derive_or_bind_alike() -> None:
    secret, parts = b"s" * 32, (b"a", b"b")
    for made in (
        {digest(context, *parts) for context in Context},
        {derive(context, secret, *parts) for context in Context},
        {report_data(context, *parts) for context in Context},
    ):
        assert len(made) == len(Context)
    for one in Context:  # nor does a part run over into its neighbour or into the context
        assert digest(one, b"ab", b"") != digest(one, b"a", b"b") != digest(one, b"", b"ab")
    values = [context.value for context in Context]
    assert len(set(values)) == len(values)
