"""Verify an SEV-SNP report: AMD's chain, the report's signature, and that both speak of one chip and one firmware.

Spec/attestation.md, section 4. What no policy may allow is refused here; everything else becomes a claim.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.attest import claim_names as names
from cloister.attest import x509
from cloister.attest.anchors import TrustAnchors
from cloister.attest.snp.certificates import (
    Chain,
    Leaf,
    Signer,
    check_revocation,
    collect,
    read_leaf,
    verify_chain,
)
from cloister.attest.snp.parse import (
    PLATFORM_ALIAS_CHECK_COMPLETE,
    PLATFORM_SMT,
    POLICY_CIPHERTEXT_HIDING,
    POLICY_CXL,
    POLICY_DEBUG,
    POLICY_MIGRATE_MA,
    POLICY_RESERVED_ONE,
    POLICY_RESERVED_ZERO,
    POLICY_SINGLE_SOCKET,
    POLICY_SMT,
    SnpReport,
    parse,
)
from cloister.attest.snp.tcb import Product, require_at_most
from cloister.attest.steps import Steps
from cloister.attest.types import (
    PROOF_OF_VERIFICATION,
    Claims,
    ClaimValue,
    Collateral,
    Evidence,
    TeeType,
    VerifiedEvidence,
)
from cloister.base.errors import InvalidInput, Refused, Tampered
from cloister.crypto.digest import same

PLAN: Final = (
    ("parse", "attestation.md 4.1"),
    ("signing-key", "attestation.md 4.2"),
    ("guest-policy", "attestation.md 4.8"),
    ("certificates", "attestation.md 4.12"),
    ("chain", "attestation.md 4.3"),
    ("validity", "attestation.md 2.5"),
    ("revocation", "attestation.md 4.4"),
    ("signature", "attestation.md 4.7"),
    ("product", "attestation.md 4.9"),
    ("identity", "attestation.md 4.5"),
    ("tcb", "attestation.md 4.6"),
)

P384_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)
_CHIP_ID_SIZE: Final = 64


def verify(
    evidence: Evidence, collateral: Collateral, anchors: TrustAnchors, now: float, steps: Steps
) -> VerifiedEvidence:
    """Believe a report, or say why not.

    :param collateral: ``vek.der``, ``ask_ark.pem`` unless they came with the evidence; ``crl.der`` if there is one.
    :param now: seconds since the Unix epoch.
    :raises InvalidInput: report, certificate or CRL is malformed.
    :raises Refused: a clause of section 4 is not satisfied.
    :raises Tampered: ``certificate-signature``, ``snp-signature``.
    """
    steps.extend(PLAN)
    with steps.step("parse"):
        if evidence.tee is not TeeType.SEV_SNP:
            raise InvalidInput("evidence-tee", f"evidence of {evidence.tee} is not an SEV-SNP report")
        report = parse(evidence.body)
    with steps.step("signing-key"):
        signer = _signer(report)
        _check_key_flags(report)
    with steps.step("guest-policy"):
        _check_guest_policy(report.policy)
    with steps.step("certificates"):
        chain = collect(evidence, collateral, signer)
    with steps.step("chain"):
        product = verify_chain(chain, signer, anchors)
    with steps.step("validity"):
        for what, certificate in chain.named:
            x509.check_window(certificate.not_before, certificate.not_after, now, what)
    if chain.crl is None:
        steps.skip("revocation", "no-crl", "no CRL was given; the claim revocation_checked is false")
    else:
        with steps.step("revocation"):
            check_revocation(chain.crl, chain, now)
    with steps.step("signature"):
        check_signature(report, chain.leaf)
    with steps.step("product", f"{product.name}, {signer.name}"):
        leaf = read_leaf(chain.leaf, signer, product)
        _check_cpu(report, product)
    with steps.step("identity"):
        _check_identity(report, leaf)
    with steps.step("tcb"):
        _check_tcb(report, leaf, product)
    ends = [certificate.not_after for _, certificate in chain.named]
    if chain.crl is not None:
        ends.append(chain.crl.next_update)
    claims = _claims(report, chain, leaf, signer, product)
    return VerifiedEvidence(claims, verified_at=now, expires_at=min(ends), proof=PROOF_OF_VERIFICATION)


def _signer(report: SnpReport) -> Signer:
    for signer in Signer:
        if signer.signing_key == report.signing_key:
            return signer
    if report.signing_key == 7:
        raise Refused("snp-signing-key-none", "the report says that no key signed it (SIGNING_KEY 7)")
    raise Refused("snp-signing-key-reserved", f"SIGNING_KEY {report.signing_key} is reserved")


def _check_key_flags(report: SnpReport) -> None:
    """Clause 4.10."""
    if report.author_key_en and not any(report.author_key_digest):
        raise Refused("snp-author-key-without-digest", "AUTHOR_KEY_EN is set and AUTHOR_KEY_DIGEST is zero")
    if report.mask_chip_key and any(report.chip_id):
        raise Refused("snp-masked-chip-id", "MASK_CHIP_KEY is set and CHIP_ID is not zero")


def _check_guest_policy(policy: int) -> None:
    """Clause 4.8."""
    if not policy & POLICY_RESERVED_ONE:
        raise Refused("snp-policy-bit-17", "bit 17 of the guest policy is 0, and must be 1")
    if policy & POLICY_RESERVED_ZERO:
        raise Refused("snp-policy-unknown-bits", "the guest policy has bits unknown here (26 to 63)")
    if policy & POLICY_MIGRATE_MA:
        raise Refused("snp-migration-agent", "the guest policy allows a migration agent, which could hand the guest on")


def check_signature(report: SnpReport, leaf: x509.Certificate) -> None:
    """Clause 4.7.

    :raises Refused: ``snp-signature-range``, ``snp-leaf-key``.
    :raises Tampered: ``snp-signature``.
    """
    if not (0 < report.r < P384_ORDER and 0 < report.s < P384_ORDER):
        raise Refused("snp-signature-range", "R or S of the signature is zero or not below the order of P-384")
    key = leaf.public_key
    if not isinstance(key, ec.EllipticCurvePublicKey) or not x509.is_p384(key):
        raise Refused("snp-leaf-key", "the VCEK or VLEK has no key on P-384")
    try:
        key.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise Tampered("snp-signature", "the report is not signed by the VCEK or VLEK that was given") from error


def _check_cpu(report: SnpReport, product: Product) -> None:
    if report.cpuid_family is None or report.cpuid_model is None:
        return  # version 2 does not say
    if not product.has_cpu(report.cpuid_family, report.cpuid_model):
        raise Refused(
            "snp-cpu-mismatch",
            f"the report is of family {report.cpuid_family:x}h model {report.cpuid_model:x}h, no {product.name}",
        )


def _check_identity(report: SnpReport, leaf: Leaf) -> None:
    if leaf.hwid is not None and not same(leaf.hwid.ljust(_CHIP_ID_SIZE, b"\0"), report.chip_id):
        raise Refused("snp-chip-id", "CHIP_ID of the report is not the HWID of the VCEK: another chip's certificate")


def _check_tcb(report: SnpReport, leaf: Leaf, product: Product) -> None:
    """Clauses 4.6 and 4.11."""
    if not product.has_only_its_levels(report.reported_tcb):
        raise Refused("snp-tcb-layout", f"REPORTED_TCB has bytes set that {product.name} has no level for")
    reported = product.tcb(report.reported_tcb)
    for part, level in leaf.levels.items():
        if reported[part] != level:
            raise Refused(
                "snp-tcb-mismatch",
                f"REPORTED_TCB has {part} {reported[part]}, the certificate is for {level}",
                hint="Fetch the certificate for the TCB version that the report names.",
            )
    current = product.tcb(report.current_tcb)
    require_at_most(reported, current, ("REPORTED_TCB", "CURRENT_TCB"))
    require_at_most(product.tcb(report.committed_tcb), current, ("COMMITTED_TCB", "CURRENT_TCB"))


def _claims(report: SnpReport, chain: Chain, leaf: Leaf, signer: Signer, product: Product) -> Claims:
    policy, platform = report.policy, report.platform_info
    specific: dict[str, ClaimValue] = {
        names.SNP_PRODUCT: product.name,
        names.SNP_REPORT_VERSION: report.version,
        names.SNP_SIGNER: signer.label,
        names.SNP_REVOCATION_CHECKED: chain.crl is not None,
        names.SNP_VMPL: report.vmpl,
        names.SNP_POLICY: policy,
        names.SNP_PLATFORM_INFO: platform,
        names.SMT: bool(platform & PLATFORM_SMT),
        names.SNP_ALIAS_CHECK_COMPLETE: bool(platform & PLATFORM_ALIAS_CHECK_COMPLETE),
        names.SNP_POLICY_SMT: bool(policy & POLICY_SMT),
        names.SNP_POLICY_SINGLE_SOCKET: bool(policy & POLICY_SINGLE_SOCKET),
        names.SNP_POLICY_CXL: bool(policy & POLICY_CXL),
        names.SNP_POLICY_CIPHERTEXT_HIDING: bool(policy & POLICY_CIPHERTEXT_HIDING),
        names.SNP_HOST_DATA: report.host_data,
        names.SNP_ID_KEY_DIGEST: report.id_key_digest,
        names.SNP_AUTHOR_KEY_DIGEST: report.author_key_digest,
        names.SNP_FAMILY_ID: report.family_id,
        names.SNP_IMAGE_ID: report.image_id,
        names.SNP_FIRMWARE_VERSION: str(report.current_version),
        names.SNP_PROVISIONAL_FIRMWARE: (
            report.current_tcb != report.committed_tcb or report.current_version != report.committed_version
        ),
    }
    if leaf.csp_id is not None:
        specific[names.SNP_CSP_ID] = leaf.csp_id
    if report.cpuid_family is not None:
        specific[names.SNP_CPUID] = f"{report.cpuid_family:x}-{report.cpuid_model:x}-{report.cpuid_stepping:x}"
    if report.launch_mit_vector is not None and report.current_mit_vector is not None:
        specific[names.SNP_LAUNCH_MITIGATIONS] = report.launch_mit_vector
        specific[names.SNP_CURRENT_MITIGATIONS] = report.current_mit_vector
    versions = (report.reported_tcb, report.committed_tcb, report.current_tcb, report.launch_tcb)
    for kind, version in zip(names.TCB_KINDS, versions, strict=True):
        for part, level in product.tcb(version).items():
            specific[names.snp_tcb(kind, part)] = level
    return Claims(
        tee=TeeType.SEV_SNP,
        measurements=MappingProxyType({"measurement": report.measurement}),
        report_data=report.report_data,
        debug=bool(policy & POLICY_DEBUG),
        tcb_status="UpToDate",
        advisories=(),
        security_version=report.guest_svn,
        platform_id=report.chip_id if any(report.chip_id) else b"",
        specific=MappingProxyType(specific),
        configuration_digest=report.host_data if any(report.host_data) else b"",
    )
