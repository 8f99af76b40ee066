"""Certificates and revocation lists of the vendors' chains, read once into frozen values and checked piece by piece.

Not a general path builder (RFC 5280, section 6): AMD's and AWS's chains have a fixed shape, so the verifier names who
issued whom, and every check here concerns one certificate or one pair. All of it is a function of bytes and a time.

What is taken from ``cryptography``: DER, RSA-PSS, ECDSA. What is not: its verdict about serial numbers. AMD's VCEK and
VLEK certificates have the serial number 0, which RFC 5280 forbids and which the library announces to refuse. They are
read here through a copy with serial number 1, and their signature is checked over the bytes as they are.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from cloister.base.errors import InvalidInput, Refused, Tampered

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

MAX_CERTIFICATE: Final = 8 * 1024  # AMD's have 1.7 KiB, AWS's 0.8 KiB
MAX_CRL: Final = 64 * 1024  # AMD's have 1 KiB and name at most a few intermediates
MAX_CHAIN: Final = 8  # certificates in a PEM file; the longest chain in use has 5

RSA_PSS_SHA384: Final = "rsa-pss-sha384"
ECDSA_SHA384: Final = "ecdsa-sha384"

_PSS_SALT: Final = 48
_ZERO_SERIAL: Final = b"\x02\x01\x00"
_ONE_SERIAL: Final = b"\x02\x01\x01"
_VERSION_3: Final = b"\xa0\x03\x02\x01\x02"
_USAGES: Final = ("digital_signature", "key_cert_sign", "crl_sign")
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_CHECKED_HERE: Final = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})


@dataclass(frozen=True, slots=True)
class Certificate:
    """An X.509 v3 certificate, every field of interest read; nothing in it is believed yet.

    :param tbs: the signed bytes, exactly as they stand in ``der``.
    :param algorithm: of its signature: ``rsa-pss-sha384``, ``ecdsa-sha384``, or the dotted OID of another.
    :param spki_digest: SHA-256 of the SubjectPublicKeyInfo.
    :param ca: BasicConstraints; ``None`` if the extension is absent.
    :param key_usage: names of the bits that are set; ``None`` if the extension is absent.
    :param extensions: dotted OID to the bytes inside the OCTET STRING, for extensions without a meaning of their own.
    :param critical: dotted OIDs of critical extensions other than BasicConstraints and KeyUsage.
    """

    der: bytes
    tbs: bytes
    signature: bytes
    algorithm: str
    subject: x509.Name
    issuer: x509.Name
    common_name: str
    serial: int
    not_before: float
    not_after: float
    public_key: PublicKey
    spki_digest: bytes
    ca: bool | None
    path_length: int | None
    key_usage: frozenset[str] | None
    extensions: Mapping[str, bytes]
    critical: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A certificate revocation list; ``serials`` are those it lists."""

    tbs: bytes
    signature: bytes
    algorithm: str
    issuer: x509.Name
    this_update: float
    next_update: float
    serials: frozenset[int]


def load_certificate(der: bytes, what: str) -> Certificate:
    """Read one DER certificate; trailing bytes are an error.

    :param what: which certificate this is, for messages.
    :raises InvalidInput: ``certificate-too-long``, ``certificate-malformed``, ``certificate-key``.
    """
    if len(der) > MAX_CERTIFICATE:
        raise InvalidInput("certificate-too-long", f"{what} has {len(der)} bytes; at most {MAX_CERTIFICATE} are read")
    try:
        serial_at = der.find(_VERSION_3 + _ZERO_SERIAL, 0, 16) + len(_VERSION_3)
        view = der
        if serial_is_zero := serial_at >= len(_VERSION_3):
            view = der[:serial_at] + _ONE_SERIAL + der[serial_at + len(_ONE_SERIAL) :]
        certificate = x509.load_der_x509_certificate(view)
        if certificate.version is not x509.Version.v3:
            raise ValueError("not version 3")
        signed = certificate.tbs_certificate_bytes
        start = view.index(signed)
        return _read(certificate, der=der, tbs=der[start : start + len(signed)], serial_is_zero=serial_is_zero)
    except InvalidInput:
        raise
    except Exception as error:  # whatever the library says about hostile bytes, they are the sender's
        raise InvalidInput("certificate-malformed", f"{what} is not an X.509 v3 certificate in DER") from error


def _read(certificate: x509.Certificate, *, der: bytes, tbs: bytes, serial_is_zero: bool) -> Certificate:
    key = certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise InvalidInput("certificate-key", "a certificate has a public key that is neither RSA nor elliptic-curve")
    ca: bool | None = None
    path_length: int | None = None
    usage: frozenset[str] | None = None
    others: dict[str, bytes] = {}
    critical: list[str] = []
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            ca, path_length = value.ca, value.path_length
        elif isinstance(value, x509.KeyUsage):
            usage = frozenset(name for name in _USAGES if getattr(value, name))
        elif isinstance(value, x509.UnrecognizedExtension):
            others[extension.oid.dotted_string] = value.value
        if extension.critical and extension.oid not in _CHECKED_HERE:
            critical.append(extension.oid.dotted_string)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    common_name = names[0].value if len(names) == 1 else ""
    return Certificate(
        der=der,
        tbs=tbs,
        signature=certificate.signature,
        algorithm=_algorithm(certificate.signature_algorithm_oid, certificate.signature_hash_algorithm),
        subject=certificate.subject,
        issuer=certificate.issuer,
        common_name=common_name if isinstance(common_name, str) else "",
        serial=0 if serial_is_zero else certificate.serial_number,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        public_key=key,
        spki_digest=hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest(),
        ca=ca,
        path_length=path_length,
        key_usage=usage,
        extensions=MappingProxyType(others),
        critical=tuple(critical),
    )


def _algorithm(oid: x509.ObjectIdentifier, digest: hashes.HashAlgorithm | None) -> str:
    if oid == SignatureAlgorithmOID.RSASSA_PSS and isinstance(digest, hashes.SHA384):
        return RSA_PSS_SHA384
    if oid == SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        return ECDSA_SHA384
    return oid.dotted_string


def load_pem_chain(pem: bytes, what: str) -> tuple[Certificate, ...]:
    """Read the certificates of a PEM file, in their order.

    :raises InvalidInput: ``certificate-too-long``, ``certificate-malformed``, ``certificate-key``.
    """
    if len(pem) > 2 * MAX_CHAIN * MAX_CERTIFICATE or pem.count(b"-----BEGIN") > MAX_CHAIN:
        raise InvalidInput("certificate-too-long", f"{what} holds more than {MAX_CHAIN} certificates")
    try:
        found = [base64.b64decode(b"".join(text.split()), validate=True) for text in _PEM.findall(pem)]
    except ValueError as error:
        raise InvalidInput("certificate-malformed", f"{what} does not hold certificates in PEM") from error
    if not found:
        raise InvalidInput("certificate-malformed", f"{what} does not hold certificates in PEM")
    return tuple(load_certificate(der, what) for der in found)


def load_crl(der: bytes, what: str) -> RevocationList:
    """Read one DER revocation list that is complete for CA certificates: a delta, or one of other scope, is refused.

    :raises InvalidInput: ``crl-malformed``.
    :raises Refused: ``crl-not-complete``.
    """
    if len(der) > MAX_CRL:
        raise InvalidInput("crl-malformed", f"{what} has {len(der)} bytes; at most {MAX_CRL} are read")
    try:
        crl = x509.load_der_x509_crl(der)
        complete = all(_leaves_complete(extension) for extension in crl.extensions)
        if crl.next_update_utc is None:
            raise ValueError("no nextUpdate")
        entries = frozenset(entry.serial_number for entry in crl)
        read = RevocationList(
            tbs=crl.tbs_certlist_bytes,
            signature=crl.signature,
            algorithm=_algorithm(crl.signature_algorithm_oid, crl.signature_hash_algorithm),
            issuer=crl.issuer,
            this_update=crl.last_update_utc.timestamp(),
            next_update=crl.next_update_utc.timestamp(),
            serials=entries,
        )
    except Exception as error:  # as above
        raise InvalidInput("crl-malformed", f"{what} is not an X.509 revocation list in DER with an end") from error
    if not complete:
        raise Refused("crl-not-complete", f"{what} is a delta, of limited scope, or has a critical extension")
    return read


def _leaves_complete(extension: x509.Extension[x509.ExtensionType]) -> bool:
    """Whether a list with this extension still names every CA certificate of its issuer that is revoked."""
    value = extension.value
    if isinstance(value, x509.IssuingDistributionPoint):
        return not (
            value.only_contains_user_certs
            or value.only_contains_attribute_certs
            or value.indirect_crl
            or value.only_some_reasons
        )
    return not extension.critical and not isinstance(value, x509.DeltaCRLIndicator)


def check_window(not_before: float, not_after: float, now: float, what: str) -> None:
    """Clause 2.5; both ends count as inside.

    :raises Refused: ``certificate-not-yet-valid``, ``certificate-expired``.
    """
    if now < not_before:
        raise Refused("certificate-not-yet-valid", f"{what} is not valid yet at the time of verification")
    if not now <= not_after:  # written so that a time that is no number is refused
        raise Refused("certificate-expired", f"{what} has expired at the time of verification")


def check_crl_window(crl: RevocationList, now: float, what: str) -> None:
    """:raises Refused: ``crl-not-yet-valid``, ``crl-expired``."""
    if now < crl.this_update:
        raise Refused("crl-not-yet-valid", f"{what} is not valid yet at the time of verification")
    if not now <= crl.next_update:
        raise Refused("crl-expired", f"{what} has expired at the time of verification", hint="Fetch a newer one.")


def check_issuer(issuer: Certificate, *, below: int, what: str) -> None:
    """That a certificate may issue certificates.

    :param below: how many CA certificates stand between it and the leaf.
    :raises Refused: ``certificate-not-ca``, ``certificate-key-usage``, ``certificate-path-length``,
        ``certificate-critical-extension``.
    """
    _check_critical(issuer, what)
    if issuer.ca is not True:
        raise Refused("certificate-not-ca", f"{what} issued a certificate and is not a CA")
    if issuer.key_usage is None or "key_cert_sign" not in issuer.key_usage:
        raise Refused("certificate-key-usage", f"{what} issued a certificate and lacks the key usage keyCertSign")
    if issuer.path_length is not None and issuer.path_length < below:
        raise Refused("certificate-path-length", f"{what} stands above {below} CAs and allows {issuer.path_length}")


def check_leaf(leaf: Certificate, what: str) -> None:
    """That a certificate is no CA and has nothing critical that is unknown here.

    :raises Refused: ``certificate-leaf-is-ca``, ``certificate-key-usage``, ``certificate-critical-extension``.
    """
    _check_critical(leaf, what)
    if leaf.ca:
        raise Refused("certificate-leaf-is-ca", f"{what} is a CA and signs evidence")
    if leaf.key_usage is not None and "digital_signature" not in leaf.key_usage:
        raise Refused("certificate-key-usage", f"{what} signs evidence and lacks the key usage digitalSignature")


def _check_critical(certificate: Certificate, what: str) -> None:
    if certificate.critical:
        raise Refused(
            "certificate-critical-extension", f"{what} has a critical extension unknown here: {certificate.critical[0]}"
        )


def check_signed(
    item: Certificate | RevocationList, issuer: Certificate, *, algorithm: str, what: str, by: str
) -> None:
    """That ``issuer``'s name stands in ``item`` and its key signed it, with this algorithm and no other.

    :raises Refused: ``certificate-issuer-name``, ``certificate-algorithm``.
    :raises Tampered: ``certificate-signature``.
    """
    if item.issuer != issuer.subject:
        raise Refused("certificate-issuer-name", f"{what} names another issuer than {by}")
    if item.algorithm != algorithm:
        raise Refused("certificate-algorithm", f"{what} is signed with {item.algorithm}, not {algorithm}")
    key = issuer.public_key
    try:
        if algorithm == RSA_PSS_SHA384 and isinstance(key, rsa.RSAPublicKey):
            scheme = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=_PSS_SALT)
            key.verify(item.signature, item.tbs, scheme, hashes.SHA384())
        elif algorithm == ECDSA_SHA384 and is_p384(key):
            assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101  # is_p384 said so
            key.verify(item.signature, item.tbs, ec.ECDSA(hashes.SHA384()))
        else:
            raise Refused("certificate-algorithm", f"{by} has a key of another kind than {algorithm} needs")
    except InvalidSignature as error:
        raise Tampered("certificate-signature", f"the signature of {what} is not by {by}") from error


def is_p384(key: PublicKey) -> bool:
    """Whether this is a key on the curve of AMD's and AWS's leaves."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)
