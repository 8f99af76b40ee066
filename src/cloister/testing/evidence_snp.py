"""SEV-SNP evidence under a throw-away AMD: reports of any version and product, right or wrong in any one respect.

The chain has AMD's shape, names and extensions; the keys are RSA-2048 where AMD's are RSA-4096, because making those
takes seconds. A verifier accepts it only under :meth:`SnpAuthority.anchors`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attest.anchors import TrustAnchors
from cloister.attest.snp.certificates import CHAIN_FILE, CRL_FILE, VEK_FILE, Signer
from cloister.attest.snp.parse import REPORT_SIZE, SIGNED_SIZE
from cloister.attest.snp.tcb import LEVEL_OIDS, PRODUCTS, RESERVED_LEVEL_OIDS, TCB_SIZE
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.testing.certificates import Template, issue, revoke

NOW: Final = 1_800_000_000.0
DAY: Final = 86_400.0
CSP_ID: Final = "CN=cloud.example"
LEVELS: Final[Mapping[str, int]] = MappingProxyType({"fmc": 1, "boot_loader": 4, "tee": 2, "snp": 27, "microcode": 219})
Case = tuple[Evidence, Collateral]
_OID: Final = "1.3.6.1.4.1.3704.1."

# name: (offset, size) in a report; integers are little-endian
FIELDS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "version": (0x000, 4),
        "guest_svn": (0x004, 4),
        "policy": (0x008, 8),
        "family_id": (0x010, 16),
        "image_id": (0x020, 16),
        "vmpl": (0x030, 4),
        "signature_algo": (0x034, 4),
        "current_tcb": (0x038, 8),
        "platform_info": (0x040, 8),
        "flags": (0x048, 4),
        "report_data": (0x050, 64),
        "measurement": (0x090, 48),
        "host_data": (0x0C0, 32),
        "id_key_digest": (0x0E0, 48),
        "author_key_digest": (0x110, 48),
        "report_id": (0x140, 32),
        "report_id_ma": (0x160, 32),
        "reported_tcb": (0x180, 8),
        "cpuid_family": (0x188, 1),
        "cpuid_model": (0x189, 1),
        "cpuid_stepping": (0x18A, 1),
        "chip_id": (0x1A0, 64),
        "committed_tcb": (0x1E0, 8),
        "current_version": (0x1E8, 3),
        "committed_version": (0x1EC, 3),
        "launch_tcb": (0x1F0, 8),
        "launch_mit_vector": (0x1F8, 8),
        "current_mit_vector": (0x200, 8),
    }
)
_CPUS: Final = {"Milan": (0x19, 0x01), "Genoa": (0x19, 0x11), "Turin": (0x1A, 0x02)}


def tcb(product: str, **levels: int) -> bytes:
    """Eight bytes of a TCB version: the levels of ``LEVELS``, with those given instead."""
    version = bytearray(TCB_SIZE)
    for part, at in PRODUCTS[product].layout.items():
        version[at] = {**LEVELS, **levels}[part]
    return bytes(version)


def chip_id(product: str, fill: int = 0x5C) -> bytes:
    """64 bytes, as many of them zero as the product has it."""
    return (bytes([fill]) * PRODUCTS[product].hwid_size).ljust(64, b"\0")


def build_report(product: str, *, version: int = 3, **values: int | bytes) -> bytes:
    """An unsigned report with sensible fields, and those given instead (by the names of ``FIELDS``)."""
    family, model = _CPUS[product]
    level = tcb(product)
    content: dict[str, int | bytes] = {
        "version": version,
        "guest_svn": 3,
        "policy": (1 << 17) | (1 << 16),
        "signature_algo": 1,
        "current_tcb": level,
        "platform_info": 0b100101,
        "report_data": b"r" * 64,
        "measurement": b"m" * 48,
        "host_data": b"h" * 32,
        "report_id": b"i" * 32,
        "report_id_ma": b"\xff" * 32,
        "reported_tcb": level,
        "chip_id": chip_id(product),
        "committed_tcb": level,
        "current_version": bytes([29, 55, 1]),
        "committed_version": bytes([29, 55, 1]),
        "launch_tcb": level,
    }
    if version >= 3:
        content |= {"cpuid_family": family, "cpuid_model": model, "cpuid_stepping": 1}
    if version >= 5:
        content |= {"launch_mit_vector": 11, "current_mit_vector": 11}
    body = bytearray(REPORT_SIZE)
    for name, value in (content | values).items():
        at, size = FIELDS[name]
        body[at : at + size] = value.to_bytes(size, "little") if isinstance(value, int) else value.ljust(size, b"\0")
    return bytes(body)


def patch(body: bytes, at: int, value: bytes) -> bytes:
    """The same bytes with others at an offset."""
    return body[:at] + value + body[at + len(value) :]


def sign_report(body: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Put a genuine signature over whatever the report says."""
    r, s = decode_dss_signature(key.sign(body[:SIGNED_SIZE], ec.ECDSA(hashes.SHA384())))
    return body[:SIGNED_SIZE] + r.to_bytes(72, "little") + s.to_bytes(72, "little") + body[SIGNED_SIZE + 144 :]


def _integer(value: int) -> bytes:
    return bytes([2, 1, value]) if value < 0x80 else bytes([2, 2, 0, value])


def _text(value: str) -> bytes:
    return bytes([0x16, len(value)]) + value.encode()


def leaf_extensions(product: str, signer: Signer, *, chip: bytes | None = None, **levels: int) -> dict[str, bytes]:
    """The extensions of a VCEK or VLEK, by dotted OID."""
    line = PRODUCTS[product]
    stepping = "" if product == "Turin" or signer is Signer.VLEK else "-B0"
    extensions = {_OID + "1": _integer(int(product == "Turin")), _OID + "2": _text(product + stepping)}
    extensions |= {LEVEL_OIDS[part]: _integer({**LEVELS, **levels}[part]) for part in line.layout}
    extensions |= {oid: _integer(0) for oid in RESERVED_LEVEL_OIDS[int(product == "Turin") :]}
    if signer is Signer.VCEK:
        extensions[_OID + "4"] = (chip_id(product) if chip is None else chip)[: line.hwid_size]
    else:
        extensions[_OID + "5"] = _text(CSP_ID)
    return extensions


@dataclass(frozen=True, slots=True)
class SnpAuthority:
    """A throw-away AMD: root, both intermediates and the leaf's key, for every product."""

    ark: rsa.RSAPrivateKey
    ask: rsa.RSAPrivateKey
    asvk: rsa.RSAPrivateKey
    vek: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls) -> SnpAuthority:
        """New keys; about half a second."""
        ark, ask, asvk = (rsa.generate_private_key(65537, 2048) for _ in range(3))
        return cls(ark, ask, asvk, ec.generate_private_key(ec.SECP384R1()))

    def anchors(self, product: str) -> TrustAnchors:
        """This root, pinned for one product."""
        key = self.ark.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return TrustAnchors(amd_arks={product: (hashlib.sha256(key).digest(),)})

    def ark_template(self, product: str) -> Template:
        """What this product's root certificate says."""
        return Template(
            subject=f"ARK-{product}",
            issuer=f"ARK-{product}",
            not_before=NOW - 2000 * DAY,
            not_after=NOW + 7000 * DAY,
            serial=0x10000,
        )

    def intermediate_template(self, product: str, signer: Signer) -> Template:
        """What the ASK's or ASVK's certificate says."""
        return replace(
            self.ark_template(product),
            subject=signer.intermediate_name(PRODUCTS[product]),
            serial=0x10001 + signer.signing_key,
            path_length=0,
            usage=frozenset({"key_cert_sign"}),
        )

    def leaf_template(self, product: str, signer: Signer) -> Template:
        """What the VCEK's or VLEK's certificate says."""
        return Template(
            subject=signer.leaf_name,
            issuer=signer.intermediate_name(PRODUCTS[product]),
            not_before=NOW - 100 * DAY,
            not_after=NOW + (200 * DAY if signer is Signer.VLEK else 2000 * DAY),
            serial=0,
            ca=None,
            usage=None,
            extensions=leaf_extensions(product, signer),
        )

    def chain(
        self,
        product: str,
        signer: Signer = Signer.VCEK,
        *,
        ark: Template | None = None,
        intermediate: Template | None = None,
        leaf: Template | None = None,
    ) -> dict[str, bytes]:
        """Collateral: the leaf and its issuers, with other templates where given."""
        key = self.ask if signer is Signer.VCEK else self.asvk
        upper = issue(intermediate or self.intermediate_template(product, signer), key, self.ark)
        root = issue(ark or self.ark_template(product), self.ark, self.ark)
        return {
            VEK_FILE: issue(leaf or self.leaf_template(product, signer), self.vek, key),
            CHAIN_FILE: pem(upper) + pem(root),
        }

    def crl(
        self, product: str, serials: tuple[int, ...] = (), *, signer: rsa.RSAPrivateKey | None = None, end: float = 300
    ) -> bytes:
        """This product's revocation list; ``end`` in days from ``NOW``."""
        return revoke(f"ARK-{product}", signer or self.ark, serials, this_update=NOW - DAY, next_update=NOW + end * DAY)

    def evidence(
        self,
        product: str = "Milan",
        signer: Signer = Signer.VCEK,
        *,
        body: bytes | None = None,
        files: Mapping[str, bytes] | None = None,
        crl: bytes | None = None,
        version: int = 3,
        **values: int | bytes,
    ) -> Case:
        """A signed report and its collateral.

        :param body: a report to sign instead of the one that ``build_report`` makes of ``version`` and ``values``.
        :param files: collateral instead of the genuine chain.
        """
        if body is None:
            flags = {"flags": signer.signing_key << 2} | values
            body = build_report(product, version=version, **flags)
        found = dict(self.chain(product, signer) if files is None else files)
        if crl is not None:
            found[CRL_FILE] = crl
        return Evidence(TeeType.SEV_SNP, sign_report(body, self.vek)), Collateral(found)


def pem(der: bytes) -> bytes:
    """A certificate as it stands in a PEM file."""
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


_TABLE_GUIDS: Final = {
    "ark": "c0b406a4a803495297433fb6014cd0ae",
    "ask": "4ab7b379bbac4fe4a02f05aef327c782",
    "vcek": "63da758de6644564adc5f4b93be8accd",
    "vlek": "a8074bc2a25a483eaae639c045a0b8a1",
    "crl": "92f81bc358114d3d97ffd19f88dc67ea",
    "other": "ecae0c0f950243b1afa20ae2e0d565b6",
}


def build_cert_table(entries: Mapping[str, bytes]) -> bytes:
    """A certificate table of the GHCB protocol, as a host hands it to the guest."""
    head, tail = b"", b""
    start = 24 * (len(entries) + 1)
    for kind, blob in entries.items():
        head += bytes.fromhex(_TABLE_GUIDS[kind])
        head += (start + len(tail)).to_bytes(4, "little") + len(blob).to_bytes(4, "little")
        tail += blob
    return head + bytes(24) + tail
