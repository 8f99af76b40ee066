"""Genuine SEV-SNP and Nitro evidence that a policy must refuse: one thing differs from what the rule was written for.

The numbers (A4, S4, ...) are those of the list of negative cases; names in parentheses are the projects in which a
verifier let the case pass.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.attest.anchors import TrustAnchors
from cloister.attest.appraise import appraise
from cloister.attest.configuration import configure
from cloister.attest.policy import Policy
from cloister.attest.policy_observed import policy_for
from cloister.attest.snp.certificates import Signer
from cloister.attest.types import Collateral, Evidence, VerifiedEvidence
from cloister.attest.verify import verify
from cloister.base.errors import Refused
from cloister.testing.evidence_nitro import NitroAuthority, pcrs
from cloister.testing.evidence_snp import NOW, Case, SnpAuthority, chip_id, leaf_extensions, tcb

CONFIGURATION = configure({"isolation": "strict"})


def believe(case: Case, anchors: TrustAnchors) -> VerifiedEvidence:
    return verify(*case, anchors, NOW)


def refused(code: str, verified: VerifiedEvidence, policy: Policy, bound: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        appraise(verified, configuration=CONFIGURATION, report_data=bound, policy=policy, now=NOW)
    assert refusal.value.code == code


# --- SEV-SNP ---

BOUND = b"r" * 64
POLICY_BITS = 1 << 17 | 1 << 20 | 1 << 24

SNP: dict[str, tuple[str, dict[str, int | bytes]]] = {
    "A4 report data": ("report-data-mismatch", {"report_data": b"s" * 64}),
    "A4 in HOST_DATA instead": ("report-data-mismatch", {"report_data": bytes(64), "host_data": b"r" * 32}),
    "A5 measurement": ("measurement-not-allowed", {"measurement": b"n" * 48}),
    "A5 no measurement": ("measurement-not-allowed", {"measurement": bytes(48)}),
    "S1 debug (attestation-rs 67)": ("debug-not-allowed", {"policy": POLICY_BITS | 1 << 19}),
    "S1 single socket": ("multiple-sockets-not-allowed", {"policy": POLICY_BITS & ~(1 << 20)}),
    "S1 CXL": ("cxl-not-allowed", {"policy": POLICY_BITS | 1 << 21}),
    "S1 visible ciphertext": ("visible-ciphertext-not-allowed", {"policy": POLICY_BITS & ~(1 << 24)}),
    "S4 committed too low": ("committed-tcb-too-low", {"committed_tcb": tcb("Milan", snp=26)}),
    "S4 launch too low": ("launch-tcb-too-low", {"launch_tcb": tcb("Milan", microcode=218)}),
    "S4 provisional TCB": ("provisional-firmware-not-allowed", {"current_tcb": tcb("Milan", snp=28)}),
    "S4 provisional version": ("provisional-firmware-not-allowed", {"current_version": bytes([30, 55, 1])}),
    "S5 VMPL 1 (attestation-rs 67)": ("vmpl-not-allowed", {"vmpl": 1}),
    "S5 VMPL 2": ("vmpl-not-allowed", {"vmpl": 2}),
    "S5 VMPL 3": ("vmpl-not-allowed", {"vmpl": 3}),
    "S5 asked for by the host": ("vmpl-not-allowed", {"vmpl": 0xFFFFFFFF}),
    "S5 HOST_DATA": ("host-data-not-allowed", {"host_data": b"i" * 32}),
    "S5 ID_KEY_DIGEST": ("id-key-digest-not-allowed", {"id_key_digest": b"k" * 48}),
    "S5 AUTHOR_KEY_DIGEST": ("author-key-digest-not-allowed", {"flags": 1, "author_key_digest": b"k" * 48}),
    "S5 FAMILY_ID": ("family-id-not-allowed", {"family_id": b"f" * 16}),
    "S5 IMAGE_ID": ("image-id-not-allowed", {"image_id": b"f" * 16}),
    "S5 GUEST_SVN": ("security-version-too-low", {"guest_svn": 2}),
    "S6 alias check": ("alias-check-incomplete", {"platform_info": 0b000100}),
    "S6 SMT": ("smt-not-allowed", {"platform_info": 0b100101}),
    "S6 SMT by the guest's policy": ("smt-not-allowed", {"policy": POLICY_BITS | 1 << 16}),
}


@pytest.fixture(scope="module")
def strict(amd: SnpAuthority) -> Policy:
    return policy_for(believe(good(amd), amd.anchors("Milan")).claims, CONFIGURATION, pin_platform=True)


def good(amd: SnpAuthority, **values: int | bytes) -> Case:
    fields: dict[str, int | bytes] = {"policy": POLICY_BITS, "platform_info": 0b100100}
    return amd.evidence(crl=amd.crl("Milan"), **(fields | values))


def test_what_the_rule_was_written_for(amd: SnpAuthority, strict: Policy) -> None:
    verified = believe(good(amd), amd.anchors("Milan"))
    appraisal = appraise(verified, configuration=CONFIGURATION, report_data=BOUND, policy=strict, now=NOW)
    assert appraisal.expires_at == verified.expires_at


@pytest.mark.parametrize("case", SNP)
def test_one_thing_differs_in_a_report(amd: SnpAuthority, strict: Policy, case: str) -> None:
    code, values = SNP[case]
    refused(code, believe(good(amd, **values), amd.anchors("Milan")), strict, BOUND)


def test_an_older_firmware_with_its_own_certificate(amd: SnpAuthority, strict: Policy) -> None:
    """S4: reported below the minimum; the certificate is genuine for that level."""
    template = replace(
        amd.leaf_template("Milan", Signer.VCEK), extensions=leaf_extensions("Milan", Signer.VCEK, snp=23)
    )
    evidence, files = good(amd, reported_tcb=tcb("Milan", snp=23))
    older = Collateral({**files.files, "vek.der": amd.chain("Milan", leaf=template)["vek.der"]})
    refused("reported-tcb-too-low", believe((evidence, older), amd.anchors("Milan")), strict, BOUND)


def test_a_platform_that_went_back_to_older_firmware(amd: SnpAuthority) -> None:
    """S4: current below the minimum, which lies above what is reported."""
    newer = good(amd, current_tcb=tcb("Milan", snp=28))
    policy = policy_for(believe(newer, amd.anchors("Milan")).claims, CONFIGURATION, pin_platform=True)
    refused("current-tcb-too-low", believe(good(amd), amd.anchors("Milan")), policy, BOUND)


def test_another_chip_with_its_own_certificate(amd: SnpAuthority, strict: Policy) -> None:
    """An interposer in somebody's own machine attests as well as any: only an allow-list of chips keeps it out."""
    chip = chip_id("Milan", 0x77)
    template = replace(
        amd.leaf_template("Milan", Signer.VCEK), extensions=leaf_extensions("Milan", Signer.VCEK, chip=chip)
    )
    evidence, files = good(amd, chip_id=chip)
    other = Collateral({**files.files, "vek.der": amd.chain("Milan", leaf=template)["vek.der"]})
    refused("platform-not-allowed", believe((evidence, other), amd.anchors("Milan")), strict, BOUND)


def test_a_vlek_needs_the_rules_consent(amd: SnpAuthority, strict: Policy) -> None:
    """S2 (Microsoft's TEE verification library, 142)."""
    vlek = amd.evidence("Milan", Signer.VLEK, crl=amd.crl("Milan"), policy=POLICY_BITS, platform_info=0b100100)
    refused("vlek-not-allowed", believe(vlek, amd.anchors("Milan")), strict, BOUND)


def test_unchecked_revocation_needs_the_rules_consent(amd: SnpAuthority, strict: Policy) -> None:
    """S7 (attestation-go 12)."""
    evidence, files = good(amd)
    without = Collateral({name: data for name, data in files.files.items() if name != "crl.der"})
    refused("revocation-unchecked", believe((evidence, without), amd.anchors("Milan")), strict, BOUND)


# --- Nitro ---

USER_DATA = b"u" * 64


def nitro(aws: NitroAuthority, evidence: Evidence) -> VerifiedEvidence:
    return verify(evidence, Collateral(), aws.anchors(), NOW)


@pytest.fixture(scope="module")
def image(aws: NitroAuthority) -> Policy:
    return policy_for(nitro(aws, aws.evidence()).claims, CONFIGURATION)


DOCUMENTS: dict[str, tuple[str, dict[str, object]]] = {
    "A4 user data": ("report-data-mismatch", {"user_data": b"v" * 64}),
    "A4 in the nonce instead": ("report-data-mismatch", {"user_data": None, "nonce": USER_DATA}),
    "A4 in the public key instead": ("report-data-mismatch", {"user_data": b"", "public_key": USER_DATA}),
    "A5 PCR0": ("pcr0-not-allowed", {"pcrs": pcrs(pcr0=b"\x09" * 48)}),
    "A5 PCR1": ("pcr1-not-allowed", {"pcrs": pcrs(pcr1=b"\x09" * 48)}),
    "A5 PCR2 (keep 577)": ("pcr2-not-allowed", {"pcrs": pcrs(pcr2=b"\x09" * 48)}),
    "N1 debug, whose PCRs are zero": (
        "pcr0-not-allowed",
        {"pcrs": pcrs(pcr0=bytes(48), pcr1=bytes(48), pcr2=bytes(48))},
    ),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_one_thing_differs_in_a_document(aws: NitroAuthority, image: Policy, case: str) -> None:
    code, values = DOCUMENTS[case]
    appraise(nitro(aws, aws.evidence()), configuration=CONFIGURATION, report_data=USER_DATA, policy=image, now=NOW)
    refused(code, nitro(aws, aws.evidence(aws.content(**values))), image, USER_DATA)


def test_a_document_that_grew_old(aws: NitroAuthority, image: Policy) -> None:
    evidence = aws.evidence(aws.content(timestamp=int((NOW - 30) * 1000)))
    later = verify(evidence, Collateral(), aws.anchors(), NOW + 3600)
    with pytest.raises(Refused, match="evidence-too-old"):
        appraise(later, configuration=CONFIGURATION, report_data=USER_DATA, policy=image, now=NOW + 3600)
