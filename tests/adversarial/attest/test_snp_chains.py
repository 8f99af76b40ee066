"""SEV-SNP chains and revocation lists that must be refused: each case with its own code.

The numbers (A1, S3, ...) are those of the list of negative cases; names in parentheses are the projects in which a
verifier let the case pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cloister.attest import claim_names as names
from cloister.attest.anchors import TrustAnchors
from cloister.attest.snp.certificates import CERT_TABLE, CHAIN_FILE, CRL_FILE, VEK_FILE, Signer
from cloister.attest.steps import Steps, Verdict
from cloister.attest.types import Collateral, Evidence, TeeType, VerifiedEvidence
from cloister.attest.verify import verify
from cloister.attest.x509 import load_pem_chain
from cloister.base.errors import CloisterError
from cloister.testing.certificates import Template, issue, revoke
from cloister.testing.evidence_snp import (
    DAY,
    NOW,
    Case,
    SnpAuthority,
    build_cert_table,
    patch,
    pem,
)
from cloister.testing.refusals import require_refusal

VLEK = Signer.VLEK


def check(amd: SnpAuthority, case: Case, product: str = "Milan", steps: Steps | None = None) -> VerifiedEvidence:
    return verify(*case, amd.anchors(product), NOW, steps)


def refused(amd: SnpAuthority, code: str, case: Case, product: str = "Milan") -> None:
    require_refusal(code, *case, amd.anchors(product), NOW)


# --- which kind of key (Microsoft's TEE verification library, 142: a VLEK taken for a VCEK) ---


def test_a_vlek_presented_where_the_report_says_vcek(amd: SnpAuthority) -> None:
    """S2: the VLEK's chain and signature are genuine; SIGNING_KEY says 0."""
    refused(amd, "snp-intermediate-kind", amd.evidence("Milan", VLEK, flags=0))


def test_a_vcek_presented_where_the_report_says_vlek(amd: SnpAuthority) -> None:
    refused(amd, "snp-intermediate-kind", amd.evidence("Milan", Signer.VCEK, flags=1 << 2))


def test_a_vcek_under_the_asvk(amd: SnpAuthority) -> None:
    """S2: an ASVK in the place of the ASK."""
    files = amd.chain("Milan", VLEK, leaf=replace(amd.leaf_template("Milan", VLEK), subject="SEV-VCEK"))
    refused(amd, "snp-intermediate-kind", amd.evidence(files=files))


def test_a_vlek_under_the_ask(amd: SnpAuthority) -> None:
    files = amd.chain("Milan", Signer.VCEK, leaf=replace(amd.leaf_template("Milan", Signer.VCEK), subject="SEV-VLEK"))
    refused(amd, "snp-intermediate-kind", amd.evidence("Milan", VLEK, files=files))


# --- the chain ---


def intermediate_case(amd: SnpAuthority, change: Callable[[Template], Template]) -> Case:
    template = change(amd.intermediate_template("Milan", Signer.VCEK))
    return amd.evidence(files=amd.chain("Milan", intermediate=template))


INTERMEDIATES: dict[str, tuple[str, Callable[[Template], Template]]] = {
    "A3 not yet valid": ("certificate-not-yet-valid", lambda ask: replace(ask, not_before=NOW + 1)),
    "A3 expired": ("certificate-expired", lambda ask: replace(ask, not_after=NOW - 1)),
    "A7 no CA": ("certificate-not-ca", lambda ask: replace(ask, ca=False, path_length=None)),
    "A7 no BasicConstraints": ("certificate-not-ca", lambda ask: replace(ask, ca=None)),
    "A7 may not sign certificates": ("certificate-key-usage", lambda ask: replace(ask, usage=frozenset({"crl_sign"}))),
    "A7 no key usage": ("certificate-key-usage", lambda ask: replace(ask, usage=None)),
    "A7 issued by another name": ("certificate-issuer-name", lambda ask: replace(ask, issuer="ARK-Genoa")),
    "S3 of another product": ("snp-intermediate-kind", lambda ask: replace(ask, subject="SEV-Genoa")),
}


@pytest.mark.parametrize("case", INTERMEDIATES)
def test_an_intermediate_that_is_none(amd: SnpAuthority, case: str) -> None:
    code, change = INTERMEDIATES[case]
    refused(amd, code, intermediate_case(amd, change))


ROOTS: dict[str, tuple[str, Callable[[Template], Template]]] = {
    "A3 not yet valid": ("certificate-not-yet-valid", lambda ark: replace(ark, not_before=NOW + 1)),
    "A3 expired": ("certificate-expired", lambda ark: replace(ark, not_after=NOW - 1)),
    "A7 path length 0": ("certificate-path-length", lambda ark: replace(ark, path_length=0)),
    "A7 no CA": ("certificate-not-ca", lambda ark: replace(ark, ca=False)),
    "S3 named for another product": (
        "snp-root-not-pinned",
        lambda ark: replace(ark, subject="ARK-Genoa", issuer="ARK-Genoa"),
    ),
}


@pytest.mark.parametrize("case", ROOTS)
def test_a_root_with_the_pinned_key_and_another_certificate(amd: SnpAuthority, case: str) -> None:
    code, change = ROOTS[case]
    refused(amd, code, amd.evidence(files=amd.chain("Milan", ark=change(amd.ark_template("Milan")))))


def test_a_forged_chain_with_amds_names(amd: SnpAuthority) -> None:
    """A7 (go-sev-guest 190): every name, extension and signature is right; the root's key is not AMD's."""
    stranger = SnpAuthority.create()
    refused(amd, "snp-root-not-pinned", stranger.evidence())
    evidence, files = stranger.evidence()
    genuine_root = pem(issue(amd.ark_template("Milan"), amd.ark, amd.ark))
    forged = issue(stranger.intermediate_template("Milan", Signer.VCEK), stranger.ask, stranger.ark)
    mixed = Collateral({**files.files, CHAIN_FILE: pem(forged) + genuine_root})
    refused(amd, "certificate-signature", (evidence, mixed))


def test_a_root_certificate_that_its_own_key_did_not_sign(amd: SnpAuthority) -> None:
    """A7 (go-sev-guest 190): AMD's public key in a certificate that somebody else made, with other dates."""
    stranger = rsa.generate_private_key(65537, 2048)
    root = issue(replace(amd.ark_template("Milan"), not_after=NOW + 90_000 * DAY), amd.ark, stranger)
    upper = issue(amd.intermediate_template("Milan", Signer.VCEK), amd.ask, amd.ark)
    files = {**amd.chain("Milan"), CHAIN_FILE: pem(upper) + pem(root)}
    refused(amd, "certificate-signature", amd.evidence(files=files))


def test_a_leaf_that_the_intermediate_did_not_sign(amd: SnpAuthority) -> None:
    leaf = issue(amd.leaf_template("Milan", Signer.VCEK), amd.vek, amd.asvk)
    refused(amd, "certificate-signature", amd.evidence(files={**amd.chain("Milan"), VEK_FILE: leaf}))


def test_a_leaf_under_another_hash_or_curve(amd: SnpAuthority) -> None:
    template = amd.leaf_template("Milan", Signer.VCEK)
    weak = issue(replace(template, serial=5), amd.vek, amd.ask, digest=hashes.SHA256())
    refused(amd, "certificate-algorithm", amd.evidence(files={**amd.chain("Milan"), VEK_FILE: weak}))
    curve = issue(template, ec.generate_private_key(ec.SECP256R1()), amd.ask)
    refused(amd, "snp-leaf-key", amd.evidence(files={**amd.chain("Milan"), VEK_FILE: curve}))
    plain = issue(template, rsa.generate_private_key(65537, 2048), amd.ask)
    refused(amd, "snp-leaf-key", amd.evidence(files={**amd.chain("Milan"), VEK_FILE: plain}))


def test_a_root_that_is_pinned_for_a_product_unknown_here(amd: SnpAuthority) -> None:
    anchors = TrustAnchors(amd_arks={"Venice": amd.anchors("Milan").amd_arks["Milan"]})
    require_refusal("snp-product-unknown", *amd.evidence(), anchors, NOW)


def test_an_incomplete_chain(amd: SnpAuthority) -> None:
    """(CVE-2025-64186's kind: what is missing must not pass.)"""
    files = amd.chain("Milan")
    for name in (VEK_FILE, CHAIN_FILE):
        refused(amd, "snp-certificate-missing", amd.evidence(files={k: v for k, v in files.items() if k != name}))
    root = pem(issue(amd.ark_template("Milan"), amd.ark, amd.ark))
    for wrong in (root, root + root, files[CHAIN_FILE] + root):
        refused(amd, "snp-chain-shape", amd.evidence(files={**files, CHAIN_FILE: wrong}))
    refused(amd, "certificate-malformed", amd.evidence(files={**files, CHAIN_FILE: b"nothing"}))
    refused(amd, "certificate-malformed", amd.evidence(files={**files, VEK_FILE: files[VEK_FILE] + b"\x00"}))
    refused(amd, "certificate-too-long", amd.evidence(files={**files, VEK_FILE: bytes(9000)}))
    refused(amd, "certificate-too-long", amd.evidence(files={**files, CHAIN_FILE: root * 9}))


# --- revocation (attestation-go 12: a list that cannot be had must not pass for one that lists nothing) ---


def test_without_a_list_the_claims_say_so_and_the_step_does_not_pass(amd: SnpAuthority) -> None:
    steps = Steps()
    found = check(amd, amd.evidence(), steps=steps)
    assert found.claims.specific[names.SNP_REVOCATION_CHECKED] is False
    skipped = [(step.name, step.code) for step in steps.report if step.verdict is Verdict.SKIP]
    assert skipped == [("revocation", "no-crl")]


@pytest.mark.parametrize("serial", [0x10000, 0x10001])
def test_a_revoked_root_or_intermediate(amd: SnpAuthority, serial: int) -> None:
    """S7: the ARK revokes the ASK, or itself."""
    refused(amd, "certificate-revoked", amd.evidence(crl=amd.crl("Milan", (3, serial))))


def test_a_list_of_others_revokes_nothing(amd: SnpAuthority) -> None:
    found = check(amd, amd.evidence(crl=amd.crl("Milan", (0x10002, 7), end=30)))
    assert found.claims.specific[names.SNP_REVOCATION_CHECKED] is True
    assert found.expires_at == NOW + 30 * DAY


def test_the_revoked_intermediate_of_the_vlek(amd: SnpAuthority) -> None:
    refused(amd, "certificate-revoked", amd.evidence("Milan", VLEK, crl=amd.crl("Milan", (0x10002,))))


def test_a_list_that_is_not_the_roots_or_not_of_today(amd: SnpAuthority) -> None:
    """S7: signed by the ASK; of another product; expired; not yet valid; a delta; not a list at all."""
    refused(amd, "certificate-signature", amd.evidence(crl=amd.crl("Milan", signer=amd.ask)))
    refused(amd, "certificate-issuer-name", amd.evidence(crl=amd.crl("Genoa")))
    refused(amd, "crl-expired", amd.evidence(crl=amd.crl("Milan", end=-0.5)))
    early = revoke("ARK-Milan", amd.ark, (), this_update=NOW + 5, next_update=NOW + DAY)
    refused(amd, "crl-not-yet-valid", amd.evidence(crl=early))
    refused(amd, "crl-malformed", amd.evidence(crl=b""))
    refused(amd, "crl-malformed", amd.evidence(crl=amd.crl("Milan") + b"\x00"))
    refused(amd, "crl-malformed", amd.evidence(crl=bytes(70_000)))


def point(**limits: object) -> x509.IssuingDistributionPoint:
    """An issuing distribution point that limits nothing, or what is given."""
    nothing: dict[str, object] = dict.fromkeys(
        ("only_contains_user_certs", "only_contains_ca_certs", "indirect_crl", "only_contains_attribute_certs"), False
    )
    uri = [x509.UniformResourceIdentifier("https://kds.example/vcek/v1/Milan/crl")]
    base = {"full_name": uri, "relative_name": None, "only_some_reasons": None}
    return x509.IssuingDistributionPoint(**(base | nothing | limits))  # type: ignore[arg-type]


LISTS: dict[str, tuple[x509.ExtensionType, bool, bool]] = {
    "names where it is published": (point(), True, True),
    "is of CA certificates": (point(only_contains_ca_certs=True), True, True),
    "is of other certificates": (point(only_contains_user_certs=True), True, False),
    "is of attribute certificates": (point(only_contains_attribute_certs=True), True, False),
    "is of others' certificates": (point(indirect_crl=True), True, False),
    "is of some reasons": (point(only_some_reasons=frozenset({x509.ReasonFlags.key_compromise})), True, False),
    "is a delta": (x509.DeltaCRLIndicator(6), True, False),
    "is a delta and keeps quiet": (x509.DeltaCRLIndicator(6), False, False),
    "says something unknown": (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b""), False, True),
    "says something unknown that matters": (
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b""),
        True,
        False,
    ),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_that(amd: SnpAuthority, case: str) -> None:
    """S7: only a list that would name the ASK counts."""
    extension, critical, counts = LISTS[case]
    crl = revoke(
        "ARK-Milan", amd.ark, (), this_update=NOW - DAY, next_update=NOW + DAY, extensions={extension: critical}
    )
    if counts:
        assert check(amd, amd.evidence(crl=crl)).claims.specific[names.SNP_REVOCATION_CHECKED] is True
    else:
        refused(amd, "crl-not-complete", amd.evidence(crl=crl))


def test_a_root_that_may_not_sign_lists(amd: SnpAuthority) -> None:
    files = amd.chain("Milan", ark=replace(amd.ark_template("Milan"), usage=frozenset({"key_cert_sign"})))
    check(amd, amd.evidence(files=files))
    refused(amd, "certificate-key-usage", amd.evidence(files=files, crl=amd.crl("Milan")))


# --- where the chain comes from ---


@pytest.mark.parametrize("signer", Signer)
def test_the_chain_may_travel_with_the_report(amd: SnpAuthority, signer: Signer) -> None:
    evidence, collateral = amd.evidence("Milan", signer, crl=amd.crl("Milan"))
    travelling = replace(evidence, endorsements=collateral.files)
    assert check(amd, (travelling, Collateral())) == check(amd, (evidence, collateral))


@pytest.mark.parametrize("signer", Signer)
def test_the_chain_may_come_in_a_certificate_table(amd: SnpAuthority, signer: Signer) -> None:
    evidence, collateral = amd.evidence("Milan", signer, crl=amd.crl("Milan"))
    upper, root = (pem(entry.der) for entry in load_pem_chain(collateral.files[CHAIN_FILE], CHAIN_FILE))
    table = {
        "ark": root,
        "other": b"\x01\x02",
        "ask": upper,
        signer.label: collateral.files[VEK_FILE],
        "crl": collateral.files[CRL_FILE],
    }
    travelling = replace(evidence, endorsements={CERT_TABLE: build_cert_table(table)})
    assert check(amd, (travelling, Collateral())) == check(amd, (evidence, collateral))


def test_the_two_upper_certificates_may_come_in_either_order(amd: SnpAuthority) -> None:
    evidence, collateral = amd.evidence()
    ending = b"-----END CERTIFICATE-----\n"
    upper, root, rest = collateral.files[CHAIN_FILE].split(ending)
    assert not rest
    turned = Collateral({**collateral.files, CHAIN_FILE: root + ending + upper + ending})
    assert check(amd, (evidence, turned)) == check(amd, (evidence, collateral))


def test_collateral_is_used_before_what_the_evidence_brings(amd: SnpAuthority) -> None:
    """A guest cannot replace the verifier's own revocation list by an emptier one."""
    evidence, collateral = amd.evidence(crl=amd.crl("Milan", (0x10001,)))
    generous = replace(evidence, endorsements={CRL_FILE: amd.crl("Milan")})
    refused(amd, "certificate-revoked", (generous, collateral))


def test_a_table_for_the_other_kind_of_key_has_no_certificate(amd: SnpAuthority) -> None:
    evidence, collateral = amd.evidence()
    table = build_cert_table({"vlek": collateral.files[VEK_FILE]})
    refused(amd, "snp-certificate-missing", (replace(evidence, endorsements={CERT_TABLE: table}), Collateral()))


@pytest.mark.parametrize(
    "table",
    [
        b"",
        bytes(23),
        b"\x01" * 24,
        build_cert_table({"ark": b"x"})[:-1],
        patch(build_cert_table({"ark": b"x"}), 16, bytes(4)),
        build_cert_table({"ark": b"x"})[:24] * 2 + bytes(24) + b"xx",
        (b"\x01" * 16 + (900).to_bytes(4, "little") + bytes(4)) * 33 + bytes(900),
        bytes(70_000),
    ],
    ids=["empty", "cut", "outside", "short", "into the head", "twice", "too many", "too long"],
)
def test_a_certificate_table_that_is_none(amd: SnpAuthority, table: bytes) -> None:
    evidence, collateral = amd.evidence()
    case = (Evidence(TeeType.SEV_SNP, evidence.body, {CERT_TABLE: table}), collateral)
    with pytest.raises(CloisterError) as refusal:
        check(amd, case)
    assert refusal.value.code in ("snp-cert-table-malformed", "evidence-too-long")
