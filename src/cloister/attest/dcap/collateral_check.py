"""Intel collateral by itself: signatures, paths, windows, revocation (spec/attestation.md, 3.4, 3.5, 8.2).

The same paths are verified again with a quote; nothing here replaces that.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.attest.anchors import TrustAnchors
from cloister.attest.dcap import chain as paths
from cloister.attest.dcap.collateral import (
    QE_IDENTITY_VERSION,
    TCB_INFO_VERSION,
    DcapCollateral,
    SignedWindow,
)
from cloister.attest.types import TeeType
from cloister.base.errors import InvalidInput, Refused, Tampered

_SERVICE: Final = "Version 4 of Intel's certification service gives it."


def roots_of(anchors: TrustAnchors) -> tuple[x509.Certificate, ...]:
    """The pinned Intel roots.

    :raises InvalidInput: ``anchor-malformed``.
    """
    try:
        return tuple(x509.load_der_x509_certificate(der) for der in anchors.intel_root_der)
    except ValueError as error:
        raise InvalidInput("anchor-malformed", "a pinned Intel root is not a certificate") from error


def check_kind(tee: TeeType, parts: DcapCollateral, now: float) -> None:
    """Clause 3.5: of this TEE, and valid now.

    :raises Refused: ``tcb-info-version, qe-identity-version, tcb-info-tee, qe-identity-tee``, ``tcb-info-...`` and
        ``qe-identity-...`` with ``expired`` or ``not-yet-valid``.
    """
    wanted = ("TDX", "TD_QE") if tee is TeeType.TDX else ("SGX", "QE")
    if parts.tcb_info.version != TCB_INFO_VERSION:
        raise Refused(
            "tcb-info-version",
            f"TCB info is of version {parts.tcb_info.version}; version {TCB_INFO_VERSION} is understood",
            hint=_SERVICE,
        )
    if parts.qe_identity.version != QE_IDENTITY_VERSION:
        raise Refused(
            "qe-identity-version",
            f"the QE identity is of version {parts.qe_identity.version}; version {QE_IDENTITY_VERSION} is understood",
            hint=_SERVICE,
        )
    if parts.tcb_info.tee != wanted[0]:
        raise Refused("tcb-info-tee", f"TCB info is of {parts.tcb_info.tee[:16]!r}, not {wanted[0]!r}")
    if parts.qe_identity.id != wanted[1]:
        raise Refused("qe-identity-tee", f"the QE identity is of {parts.qe_identity.id[:16]!r}, not {wanted[1]!r}")
    for window, code, what in (
        (parts.tcb_info.window, "tcb-info", "TCB info"),
        (parts.qe_identity.window, "qe-identity", "the QE identity"),
    ):
        paths.check_window(_as_window(window), now, code, what)


def _as_window(window: SignedWindow) -> paths.Window:
    return paths.Window(window.issued, window.next_update)


def signers(
    parts: DcapCollateral, roots: tuple[x509.Certificate, ...], root_crl: x509.CertificateRevocationList, now: float
) -> tuple[tuple[x509.Certificate, x509.Certificate], ...]:
    """Clauses 3.4, 3.5, 3.12: who signed TCB info and QE identity, in this order, each with the root it ends in."""
    found: list[tuple[x509.Certificate, x509.Certificate]] = []
    for pem, what in (
        (parts.tcb_info_issuer_chain, "TCB info's issuer chain"),
        (parts.qe_identity_issuer_chain, "the QE identity's issuer chain"),
    ):
        if found and pem == parts.tcb_info_issuer_chain:  # Intel signs both with one certificate
            found.append(found[0])
            continue
        signer, root = paths.tcb_signer(paths.read_chain(pem.encode(), what), roots, now, what)
        paths.check_revoked(root_crl, signer, "tcb-signer-revoked", "the TCB signer")
        found.append((signer, root))
    return tuple(found)


def check_parts(tee: TeeType, parts: DcapCollateral, anchors: TrustAnchors, now: float) -> float:
    """Check collateral without a quote; when its earliest part runs out, Unix seconds.

    :raises InvalidInput: malformed.
    :raises Refused: of another TEE, expired, not yet valid, revoked, not under a pinned root.
    :raises Tampered: ``chain-forged, crl-forged, tcb-info-forged, qe-identity-forged``.
    """
    check_kind(tee, parts, now)
    roots = roots_of(anchors)
    issuer_chain = paths.read_chain(parts.pck_crl_issuer_chain.encode(), "the PCK CRL's issuer chain")
    issuer, root = paths.pck_authority(issuer_chain, roots, now)
    root_crl = paths.read_crl(parts.root_ca_crl, root, now, "the root CRL")
    pck_crl = paths.read_crl(parts.pck_crl, issuer, now, "the PCK CRL")
    paths.check_revoked(root_crl, root, "root-revoked", "the Intel root")
    paths.check_revoked(root_crl, issuer, "pck-ca-revoked", "the PCK CA")
    pairs = signers(parts, roots, root_crl, now)
    if any(anchor != root for _, anchor in pairs):
        raise Refused("root-not-pinned", "parts of the collateral end in different roots")
    _check_signed(pairs[0][0], parts.tcb_info_text, parts.tcb_info_signature, "tcb-info-forged")
    _check_signed(pairs[1][0], parts.qe_identity_text, parts.qe_identity_signature, "qe-identity-forged")
    ends = [paths.window_of(cert).end for cert in (root, issuer, *(signer for signer, _ in pairs))]
    ends += [paths.crl_window(crl).end for crl in (root_crl, pck_crl)]
    return min(*ends, parts.tcb_info.window.next_update, parts.qe_identity.window.next_update)


def _check_signed(signer: x509.Certificate, text: str, signature: bytes, code: str) -> None:
    key = signer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Refused("chain-shape", "the TCB signer does not hold an elliptic-curve key")
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(der, text.encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise Tampered(code, "a document of the collateral is not signed by the TCB signer") from error
