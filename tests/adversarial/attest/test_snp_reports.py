"""SEV-SNP reports that must be refused although their signatures are genuine: each with its own code.

The numbers (A1, S3, ...) are those of the list of negative cases; names in parentheses are the projects in which a
verifier let the case pass.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest import claim_names as names
from cloister.attest.snp.certificates import Signer
from cloister.attest.snp.tcb import PRODUCTS
from cloister.attest.snp.verify import P384_ORDER
from cloister.attest.steps import Steps
from cloister.attest.types import TeeType, VerifiedEvidence
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError
from cloister.testing.evidence_nitro import NitroAuthority
from cloister.testing.evidence_snp import (
    DAY,
    LEVELS,
    NOW,
    Case,
    SnpAuthority,
    build_report,
    chip_id,
    patch,
    sign_report,
    tcb,
)
from cloister.testing.refusals import require_refusal

BIT_17 = 1 << 17
VLEK = Signer.VLEK


def check(amd: SnpAuthority, case: Case, product: str = "Milan", steps: Steps | None = None) -> VerifiedEvidence:
    return verify(*case, amd.anchors(product), NOW, steps)


def refused(amd: SnpAuthority, code: str, case: Case, product: str = "Milan") -> None:
    require_refusal(code, *case, amd.anchors(product), NOW)


# --- the same evidence, right: every version, product and kind of key ---


@pytest.mark.parametrize("signer", Signer)
@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("product", sorted(PRODUCTS))
def test_right_evidence_verifies(amd: SnpAuthority, product: str, version: int, signer: Signer) -> None:
    found = check(amd, amd.evidence(product, signer, version=version, crl=amd.crl(product)), product)
    specific = found.claims.specific
    assert specific[names.SNP_PRODUCT] == product
    assert specific[names.SNP_SIGNER] == signer.label
    assert specific[names.SNP_REVOCATION_CHECKED] is True
    levels = {part: specific.get(names.snp_tcb("reported", part)) for part in names.TCB_PARTS}
    assert levels == {part: LEVELS[part] if part in PRODUCTS[product].layout else None for part in names.TCB_PARTS}
    assert (names.SNP_LAUNCH_MITIGATIONS in specific) is (version == 5)
    assert (names.SNP_CPUID in specific) is (version >= 3)
    assert found.claims.measurements == {"measurement": b"m" * 48}
    assert found.claims.report_data == b"r" * 64
    assert found.claims.security_version == 3
    assert found.claims.configuration_digest == b"h" * 32
    assert found.expires_at == NOW + 200 * DAY if signer is VLEK else NOW + 300 * DAY


def test_what_a_policy_decides_is_a_claim_and_no_refusal(amd: SnpAuthority) -> None:
    """S1 DEBUG, S5 VMPL, S6 alias check and SMT, unknown PLATFORM_INFO bits: verified, and said."""
    claims = check(
        amd,
        amd.evidence(policy=BIT_17 | 1 << 19 | 1 << 20 | 1 << 24, vmpl=0xFFFFFFFF, platform_info=1 << 63 | 1),
    ).claims
    assert claims.debug is True
    assert claims.specific[names.SNP_VMPL] == 0xFFFFFFFF
    assert claims.specific[names.SNP_ALIAS_CHECK_COMPLETE] is False
    assert claims.specific[names.SMT] is True
    assert claims.specific[names.SNP_POLICY_SMT] is False
    assert claims.specific[names.SNP_POLICY_SINGLE_SOCKET] is True
    assert claims.specific[names.SNP_POLICY_CXL] is False
    assert claims.specific[names.SNP_POLICY_CIPHERTEXT_HIDING] is True


def test_provisional_firmware_is_a_claim(amd: SnpAuthority) -> None:
    """S4: COMMITTED differs from CURRENT, in TCB or in version."""
    for values in ({"current_tcb": tcb("Milan", snp=28)}, {"current_version": bytes([30, 55, 1])}):
        claims = check(amd, amd.evidence(**values)).claims
        assert claims.specific[names.SNP_PROVISIONAL_FIRMWARE] is True
    assert check(amd, amd.evidence()).claims.specific[names.SNP_PROVISIONAL_FIRMWARE] is False


# --- the report itself ---

REPORTS: dict[str, tuple[str, dict[str, int | bytes]]] = {
    "S1 bit 17 is 0": ("snp-policy-bit-17", {"policy": 1 << 16}),
    "S1 migration agent": ("snp-migration-agent", {"policy": BIT_17 | 1 << 18}),
    "S1 unknown policy bit 26": ("snp-policy-unknown-bits", {"policy": BIT_17 | 1 << 26}),
    "S1 unknown policy bit 63": ("snp-policy-unknown-bits", {"policy": BIT_17 | 1 << 63}),
    "S2 signed by no key": ("snp-signing-key-none", {"flags": 7 << 2}),
    "S2 reserved signing key": ("snp-signing-key-reserved", {"flags": 2 << 2}),
    "S2 author key without digest": ("snp-author-key-without-digest", {"flags": 1}),
    "S3 another chip": ("snp-chip-id", {"chip_id": chip_id("Milan", 0x5D)}),
    "S3 no chip at all": ("snp-chip-id", {"chip_id": bytes(64)}),
    "S3 CPU of Genoa": ("snp-cpu-mismatch", {"cpuid_model": 0x11}),
    "S3 CPU of Bergamo": ("snp-cpu-mismatch", {"cpuid_model": 0xA0}),
    "S3 CPU of Turin": ("snp-cpu-mismatch", {"cpuid_family": 0x1A}),
    "S4 reported above current": ("snp-tcb-order", {"current_tcb": tcb("Milan", snp=26)}),
    "S4 committed above current": ("snp-tcb-order", {"committed_tcb": tcb("Milan", microcode=220)}),
    "S5 no such VMPL": ("snp-vmpl-range", {"vmpl": 4}),
    "S6 masked and not zero": ("snp-masked-chip-id", {"flags": 2}),
    "S8 no signature algorithm": ("snp-signature-algorithm", {"signature_algo": 0}),
    "S8 another signature algorithm": ("snp-signature-algorithm", {"signature_algo": 2}),
    "S8 version 1": ("snp-report-version", {"version": 1}),
    "S8 version 6": ("snp-report-version", {"version": 6}),
}
for _part in PRODUCTS["Milan"].layout:
    for _step in (-1, 1):
        _levels = {_part: LEVELS[_part] + _step}
        REPORTS[f"S3 reported {_part} {_step:+}"] = ("snp-tcb-mismatch", {"reported_tcb": tcb("Milan", **_levels)})
for _at in range(2, 6):
    _version = patch(tcb("Milan"), _at, b"\x01")
    REPORTS[f"S3 reported byte {_at}"] = ("snp-tcb-layout", {"reported_tcb": _version, "current_tcb": _version})


@pytest.mark.parametrize("case", REPORTS)
def test_a_signed_report_that_no_policy_may_accept(amd: SnpAuthority, case: str) -> None:
    code, values = REPORTS[case]
    refused(amd, code, amd.evidence(**values))


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_reserved_bytes_that_are_not_zero(amd: SnpAuthority, version: int) -> None:
    """S8, at every reserved byte of every version."""
    reserved = [*range(0x4C, 0x50), *range(0x188 if version < 3 else 0x18B, 0x1A0), 0x1EB, 0x1EF]
    reserved += [*range(0x1F8 if version < 5 else 0x208, 0x2A0), *range(0x2A0 + 144, 1184)]
    files = amd.chain("Milan")
    body = build_report("Milan", version=version)
    for at in reserved:
        refused(amd, "snp-reserved-not-zero", amd.evidence(body=patch(body, at, b"\x80"), files=files))
    for bit in range(5, 32):
        flagged = amd.evidence(body=patch(body, 0x48, (1 << bit).to_bytes(4, "little")), files=files)
        refused(amd, "snp-reserved-not-zero", flagged)


def test_a_signature_outside_of_its_range(amd: SnpAuthority) -> None:
    """S8: R and S of 0, n, n + r; with anything in bytes 48 to 71."""
    evidence, files = amd.evidence()
    body = evidence.body
    for at in (0x2A0, 0x2A0 + 72):
        for value in (0, P384_ORDER, P384_ORDER + 1, 2**384 - 1):
            wrong = patch(body, at, value.to_bytes(72, "little"))
            refused(amd, "snp-signature-range", (replace(evidence, body=wrong), files))
        for byte in range(48, 72):
            wrong = patch(body, at + byte, b"\x01")
            refused(amd, "snp-signature-encoding", (replace(evidence, body=wrong), files))


def test_the_other_signature_of_the_same_report_is_no_other_report(amd: SnpAuthority) -> None:
    """Clause 4.7: (R, n - S) verifies, so bytes of evidence identify nothing; the claims are the same."""
    evidence, files = amd.evidence()
    s = int.from_bytes(evidence.body[0x2A0 + 72 : 0x2A0 + 144], "little")
    other = replace(evidence, body=patch(evidence.body, 0x2A0 + 72, (P384_ORDER - s).to_bytes(72, "little")))
    assert check(amd, (other, files)) == check(amd, (evidence, files))


# --- evidence of another TEE, or label ---


def test_a_report_under_another_label(amd: SnpAuthority, aws: NitroAuthority) -> None:
    """A6."""
    evidence, collateral = amd.evidence()
    for tee in (TeeType.SGX, TeeType.TDX, TeeType.NITRO, TeeType.SIMULATION):
        with pytest.raises(CloisterError):
            check(amd, (replace(evidence, tee=tee), collateral))
    refused(amd, "snp-report-length", (replace(aws.evidence(), tee=TeeType.SEV_SNP), collateral))


def test_a_report_signed_by_another_chips_key(amd: SnpAuthority) -> None:
    """A1, A7: the certificate is genuine, the signature is by somebody else."""
    evidence, collateral = amd.evidence()
    forged = sign_report(evidence.body, ec.generate_private_key(ec.SECP384R1()))
    refused(amd, "snp-signature", (replace(evidence, body=forged), collateral))
