"""Verify a Nitro document: AWS's chain, the signature, and that it is complete (spec/attestation.md, section 5)."""

from __future__ import annotations

import hashlib
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.attest import claim_names as names
from cloister.attest import x509
from cloister.attest.anchors import TrustAnchors
from cloister.attest.nitro.parse import NitroDocument, parse
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
from cloister.base.limits import CLOCK_SKEW_S

PLAN: Final = (
    ("parse", "attestation.md 5.1"),
    ("certificates", "attestation.md 5.2"),
    ("chain", "attestation.md 5.3"),
    ("validity", "attestation.md 2.5"),
    ("signature", "attestation.md 5.4"),
    ("pcrs", "attestation.md 5.5"),
    ("timestamp", "attestation.md 5.6"),
)
_IMAGE_PCRS: Final = (0, 1, 2)  # enclave image, kernel and boot, application


def verify(
    evidence: Evidence,
    collateral: Collateral,  # noqa: ARG001  # every verifier takes it; a Nitro document brings all it needs
    anchors: TrustAnchors,
    now: float,
    steps: Steps,
) -> VerifiedEvidence:
    """Believe a document, or say why not.

    :param now: seconds since the Unix epoch.
    :raises InvalidInput: document or certificate is malformed.
    :raises Refused: a clause of section 5 is not satisfied.
    :raises Tampered: ``certificate-signature``, ``nitro-signature``.
    """
    steps.extend(PLAN)
    with steps.step("parse"):
        if evidence.tee is not TeeType.NITRO:
            raise InvalidInput("evidence-tee", f"evidence of {evidence.tee} is not a Nitro document")
        document = parse(evidence.body)
    with steps.step("certificates"):
        issuers = tuple(x509.load_certificate(der, "a CA of the bundle") for der in document.cabundle)
        leaf = x509.load_certificate(document.certificate, "the enclave's certificate")
    with steps.step("chain"):
        _check_chain(issuers, leaf, anchors)
    with steps.step("validity"):
        for at, certificate in enumerate(issuers):
            x509.check_window(certificate.not_before, certificate.not_after, now, _name(at))
        x509.check_window(leaf.not_before, leaf.not_after, now, "the enclave's certificate")
    with steps.step("signature"):
        check_signature(document, leaf)
    with steps.step("pcrs"):
        debug = _is_debug(document)
    with steps.step("timestamp"):
        _check_timestamp(document, leaf, now)
    return VerifiedEvidence(
        claims=_claims(document, debug=debug),
        verified_at=now,
        expires_at=min(certificate.not_after for certificate in (*issuers, leaf)),
        proof=PROOF_OF_VERIFICATION,
    )


def _name(at: int) -> str:
    return "the root" if at == 0 else f"intermediate {at}"


def _check_chain(issuers: tuple[x509.Certificate, ...], leaf: x509.Certificate, anchors: TrustAnchors) -> None:
    """Clause 5.3, from the root down, so that no key is used before it was vouched for."""
    if hashlib.sha256(issuers[0].der).digest() not in anchors.nitro_root:
        raise Refused("nitro-root-not-pinned", "the first certificate of the bundle is not the pinned AWS root")
    for at, issuer in enumerate(issuers):
        if at > 0:
            x509.check_signed(issuer, issuers[at - 1], algorithm=x509.ECDSA_SHA384, what=_name(at), by=_name(at - 1))
        x509.check_issuer(issuer, below=len(issuers) - 1 - at, what=_name(at))
    what = "the enclave's certificate"
    x509.check_signed(leaf, issuers[-1], algorithm=x509.ECDSA_SHA384, what=what, by=_name(len(issuers) - 1))
    x509.check_leaf(leaf, what)
    if leaf.key_usage is None:
        raise Refused("certificate-key-usage", f"{what} does not say that it may sign")


def check_signature(document: NitroDocument, leaf: x509.Certificate) -> None:
    """Clause 5.4.

    :raises Refused: ``nitro-leaf-key``.
    :raises Tampered: ``nitro-signature``.
    """
    key = leaf.public_key
    if not isinstance(key, ec.EllipticCurvePublicKey) or not x509.is_p384(key):
        raise Refused("nitro-leaf-key", "the enclave's certificate has no key on P-384")
    try:
        key.verify(encode_dss_signature(document.r, document.s), document.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise Tampered("nitro-signature", "the document is not signed by the enclave's certificate") from error


def _is_debug(document: NitroDocument) -> bool:
    """Clause 5.5: the hypervisor reports the image's PCRs of a debug enclave as zero, all or none."""
    missing = [f"PCR{index}" for index in _IMAGE_PCRS if index not in document.pcrs]
    if missing:
        raise Refused("nitro-pcr-missing", f"the document lacks {', '.join(missing)}")
    zero = [not any(document.pcrs[index]) for index in _IMAGE_PCRS]
    if any(zero) and not all(zero):
        raise Refused("nitro-pcr-zero", "some of PCR0, PCR1 and PCR2 are zero and some are not")
    return all(zero)


def _check_timestamp(document: NitroDocument, leaf: x509.Certificate, now: float) -> None:
    """Clause 5.6. A leaf is issued when its enclave needs one, so an older document is not of this leaf."""
    moment = document.timestamp_ms / 1000
    if moment > now + CLOCK_SKEW_S:
        raise Refused("nitro-timestamp-future", "the document's timestamp is ahead of the time of verification")
    if moment < leaf.not_before - CLOCK_SKEW_S:
        raise Refused(
            "nitro-timestamp-before-certificate",
            "the document's timestamp is before the enclave's certificate; it counts milliseconds",
        )


def _claims(document: NitroDocument, *, debug: bool) -> Claims:
    specific: dict[str, ClaimValue] = {
        names.NITRO_MODULE_ID: document.module_id,
        names.NITRO_TIMESTAMP_MS: document.timestamp_ms,
    }
    if document.nonce is not None:
        specific[names.NITRO_NONCE] = document.nonce
    if document.public_key is not None:
        specific[names.NITRO_PUBLIC_KEY] = document.public_key
    return Claims(
        tee=TeeType.NITRO,
        measurements=MappingProxyType({f"pcr{index}": value for index, value in document.pcrs.items()}),
        report_data=document.user_data or b"",
        debug=debug,
        tcb_status="UpToDate",
        advisories=(),
        security_version=0,
        platform_id=b"",
        specific=MappingProxyType(specific),
        configuration_digest=b"",
    )
