"""Intel's certificate paths and revocation lists (spec/attestation.md, clauses 2.4, 2.5, 3.4, 3.5).

Intel's hierarchy has a fixed shape: root, then either "TCB Signing" (signs TCB info and QE identity), or a PCK CA
(processor or platform), then the PCK certificate. The shape is checked as it is, with names, so that a PCK key can
never sign collateral. dcap-qvl verifies the same paths again; this module gives each failure its own code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloister.base.errors import InvalidInput, Refused, Tampered

TCB_SIGNER: Final = "Intel SGX TCB Signing"
PCK: Final = "Intel SGX PCK Certificate"
PCK_CAS: Final = {"Intel SGX PCK Processor CA": "processor", "Intel SGX PCK Platform CA": "platform"}
_BLOCK: Final = re.compile(rb"-----BEGIN CERTIFICATE-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END CERTIFICATE-----[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class PckPath:
    """A verified path from a PCK certificate to a pinned root."""

    leaf: x509.Certificate
    issuer: x509.Certificate
    root: x509.Certificate


@dataclass(frozen=True, slots=True)
class Window:
    """A moment before which and one after which something does not hold; Unix seconds, both ends inside."""

    start: float
    end: float


def read_chain(pem: bytes, what: str, *, most: int = 3) -> tuple[x509.Certificate, ...]:
    """PEM text of one to ``most`` certificates, white space between them; quotes may end it with zero bytes.

    :raises InvalidInput: ``chain-malformed``.
    """
    text = pem.rstrip(b"\x00")
    position = 0
    chain: list[x509.Certificate] = []
    while position < len(text):
        block = _BLOCK.match(text, position)
        if block is None or len(chain) == most:
            raise InvalidInput("chain-malformed", f"{what} is not PEM text of at most {most} certificates")
        try:
            cert = x509.load_pem_x509_certificate(block.group())
            _ask(cert.subject, cert.issuer, cert.serial_number, cert.not_valid_before_utc, cert.not_valid_after_utc)
            _ask(cert.extensions, cert.public_key(), cert.signature_hash_algorithm)
        except Exception as error:  # any failure of the library on hostile bytes is the sender's
            raise InvalidInput("chain-malformed", f"{what} holds something that is not a certificate") from error
        chain.append(cert)
        position = block.end()
    if not chain:
        raise InvalidInput("chain-malformed", f"{what} holds no certificate")
    return tuple(chain)


def _ask(*_fields: object) -> None:
    """The library reads a field when it is asked for: ask for all that are used, where failure is caught."""


def pem(chain: tuple[x509.Certificate, ...]) -> str:
    """The canonical PEM text of a chain, so that every reader sees the same certificates."""
    return b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in chain).decode()


def der(cert: x509.Certificate) -> bytes:
    """The certificate's own bytes."""
    return cert.public_bytes(serialization.Encoding.DER)


def window_of(cert: x509.Certificate) -> Window:
    """Validity of a certificate."""
    return Window(cert.not_valid_before_utc.timestamp(), cert.not_valid_after_utc.timestamp())


def check_window(window: Window, now: float, code: str, what: str) -> None:
    """Clause 2.5.

    :raises Refused: ``<code>-not-yet-valid``, ``<code>-expired``.
    """
    if now < window.start:
        raise Refused(f"{code}-not-yet-valid", f"{what} is valid from {window.start:.0f} on; the time is {now:.0f}")
    if now > window.end:
        raise Refused(f"{code}-expired", f"{what} ran out at {window.end:.0f}; the time is {now:.0f}")


def _common_name(name: x509.Name) -> str:
    values = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if len(values) == 1 else ""


def _same_key(a: x509.Certificate, b: x509.Certificate) -> bool:
    def spki(cert: x509.Certificate) -> bytes:
        return cert.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    return a.subject == b.subject and spki(a) == spki(b)


def pinned_root(
    chain: tuple[x509.Certificate, ...], anchors: tuple[x509.Certificate, ...], what: str
) -> tuple[tuple[x509.Certificate, ...], x509.Certificate]:
    """The chain without its root, and the anchor it ends in (clause 2.4).

    A re-issued root with the pinned name and key stands for the pinned one; the pinned one is used.

    :raises Refused: ``root-not-pinned``.
    """
    top = chain[-1]
    for anchor in anchors:
        if _same_key(top, anchor):
            return chain[:-1], anchor
    for anchor in anchors:  # the root itself need not travel with the chain
        if top.issuer == anchor.subject and top.subject != top.issuer and _issued(top, anchor):
            return chain, anchor
    raise Refused("root-not-pinned", f"{what} does not end in a pinned Intel root")


def _issued(cert: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_issued(cert: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    if not _issued(cert, issuer):
        raise Tampered("chain-forged", f"{what} was not signed by the certificate above it")


def _check_authority(cert: x509.Certificate, what: str) -> None:
    try:
        constraints = cert.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise Refused("chain-not-a-ca", f"{what} does not say that it is a CA") from error
    if not constraints.ca or not usage.key_cert_sign:
        raise Refused("chain-not-a-ca", f"{what} is not a CA")


def _check_leaf(cert: x509.Certificate, what: str) -> None:
    if not isinstance(cert.public_key(), ec.EllipticCurvePublicKey):
        raise Refused("chain-shape", f"{what} does not hold an elliptic-curve key")


def tcb_signer(
    chain: tuple[x509.Certificate, ...], anchors: tuple[x509.Certificate, ...], now: float, what: str
) -> tuple[x509.Certificate, x509.Certificate]:
    """Verify the path of TCB info's or QE identity's signer: the TCB signing certificate directly under the root.

    :returns: the signer, the anchor.
    :raises Refused: ``root-not-pinned, tcb-signer-name, chain-shape, tcb-signer-expired, tcb-signer-not-yet-valid``.
    :raises Tampered: ``chain-forged``.
    """
    path, root = pinned_root(chain, anchors, what)
    if len(path) != 1:
        raise Refused("chain-shape", f"{what} is not one certificate under the root")
    if _common_name(path[0].subject) != TCB_SIGNER:
        raise Refused("tcb-signer-name", f"{what} is signed by something other than {TCB_SIGNER!r}")
    _check_leaf(path[0], what)
    _check_issued(path[0], root, what)
    check_window(window_of(path[0]), now, "tcb-signer", what)
    check_window(window_of(root), now, "root", "the Intel root")
    return path[0], root


def pck_authority(
    chain: tuple[x509.Certificate, ...], anchors: tuple[x509.Certificate, ...], now: float
) -> tuple[x509.Certificate, x509.Certificate]:
    """Verify the path of a PCK CA, processor or platform.

    :returns: the CA, the anchor.
    :raises Refused: ``root-not-pinned, chain-shape, chain-not-a-ca, pck-name, pck-ca-expired, pck-ca-not-yet-valid``.
    """
    path, root = pinned_root(chain, anchors, "the PCK CA's chain")
    if len(path) != 1:
        raise Refused("chain-shape", "the PCK CA's chain is not one certificate under the root")
    _check_pck_ca(path[0], root, now)
    return path[0], root


def pck_ca(issuer: x509.Certificate) -> str | None:
    """``processor`` or ``platform``, as a PCK CA's name says; ``None`` for another certificate."""
    return PCK_CAS.get(_common_name(issuer.subject))


def _check_pck_ca(issuer: x509.Certificate, root: x509.Certificate, now: float) -> None:
    if pck_ca(issuer) is None:
        raise Refused("pck-name", "a PCK certificate or its CRL is issued by something other than a PCK CA")
    _check_authority(issuer, "the PCK CA")
    _check_issued(issuer, root, "the PCK CA")
    check_window(window_of(root), now, "root", "the Intel root")
    check_window(window_of(issuer), now, "pck-ca", "the PCK CA")


def pck_path(chain: tuple[x509.Certificate, ...], anchors: tuple[x509.Certificate, ...], now: float) -> PckPath:
    """Verify the path of a PCK certificate.

    :raises Refused: ``root-not-pinned, chain-shape, chain-not-a-ca, pck-name, pck-expired, pck-not-yet-valid,
        pck-ca-expired, pck-ca-not-yet-valid``.
    :raises Tampered: ``chain-forged``.
    """
    path, root = pinned_root(chain, anchors, "the PCK chain")
    if len(path) != 2:
        raise Refused("chain-shape", "the PCK chain is not a PCK certificate, a PCK CA and the root")
    leaf, issuer = path
    if _common_name(leaf.subject) != PCK:
        raise Refused("pck-name", "the PCK chain does not name a PCK certificate under a PCK CA")
    _check_pck_ca(issuer, root, now)
    _check_leaf(leaf, "the PCK certificate")
    _check_issued(leaf, issuer, "the PCK certificate")
    check_window(window_of(leaf), now, "pck", "the PCK certificate")
    return PckPath(leaf, issuer, root)


def read_crl(der: bytes, issuer: x509.Certificate, now: float, what: str) -> x509.CertificateRevocationList:
    """A revocation list of this issuer, signed and in its window.

    :raises InvalidInput: ``crl-malformed``.
    :raises Refused: ``crl-wrong-issuer``, ``crl-expired``, ``crl-not-yet-valid``.
    :raises Tampered: ``crl-forged``.
    """
    try:
        crl = x509.load_der_x509_crl(der)
        _ask(crl.issuer, crl.last_update_utc, crl.next_update_utc, crl.extensions, crl.signature_hash_algorithm)
    except Exception as error:  # as in read_chain
        raise InvalidInput("crl-malformed", f"{what} is not a DER revocation list") from error
    if crl.issuer != issuer.subject:
        raise Refused("crl-wrong-issuer", f"{what} is of another CA than {_common_name(issuer.subject)!r}")
    key = issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not _crl_signed(crl, key):
        raise Tampered("crl-forged", f"{what} is not signed by {_common_name(issuer.subject)!r}")
    check_window(crl_window(crl), now, "crl", what)
    return crl


def _crl_signed(crl: x509.CertificateRevocationList, key: ec.EllipticCurvePublicKey) -> bool:
    try:
        return crl.is_signature_valid(key)
    except (ValueError, TypeError, InvalidSignature):
        return False


def crl_window(crl: x509.CertificateRevocationList) -> Window:
    """From this update to the last second before the next; a list that names no next update is never valid."""
    end = crl.next_update_utc
    return Window(crl.last_update_utc.timestamp(), end.timestamp() - 1 if end is not None else float("-inf"))


def crl_number(crl: x509.CertificateRevocationList) -> int | None:
    """Its number, which only grows (clause 8.3)."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None


def check_revoked(crl: x509.CertificateRevocationList, cert: x509.Certificate, code: str, what: str) -> None:
    """Clause 3.4; the list is one that :func:`read_crl` gave, so its signature holds.

    :raises Refused: the code, when the list names the certificate.
    """
    if crl.get_revoked_certificate_by_serial_number(cert.serial_number) is not None:
        raise Refused(code, f"{what} is revoked")
