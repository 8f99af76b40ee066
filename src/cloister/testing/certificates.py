"""Issue certificates and revocation lists under throw-away keys, right or wrong in any one respect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_KEY_CERT_SIGN = frozenset({"key_cert_sign", "crl_sign"})
_ALL_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True, slots=True)
class Template:
    """What a certificate says; the defaults are those of a root.

    :param serial: may be 0, as AMD's leaves have it.
    :param ca: BasicConstraints; ``None`` leaves the extension out.
    :param usage: bits of KeyUsage; ``None`` leaves the extension out.
    :param extensions: dotted OID to bytes, for extensions of the vendor.
    :param critical: dotted OIDs among ``extensions`` to mark critical.
    """

    subject: str
    issuer: str
    not_before: float
    not_after: float
    serial: int = 1
    ca: bool | None = True
    path_length: int | None = None
    usage: frozenset[str] | None = _KEY_CERT_SIGN
    extensions: Mapping[str, bytes] = field(default_factory=dict)
    critical: frozenset[str] = frozenset()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _time(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC)


def _pss() -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)


def sign(key: PrivateKey, data: bytes) -> bytes:
    """As AMD (RSA-PSS) and AWS (ECDSA) sign certificates, by the kind of the key."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, _pss(), hashes.SHA384())
    return key.sign(data, ec.ECDSA(hashes.SHA384()))


def issue(
    template: Template, key: PrivateKey, signer: PrivateKey, *, digest: hashes.HashAlgorithm | None = None
) -> bytes:
    """A certificate for ``key``, signed by ``signer``, in DER.

    :param digest: another hash than SHA-384, to be refused.
    """
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(template.subject))
        .issuer_name(_name(template.issuer))
        .public_key(key.public_key())
        .serial_number(template.serial or 1)
        .not_valid_before(_time(template.not_before))
        .not_valid_after(_time(template.not_after))
    )
    if template.ca is not None:
        builder = builder.add_extension(
            x509.BasicConstraints(ca=template.ca, path_length=template.path_length), critical=True
        )
    if template.usage is not None:
        bits = {name: name in template.usage for name in _ALL_USAGES}
        builder = builder.add_extension(x509.KeyUsage(**bits), critical=True)
    for oid, value in template.extensions.items():
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(extension, critical=oid in template.critical)
    algorithm = hashes.SHA384() if digest is None else digest
    if isinstance(signer, rsa.RSAPrivateKey):
        scheme = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=48)
        certificate = builder.sign(signer, algorithm, rsa_padding=scheme)  # type: ignore[arg-type]
    else:
        certificate = builder.sign(signer, algorithm)  # type: ignore[arg-type]
    der = certificate.public_bytes(Encoding.DER)
    return der if template.serial else _with_serial_zero(der, certificate, signer)


def _with_serial_zero(der: bytes, certificate: x509.Certificate, signer: PrivateKey) -> bytes:
    """The library will not write a serial number of 0, so it is put in and the certificate signed again (RSA only)."""
    tbs = certificate.tbs_certificate_bytes
    changed = tbs.replace(b"\xa0\x03\x02\x01\x02\x02\x01\x01", b"\xa0\x03\x02\x01\x02\x02\x01\x00", 1)
    start, end = der.index(tbs), len(der) - len(certificate.signature)
    return der[:start] + changed + der[start + len(tbs) : end] + sign(signer, changed)


def revoke(
    issuer: str,
    signer: PrivateKey,
    serials: tuple[int, ...],
    *,
    this_update: float,
    next_update: float,
    extensions: Mapping[x509.ExtensionType, bool] | None = None,
) -> bytes:
    """A revocation list in DER; ``extensions`` are further ones, and whether each is critical."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(_name(issuer))
        .last_update(_time(this_update))
        .next_update(_time(next_update))
        .add_extension(x509.CRLNumber(7), critical=False)
    )
    for extension, critical in (extensions or {}).items():
        builder = builder.add_extension(extension, critical=critical)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_time(this_update)).build()
        builder = builder.add_revoked_certificate(entry)
    if isinstance(signer, rsa.RSAPrivateKey):
        return builder.sign(signer, hashes.SHA384(), rsa_padding=_pss()).public_bytes(Encoding.DER)
    return builder.sign(signer, hashes.SHA384()).public_bytes(Encoding.DER)
