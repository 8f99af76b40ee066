"""A synthetic Intel: root, PCK CA, PCK certificate, TCB signer, revocation lists. Under its own root, never Intel's.

Keys are derived from their names, serial numbers are fixed, signatures are deterministic: the same plan gives the same
bytes. Every field is a plain attribute, changed before ``certificate()``, ``crl()`` or ``extension()`` builds it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

DAY: Final = 86_400
NOW: Final = 1_800_000_000
ORGANISATION: Final = "Cloister synthetic test PKI"
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def key_of(name: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of this name: for tests, as everybody can derive it."""
    number = int.from_bytes(hashlib.sha512(f"cloister synthetic key: {name}".encode()).digest(), "big")
    return ec.derive_private_key(number % (_P256_ORDER - 1) + 1, ec.SECP256R1())


def raw_signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """64 bytes, r then s, as Intel writes them."""
    der = key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    r, s = decode_dss_signature(der)
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """64 bytes, x then y."""
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return point[1:]


def moment(seconds: int) -> datetime:
    """Unix seconds as the X.509 builders want them."""
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)


@dataclass
class Node:
    """One certificate to be. ``issuer`` is ``None`` for a self-signed one.

    :param extensions: further extensions, by object identifier, as DER.
    :param signing_key: signs instead of the issuer's key, for forgeries.
    """

    common_name: str
    serial: int
    issuer: Node | None = None
    ca: bool = False
    path_length: int | None = None
    key_name: str = ""
    organisation: str = ORGANISATION
    not_before: int = NOW - 365 * DAY
    not_after: int = NOW + 3650 * DAY
    extensions: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    signing_key: ec.EllipticCurvePrivateKey | None = None

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """Its key."""
        return key_of(self.key_name or self.common_name)

    @property
    def name(self) -> x509.Name:
        """Its subject, with the attributes that Intel's have."""
        return x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, self.common_name),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.organisation),
                x509.NameAttribute(NameOID.LOCALITY_NAME, "Santa Clara"),
                x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "CA"),
                x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            ]
        )

    def certificate(self) -> x509.Certificate:
        """Build and sign it."""
        issuer = self.issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name)
            .public_key(self.key.public_key())
            .serial_number(self.serial)
            .not_valid_before(moment(self.not_before))
            .not_valid_after(moment(self.not_after))
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(_usage(ca=self.ca), critical=True)
            .add_extension(x509.BasicConstraints(self.ca, self.path_length if self.ca else None), critical=True)
        )
        for oid, content in self.extensions.items():
            value = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), content())
            builder = builder.add_extension(value, critical=False)
        return builder.sign(self.signing_key or issuer.key, hashes.SHA256(), ecdsa_deterministic=True)

    def der(self) -> bytes:
        """The certificate, as DER."""
        return self.certificate().public_bytes(serialization.Encoding.DER)

    def pem(self) -> str:
        """The certificate, as PEM."""
        return self.certificate().public_bytes(serialization.Encoding.PEM).decode()


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=not ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass
class Crl:
    """One revocation list to be."""

    issuer: Node
    number: int = 1
    last_update: int = NOW - DAY
    next_update: int = NOW + 30 * DAY
    revoked: Sequence[int] = ()
    signing_key: ec.EllipticCurvePrivateKey | None = None

    def der(self) -> bytes:
        """Build and sign it."""
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.issuer.key.public_key())
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.issuer.name)
            .last_update(moment(self.last_update))
            .next_update(moment(self.next_update))
            .add_extension(x509.CRLNumber(self.number), critical=False)
            .add_extension(issuer_key, critical=False)
        )
        for serial in self.revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment(self.last_update))
            builder = builder.add_revoked_certificate(entry.build())
        crl = builder.sign(self.signing_key or self.issuer.key, hashes.SHA256(), ecdsa_deterministic=True)
        return crl.public_bytes(serialization.Encoding.DER)


# --- the SGX extension of a PCK certificate ---

_ARC: Final = bytes.fromhex("2a864886f84d010d01")


def der_element(tag: int, content: bytes) -> bytes:
    """One DER element."""
    size = len(content)
    if size < 0x80:
        head = bytes([size])
    elif size < 0x100:
        head = bytes([0x81, size])
    else:
        head = bytes([0x82]) + size.to_bytes(2, "big")
    return bytes([tag]) + head + content


def named(path: Sequence[int], tag: int, content: bytes) -> bytes:
    """SEQUENCE { OID, value } under 1.2.840.113741.1.13.1."""
    return der_element(0x30, der_element(0x06, _ARC + bytes(path)) + der_element(tag, content))


def _integer(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big")


@dataclass
class Platform:
    """What the PCK certificate says of the platform. ``configuration`` is (dynamic, cached keys, SMT), or absent."""

    ppid: bytes = bytes.fromhex("c1015707") * 4
    cpu_svn: bytes = bytes([3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0])
    pce_svn: int = 13
    pce_id: bytes = bytes(2)
    fmspc: bytes = bytes.fromhex("90c06f000000")
    sgx_type: int = 1
    instance_id: bytes | None = bytes(range(16))
    configuration: tuple[bool, bool, bool] | None = (True, True, True)

    def extension(self) -> bytes:
        """The extension's content."""
        tcb = b"".join(named([2, i], 0x02, _integer(svn)) for i, svn in enumerate(self.cpu_svn, 1))
        tcb += named([2, 17], 0x02, _integer(self.pce_svn)) + named([2, 18], 0x04, self.cpu_svn)
        fields = named([1], 0x04, self.ppid) + named([2], 0x30, tcb)
        fields += named([3], 0x04, self.pce_id) + named([4], 0x04, self.fmspc)
        fields += named([5], 0x0A, bytes([self.sgx_type]))
        if self.instance_id is not None:
            fields += named([6], 0x04, self.instance_id)
        if self.configuration is not None:
            flags = b"".join(
                named([7, i], 0x01, b"\xff" if flag else b"\x00") for i, flag in enumerate(self.configuration, 1)
            )
            fields += named([7], 0x30, flags)
        return der_element(0x30, fields)
