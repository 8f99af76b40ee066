"""Nitro documents that must be refused although their signatures are genuine: each case with its own code.

The numbers (A1, N2, ...) are those of the list of negative cases; names in parentheses are the projects in which a
verifier let the case pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest import claim_names as names
from cloister.attest.anchors import TrustAnchors, production_anchors
from cloister.attest.types import Collateral, Evidence, TeeType, VerifiedEvidence
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError
from cloister.testing.certificates import Template, issue
from cloister.testing.evidence_nitro import (
    ES384,
    HOUR,
    NAMES,
    NOW,
    NitroAuthority,
    genuine_template,
    open_map,
    pcrs,
)
from cloister.testing.evidence_snp import SnpAuthority
from cloister.testing.refusals import require_refusal

P384_ORDER = int("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16)


def check(aws: NitroAuthority, evidence: Evidence) -> VerifiedEvidence:
    return verify(evidence, Collateral(), aws.anchors(), NOW)


def refused(aws: NitroAuthority, code: str, evidence: Evidence) -> None:
    require_refusal(code, evidence, Collateral(), aws.anchors(), NOW)


# --- right documents ---


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("open_payload", [False, True])
def test_right_documents_verify(aws: NitroAuthority, *, tagged: bool, open_payload: bool) -> None:
    content = aws.content(nonce=b"n" * 1024, public_key=b"k")
    found = check(aws, aws.evidence(open_map(content) if open_payload else content, tagged=tagged))
    claims = found.claims
    assert claims.measurements["pcr0"] == b"\x01" * 48
    assert set(claims.measurements) == {f"pcr{index}" for index in range(16)}
    assert claims.report_data == b"u" * 64
    assert claims.specific[names.NITRO_NONCE] == b"n" * 1024
    assert claims.specific[names.NITRO_PUBLIC_KEY] == b"k"
    assert claims.debug is False
    assert found.expires_at == NOW + 3 * HOUR


def test_what_is_absent_is_no_claim(aws: NitroAuthority) -> None:
    """A4: an empty nonce is one, a null or absent one is none; user_data is in no other field."""
    for missing in (None, ...):
        claims = check(aws, aws.evidence(aws.content(nonce=missing, public_key=missing, user_data=missing))).claims
        assert claims.report_data == b""
        assert not {names.NITRO_NONCE, names.NITRO_PUBLIC_KEY} & set(claims.specific)
    assert check(aws, aws.evidence(aws.content(nonce=b""))).claims.specific[names.NITRO_NONCE] == b""


def test_a_debug_document_says_so(aws: NitroAuthority) -> None:
    """N1: debug is a claim; the policy refuses it."""
    zero = pcrs(pcr0=bytes(48), pcr1=bytes(48), pcr2=bytes(48))
    assert check(aws, aws.evidence(aws.content(pcrs=zero))).claims.debug is True


# --- the payload's fields ---

_ONE_ZERO = pcrs(pcr1=bytes(48))
_CONTENT: dict[str, tuple[str, dict[str, object]]] = {
    "N1 one PCR zero": ("nitro-pcr-zero", {"pcrs": _ONE_ZERO}),
    "N1 only PCR8 (CVE-2025-64186)": ("nitro-pcr-missing", {"pcrs": {8: b"\x08" * 48}}),
    "N1 no PCRs (keep 577)": ("nitro-pcr-missing", {"pcrs": {}}),
    "N1 PCRs absent": ("nitro-field-missing", {"pcrs": ...}),
    "N4 PCR not bytes": ("nitro-pcr-value", {"pcrs": pcrs() | {5: "0" * 48}}),
    "N4 PCR of SHA-256": ("nitro-pcr-value", {"pcrs": pcrs(pcr0=b"\x01" * 32)}),
    "N4 PCR null": ("nitro-pcr-value", {"pcrs": pcrs() | {0: None}}),
    "N4 PCR 32": ("nitro-pcr-index", {"pcrs": pcrs() | {32: bytes(48)}}),
    "N4 PCR -1": ("nitro-pcr-index", {"pcrs": pcrs() | {-1: bytes(48)}}),
    "N4 PCR named by text": ("nitro-pcr-index", {"pcrs": pcrs() | {"0": bytes(48)}}),
    "N4 PCRs an array": ("nitro-field-type", {"pcrs": [bytes(48)] * 3}),
    "N4 digest SHA256": ("nitro-digest", {"digest": "SHA256"}),
    "N4 digest in lower case": ("nitro-digest", {"digest": "sha384"}),
    "N4 digest absent": ("nitro-field-missing", {"digest": ...}),
    "N4 digest bytes": ("nitro-field-type", {"digest": b"SHA384"}),
    "N4 timestamp in seconds": ("nitro-timestamp-before-certificate", {"timestamp": int(NOW)}),
    "N4 timestamp in microseconds": ("nitro-timestamp-future", {"timestamp": int(NOW) * 10**6}),
    "N4 timestamp ahead": ("nitro-timestamp-future", {"timestamp": int(NOW * 1000) + 60_001}),
    "N4 timestamp of another leaf": ("nitro-timestamp-before-certificate", {"timestamp": int(NOW * 1000) - 120_001}),
    "N4 timestamp 0": ("nitro-field-size", {"timestamp": 0}),
    "N4 timestamp negative": ("nitro-field-size", {"timestamp": -1}),
    "N4 timestamp beyond": ("nitro-field-size", {"timestamp": 2**63}),
    "N4 timestamp text": ("nitro-field-type", {"timestamp": "1800000000000"}),
    "N4 module id empty": ("nitro-field-size", {"module_id": ""}),
    "N4 module id with a line end": ("nitro-field-size", {"module_id": "i-1\nPASS"}),
    "N4 user data too long": ("nitro-field-size", {"user_data": bytes(1025)}),
    "N4 nonce too long": ("nitro-field-size", {"nonce": bytes(1025)}),
    "N4 nonce text": ("nitro-field-type", {"nonce": "nonce"}),
    "N4 public key too long": ("nitro-field-size", {"public_key": bytes(1025)}),
    "N4 unknown field": ("nitro-field-unknown", {"extra": 1}),
    "N4 field with a number for a name": ("nitro-field-unknown", {1: 1}),  # type: ignore[dict-item]
    "N3 bundle empty": ("nitro-cabundle-empty", {"cabundle": []}),
    "N3 bundle absent": ("nitro-field-missing", {"cabundle": ...}),
    "N3 bundle bytes": ("nitro-field-type", {"cabundle": b""}),
    "N3 bundle of text": ("nitro-field-size", {"cabundle": ["0"]}),
    "N3 bundle endless": ("nitro-field-size", {"cabundle": [b"0"] * 9}),
    "N3 certificate absent": ("nitro-field-missing", {"certificate": ...}),
    "N3 certificate empty": ("nitro-field-size", {"certificate": b""}),
    "N3 certificate too long": ("nitro-field-size", {"certificate": bytes(1025)}),
    "N3 certificate is none": ("certificate-malformed", {"certificate": b"0"}),
}


@pytest.mark.parametrize("case", _CONTENT)
def test_a_signed_payload_that_no_policy_may_accept(aws: NitroAuthority, case: str) -> None:
    code, values = _CONTENT[case]
    content = aws.content()
    merged = {name: value for name, value in (content | values).items() if value is not ...}
    refused(aws, code, aws.evidence(merged))


# --- the envelope ---


@pytest.mark.parametrize(
    ("code", "protected", "unprotected"),
    [
        ("nitro-algorithm", cbor2.dumps({1: -7}), {}),
        ("nitro-algorithm", cbor2.dumps({1: -36}), {}),
        ("nitro-algorithm", cbor2.dumps({1: "ES384"}), {}),
        ("nitro-algorithm", cbor2.dumps({1: [-35]}), {}),
        ("nitro-algorithm", cbor2.dumps({1: None}), {}),
        ("nitro-algorithm-missing", b"", {}),
        ("nitro-algorithm-missing", cbor2.dumps({}), {}),
        ("nitro-algorithm-missing", cbor2.dumps({}), {1: -35}),
        ("nitro-protected-header", cbor2.dumps({1: -35, 4: b"key"}), {}),
        ("nitro-protected-header", cbor2.dumps({1: -35, 2: [1]}), {}),
        ("nitro-protected-header", cbor2.dumps([1, -35]), {}),
        ("nitro-unprotected-header", ES384, {1: -35}),
        ("nitro-unprotected-header", ES384, {1: -7}),
        ("nitro-cbor-duplicate-key", b"\xa2\x01\x38\x22\x01\x38\x22", {}),
        ("nitro-cbor-trailing", ES384 + b"\x00", {}),
        ("nitro-cbor-indefinite", b"\xbf\x01\x38\x22\xff", {}),
    ],
)
def test_headers(aws: NitroAuthority, code: str, protected: bytes, unprotected: dict[int, object]) -> None:
    """N2, each with a signature over exactly this header."""
    refused(aws, code, aws.evidence(protected=protected, unprotected=unprotected))


def test_what_qemus_virtio_nsm_makes(aws: NitroAuthority) -> None:
    """N2: algorithm -1, a signature of zeros, certificates of zeros."""
    fake = cbor2.dumps(aws.content(certificate=bytes(64), cabundle=[bytes(64)]))
    document = cbor2.dumps([cbor2.dumps({1: -1}), {}, fake, bytes(64)])
    refused(aws, "nitro-algorithm", Evidence(TeeType.NITRO, document))
    document = cbor2.dumps([ES384, {}, fake, bytes(96)])
    refused(aws, "certificate-malformed", Evidence(TeeType.NITRO, document))


def test_envelopes(aws: NitroAuthority) -> None:
    """N2 detached payload; N4 lengths, tags, trailing bytes, types."""
    protected, unprotected, payload, signature = cbor2.loads(aws.evidence().body)

    def document(*parts: object) -> Evidence:
        return Evidence(TeeType.NITRO, cbor2.dumps(list(parts)))

    refused(aws, "nitro-payload-detached", document(protected, unprotected, None, signature))
    refused(aws, "nitro-envelope", document(protected, unprotected, payload))
    refused(aws, "nitro-envelope", document(protected, unprotected, payload, signature, signature))
    refused(aws, "nitro-envelope", document(protected, unprotected, "payload", signature))
    refused(aws, "nitro-envelope", document(protected, unprotected, payload, None))
    refused(aws, "nitro-envelope", document({1: -35}, unprotected, payload, signature))
    refused(aws, "nitro-unprotected-header", document(protected, None, payload, signature))
    refused(aws, "nitro-signature-length", document(protected, unprotected, payload, signature[:-1]))
    refused(aws, "nitro-signature-length", document(protected, unprotected, payload, signature + b"\x00"))
    refused(aws, "nitro-envelope", Evidence(TeeType.NITRO, cbor2.dumps({0: protected})))
    body = aws.evidence().body
    for trailing in (1, 16, 4096):
        refused(aws, "nitro-cbor-trailing", Evidence(TeeType.NITRO, body + b"\x01" * trailing))
    refused(aws, "nitro-cbor-tag", Evidence(TeeType.NITRO, b"\xd2\xd2" + body))
    refused(aws, "nitro-cbor-tag", Evidence(TeeType.NITRO, b"\xd8\x12" + body))
    refused(aws, "nitro-cbor-tag", Evidence(TeeType.NITRO, b"\xd1" + body))
    refused(aws, "nitro-cbor-indefinite", Evidence(TeeType.NITRO, b"\x9f" + body[1:] + b"\xff"))


def test_payload_encodings(aws: NitroAuthority) -> None:
    """N4, each signed as it is."""
    content = aws.content()
    plain = cbor2.dumps(content)
    twice = b"\xaa" + plain[1:] + cbor2.dumps("digest") + cbor2.dumps("SHA384")
    refused(aws, "nitro-cbor-duplicate-key", aws.evidence(twice))
    refused(aws, "nitro-cbor-duplicate-key", aws.evidence(open_map(content)[:-1] + twice[len(plain) :] + b"\xff"))
    refused(aws, "nitro-cbor-trailing", aws.evidence(plain + b"\x00"))
    refused(aws, "nitro-cbor-trailing", aws.evidence(open_map(content) + b"\xff"))
    refused(aws, "nitro-cbor-malformed", aws.evidence(open_map(content)[:-1]))
    refused(aws, "nitro-cbor-malformed", aws.evidence(open_map(content)[:-1] + cbor2.dumps("nonce2") + b"\xff"))
    for inner in (b"\x9f\xff", b"\xbf\xff", b"\x5f\xff", b"\x7f\xff"):
        refused(aws, "nitro-cbor-indefinite", aws.evidence(b"\xa1" + cbor2.dumps("pcrs") + inner))
    refused(aws, "nitro-cbor-indefinite", aws.evidence(b"\x9f\xff"))
    refused(aws, "nitro-field-type", aws.evidence(cbor2.dumps([1])))
    for simple in (True, 1.5, cbor2.undefined):
        refused(aws, "nitro-cbor-malformed", aws.evidence(aws.content(nonce=simple)))
    refused(aws, "nitro-cbor-tag", aws.evidence(aws.content(timestamp=2**64)))
    refused(aws, "nitro-cbor-malformed", aws.evidence({**content, b"key": 1}))  # type: ignore[dict-item]
    refused(aws, "nitro-cbor-too-large", aws.evidence(aws.content(nonce=[[[[[1]]]]])))
    refused(aws, "nitro-cbor-too-large", aws.evidence(aws.content(nonce=[0] * 300)))
    refused(aws, "nitro-cbor-malformed", aws.evidence(b"\xa1\x61\xff\x01"))


# --- the chain ---

Change = Callable[[Template], Template]
LEAF = len(NAMES)
_CHAINS: dict[str, tuple[str, int, Change]] = {
    "A3 leaf expired": ("certificate-expired", LEAF, lambda cert: replace(cert, not_after=NOW - 1)),
    "A3 leaf not yet valid": ("certificate-not-yet-valid", LEAF, lambda cert: replace(cert, not_before=NOW + 1)),
    "A3 intermediate expired": ("certificate-expired", 2, lambda cert: replace(cert, not_after=NOW - 1)),
    "A3 intermediate early": ("certificate-not-yet-valid", 1, lambda cert: replace(cert, not_before=NOW + 1)),
    "N3 CA:FALSE issuer": ("certificate-not-ca", 2, lambda cert: replace(cert, ca=False, path_length=None)),
    "N3 issuer without BasicConstraints": ("certificate-not-ca", 3, lambda cert: replace(cert, ca=None)),
    "N3 path length exceeded": ("certificate-path-length", 1, lambda cert: replace(cert, path_length=1)),
    "N3 path length 0 above a CA": ("certificate-path-length", 2, lambda cert: replace(cert, path_length=0)),
    "N3 issuer without keyCertSign": (
        "certificate-key-usage",
        3,
        lambda cert: replace(cert, usage=frozenset({"digital_signature", "crl_sign"})),
    ),
    "N3 issuer without key usage": ("certificate-key-usage", 3, lambda cert: replace(cert, usage=None)),
    "N3 leaf without digitalSignature": (
        "certificate-key-usage",
        LEAF,
        lambda cert: replace(cert, usage=frozenset({"content_commitment"})),
    ),
    "N3 leaf without key usage": ("certificate-key-usage", LEAF, lambda cert: replace(cert, usage=None)),
    "N3 leaf is a CA": ("certificate-leaf-is-ca", LEAF, lambda cert: replace(cert, ca=True)),
    "N3 another issuer's name": ("certificate-issuer-name", 2, lambda cert: replace(cert, issuer=NAMES[0])),
    "N3 critical extension": (
        "certificate-critical-extension",
        LEAF,
        lambda cert: replace(cert, extensions={"1.2.3.4": b""}, critical=frozenset({"1.2.3.4"})),
    ),
}


@pytest.mark.parametrize("case", _CHAINS)
def test_a_chain_with_one_wrong_certificate(aws: NitroAuthority, case: str) -> None:
    code, place, change = _CHAINS[case]
    content = aws.content(lambda at, template: change(template) if at == place else template)
    refused(aws, code, aws.evidence(content))


def test_bundles(aws: NitroAuthority) -> None:
    """N3: reordered, cut, with an extra CA, with another root."""
    bundle, leaf = aws.bundle()
    root, *others = bundle
    refused(aws, "nitro-root-not-pinned", aws.evidence(aws.content(cabundle=others)))
    refused(aws, "nitro-root-not-pinned", aws.evidence(aws.content(cabundle=bundle[::-1])))
    refused(aws, "certificate-issuer-name", aws.evidence(aws.content(cabundle=[root, *others[::-1]])))
    refused(aws, "certificate-issuer-name", aws.evidence(aws.content(cabundle=bundle[:-1])))
    refused(aws, "certificate-issuer-name", aws.evidence(aws.content(cabundle=[root])))
    extra = ec.generate_private_key(ec.SECP384R1())
    instance = replace(genuine_template(3), subject="extra", issuer=NAMES[3], path_length=None)
    more = [*bundle, issue(instance, extra, aws.issuers[3])]
    own = issue(replace(genuine_template(LEAF), issuer="extra"), aws.leaf, extra)
    refused(aws, "certificate-path-length", aws.evidence(aws.content(cabundle=more, certificate=own)))
    below = issue(replace(genuine_template(LEAF), issuer=genuine_template(LEAF).subject), extra, aws.leaf)
    enclave_as_ca = aws.content(cabundle=[*bundle, leaf], certificate=below)
    refused(aws, "certificate-path-length", aws.evidence(enclave_as_ca))


def test_a_forged_chain_with_awss_names(aws: NitroAuthority) -> None:
    """A7: every name and signature is right; the root is not the pinned one, or did not sign."""
    stranger = NitroAuthority.create()
    refused(aws, "nitro-root-not-pinned", stranger.evidence())
    bundle, leaf = stranger.bundle()
    mixed = stranger.content(cabundle=[aws.root, *bundle[1:]], certificate=leaf)
    refused(aws, "certificate-signature", stranger.evidence(mixed))
    for anchors in (TrustAnchors(), production_anchors()):
        require_refusal("nitro-root-not-pinned", aws.evidence(), Collateral(), anchors, NOW)


def test_a_certificate_under_another_hash_or_curve(aws: NitroAuthority) -> None:
    bundle, _ = aws.bundle()
    weak = issue(genuine_template(LEAF), aws.leaf, aws.issuers[-1], digest=hashes.SHA256())
    refused(aws, "certificate-algorithm", aws.evidence(aws.content(cabundle=bundle, certificate=weak)))
    small = ec.generate_private_key(ec.SECP256R1())
    leaf = issue(genuine_template(LEAF), small, aws.issuers[-1])
    refused(aws, "nitro-leaf-key", aws.evidence(aws.content(cabundle=bundle, certificate=leaf)))


# --- the signature ---


def test_a_signature_by_another_key_or_of_another_document(aws: NitroAuthority) -> None:
    """A1, A7."""
    stranger = replace(aws, leaf=ec.generate_private_key(ec.SECP384R1()))
    content = aws.content()
    refused(aws, "nitro-signature", stranger.evidence(content))
    first, second = (cbor2.loads(aws.evidence(aws.content(nonce=nonce)).body) for nonce in (b"1", b"2"))
    refused(aws, "nitro-signature", Evidence(TeeType.NITRO, cbor2.dumps([*first[:3], second[3]])))


def test_a_signature_outside_of_its_range(aws: NitroAuthority) -> None:
    parts = cbor2.loads(aws.evidence().body)
    for value in (0, P384_ORDER, 2**384 - 1):
        number = value.to_bytes(48, "big")
        for signature in (number + parts[3][48:], parts[3][:48] + number):
            refused(aws, "nitro-signature", Evidence(TeeType.NITRO, cbor2.dumps([*parts[:3], signature])))


# --- evidence of another TEE, or label ---


def test_a_document_under_another_label(aws: NitroAuthority, amd: SnpAuthority) -> None:
    """A6."""
    for tee in (TeeType.SGX, TeeType.TDX, TeeType.SEV_SNP, TeeType.SIMULATION):
        with pytest.raises(CloisterError):
            check(aws, replace(aws.evidence(), tee=tee))
    report, _ = amd.evidence()
    with pytest.raises(CloisterError):
        check(aws, replace(report, tee=TeeType.NITRO))
