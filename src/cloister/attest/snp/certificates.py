"""The chain behind an SEV-SNP report: where it comes from, that it is AMD's, and what its leaf says.

Clauses 4.2 to 4.5, 4.9 and 4.12 of spec/attestation.md. A VEK is the key that signed the report: a VCEK (one chip,
under the ASK) or a VLEK (one cloud provider, under the ASVK).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from cloister.attest import x509
from cloister.attest.anchors import TrustAnchors
from cloister.attest.snp.tcb import LEVEL_OIDS, PRODUCTS, RESERVED_LEVEL_OIDS, Product
from cloister.attest.types import Collateral, Evidence
from cloister.base.errors import InvalidInput, Refused
from cloister.base.limits import MAX_EVIDENCE

VEK_FILE: Final = "vek.der"
CHAIN_FILE: Final = "ask_ark.pem"
CRL_FILE: Final = "crl.der"
CERT_TABLE: Final = "auxblob"

_OID: Final = "1.3.6.1.4.1.3704.1."
_STRUCT_VERSION: Final = _OID + "1"
_PRODUCT_NAME: Final = _OID + "2"
_HWID: Final = _OID + "4"
_CSP_ID: Final = _OID + "5"
_KNOWN_STRUCT_VERSIONS: Final = (0, 1)
_NAME: Final = re.compile(r"([A-Z][a-z]+)(-[A-Z][0-9])?")

_MAX_TABLE_ENTRIES: Final = 32  # the GHCB protocol defines 5 kinds
_ENTRY: Final = 24
_GUIDS: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        bytes.fromhex("c0b406a4a803495297433fb6014cd0ae"): "ark",
        bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782"): "ask",  # the ASVK too
        bytes.fromhex("63da758de6644564adc5f4b93be8accd"): "vcek",
        bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1"): "vlek",
        bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea"): "crl",
    }
)


class Signer(Enum):
    """Which kind of key signed; the values are SIGNING_KEY, the leaf's and the prefix of the intermediate's name."""

    VCEK = (0, "SEV-VCEK", "SEV-")
    VLEK = (1, "SEV-VLEK", "SEV-VLEK-")

    @property
    def signing_key(self) -> int:
        """SIGNING_KEY of the report."""
        return self.value[0]

    @property
    def leaf_name(self) -> str:
        """Common name of the leaf."""
        return self.value[1]

    def intermediate_name(self, product: Product) -> str:
        """Common name of the ASK or ASVK."""
        return self.value[2] + product.name

    @property
    def label(self) -> str:
        """``vcek`` or ``vlek``, as in claims and certificate tables."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Chain:
    """Root, intermediate, leaf, and a revocation list if one was given."""

    ark: x509.Certificate
    intermediate: x509.Certificate
    leaf: x509.Certificate
    crl: x509.RevocationList | None

    @property
    def named(self) -> tuple[tuple[str, x509.Certificate], ...]:
        """The certificates with what to call them in messages."""
        return (("the ARK", self.ark), ("the ASK or ASVK", self.intermediate), ("the VCEK or VLEK", self.leaf))


@dataclass(frozen=True, slots=True)
class Leaf:
    """What AMD says in a leaf about the key's chip or provider, and firmware.

    :param levels: of the product's layout, by the names of ``claim_names.TCB_PARTS``.
    :param hwid: the chip's id; ``None`` in a VLEK.
    :param csp_id: the provider; ``None`` in a VCEK.
    """

    levels: Mapping[str, int]
    hwid: bytes | None
    csp_id: str | None


def cert_table(blob: bytes) -> Mapping[str, bytes]:
    """Read the certificate table of an extended guest request, as in configfs-tsm's ``auxblob``.

    Source: AMD, Guest-Hypervisor Communication Block Standardization (56421), SNP Extended Guest Request.

    :returns: of ``ark``, ``ask``, ``vcek``, ``vlek``, ``crl`` what it holds; entries of unknown kind are left out.
    :raises InvalidInput: ``snp-cert-table-malformed``.
    """
    found: dict[str, bytes] = {}
    if len(blob) > MAX_EVIDENCE:
        raise InvalidInput("snp-cert-table-malformed", f"the certificate table has more than {MAX_EVIDENCE} bytes")
    for at in range(0, _ENTRY * _MAX_TABLE_ENTRIES, _ENTRY):
        entry = blob[at : at + _ENTRY]
        if len(entry) != _ENTRY:
            raise InvalidInput("snp-cert-table-malformed", "the certificate table does not end")
        if not any(entry):
            return MappingProxyType(found)
        kind = _GUIDS.get(entry[:16])
        offset, length = int.from_bytes(entry[16:20], "little"), int.from_bytes(entry[20:24], "little")
        if offset + length > len(blob) or offset < at + _ENTRY:
            raise InvalidInput("snp-cert-table-malformed", "an entry of the certificate table lies outside of it")
        if kind in found:
            raise InvalidInput("snp-cert-table-malformed", f"the certificate table has two entries for {kind}")
        if kind is not None:
            found[kind] = blob[offset : offset + length]
    raise InvalidInput("snp-cert-table-malformed", f"the certificate table has more than {_MAX_TABLE_ENTRIES} entries")


def collect(evidence: Evidence, collateral: Collateral, signer: Signer) -> Chain:
    """Find and read the chain (clause 4.12): the collateral's file first, then the evidence's, then its table.

    :raises Refused: ``snp-certificate-missing``, ``crl-not-complete``.
    :raises InvalidInput: ``snp-cert-table-malformed``, ``snp-chain-shape``, ``certificate-...``, ``crl-malformed``.
    """
    table: Mapping[str, bytes] = {}
    if CERT_TABLE in evidence.endorsements:
        table = cert_table(evidence.endorsements[CERT_TABLE])

    def first(name: str) -> bytes | None:
        return collateral.files.get(name, evidence.endorsements.get(name))

    vek = first(VEK_FILE)
    if vek is None:
        vek = table.get(signer.label)
    if vek is None:
        raise _missing(f"the {signer.name} ({VEK_FILE})")
    chain = first(CHAIN_FILE)
    if chain is not None:
        pair = x509.load_pem_chain(chain, CHAIN_FILE)
    elif "ask" in table and "ark" in table:
        pair = (_either(table["ask"], "the ASK or ASVK"), _either(table["ark"], "the ARK"))
    else:
        raise _missing(f"the ASK or ASVK and the ARK ({CHAIN_FILE})")
    roots = [certificate for certificate in pair if certificate.subject == certificate.issuer]
    others = [certificate for certificate in pair if certificate.subject != certificate.issuer]
    if len(roots) != 1 or len(others) != 1:
        raise InvalidInput("snp-chain-shape", f"{CHAIN_FILE} holds other certificates than one ASK or ASVK and one ARK")
    crl = first(CRL_FILE)
    if crl is None:
        crl = table.get("crl")
    return Chain(
        ark=roots[0],
        intermediate=others[0],
        leaf=_either(vek, f"the {signer.name}"),
        crl=None if crl is None else x509.load_crl(crl, "the CRL"),
    )


def _missing(what: str) -> Refused:
    return Refused(
        "snp-certificate-missing",
        f"{what} is neither in the collateral nor in the evidence",
        hint="Fetch it from AMD's key distribution service, or have the host provide it with the report.",
    )


def _either(data: bytes, what: str) -> x509.Certificate:
    """A certificate in DER, or alone in a PEM file, as some hosts provide it."""
    if not data.startswith(b"-----BEGIN"):
        return x509.load_certificate(data, what)
    found = x509.load_pem_chain(data, what)
    if len(found) != 1:
        raise InvalidInput("snp-chain-shape", f"{what} comes in a PEM file with {len(found)} certificates")
    return found[0]


def verify_chain(chain: Chain, signer: Signer, anchors: TrustAnchors) -> Product:
    """That the chain is AMD's, of this kind of key, and of one product (clauses 4.2, 4.3).

    From the root down, so that no key is used before it was vouched for. Dates and revocation are separate.

    :raises Refused: ``snp-root-not-pinned``, ``snp-product-unknown``, ``snp-intermediate-kind``, ``snp-leaf-kind``,
        ``certificate-...``.
    :raises Tampered: ``certificate-signature``.
    """
    ark, intermediate, leaf = chain.ark, chain.intermediate, chain.leaf
    lines = [name for name, pins in anchors.amd_arks.items() if ark.spki_digest in pins]
    if len(lines) != 1:
        raise Refused("snp-root-not-pinned", "the ARK's key is not one of the pinned AMD root keys")
    product = PRODUCTS.get(lines[0])
    if product is None:
        raise Refused("snp-product-unknown", f"the product line {lines[0]!r} is pinned and not understood here")
    if ark.common_name != f"ARK-{product.name}":
        raise Refused("snp-root-not-pinned", f"the ARK is not named for {product.name}")
    x509.check_issuer(ark, below=1, what="the ARK")
    x509.check_signed(ark, ark, algorithm=x509.RSA_PSS_SHA384, what="the ARK", by="itself")
    if intermediate.common_name != signer.intermediate_name(product):
        raise Refused(
            "snp-intermediate-kind",
            f"a {signer.name} of {product.name} is issued by {signer.intermediate_name(product)!r},"
            f" not by {intermediate.common_name[:64]!r}",
        )
    x509.check_issuer(intermediate, below=0, what="the ASK or ASVK")
    x509.check_signed(intermediate, ark, algorithm=x509.RSA_PSS_SHA384, what="the ASK or ASVK", by="the ARK")
    if leaf.common_name != signer.leaf_name:
        raise Refused(
            "snp-leaf-kind",
            f"the report is signed with a {signer.name}; the certificate is for {leaf.common_name[:64]!r}",
        )
    x509.check_leaf(leaf, f"the {signer.name}")
    x509.check_signed(
        leaf, intermediate, algorithm=x509.RSA_PSS_SHA384, what=f"the {signer.name}", by="the ASK or ASVK"
    )
    if not x509.is_p384(leaf.public_key):
        raise Refused("snp-leaf-key", f"the {signer.name} has no key on P-384")
    return product


def check_revocation(crl: x509.RevocationList, chain: Chain, now: float) -> None:
    """Clause 4.4, for a CRL that was given.

    :raises Refused: ``crl-not-yet-valid``, ``crl-expired``, ``certificate-issuer-name``, ``certificate-algorithm``,
        ``certificate-key-usage``, ``certificate-revoked``.
    :raises Tampered: ``certificate-signature``.
    """
    if chain.ark.key_usage is None or "crl_sign" not in chain.ark.key_usage:
        raise Refused("certificate-key-usage", "the ARK lacks the key usage cRLSign")
    x509.check_signed(crl, chain.ark, algorithm=x509.RSA_PSS_SHA384, what="the CRL", by="the ARK")
    x509.check_crl_window(crl, now, "the CRL")
    for what, certificate in chain.named[:2]:  # the list is of the ARK's own issue; leaves are not on it
        if certificate.serial in crl.serials:
            raise Refused("certificate-revoked", f"{what} is on AMD's revocation list")


def read_leaf(leaf: x509.Certificate, signer: Signer, product: Product) -> Leaf:
    """What the leaf's extensions say; every one that clauses 4.5, 4.6 and 4.9 name must be there.

    :raises InvalidInput: ``snp-extension-malformed``.
    :raises Refused: ``snp-extension-missing``, ``snp-struct-version``, ``snp-product-mismatch``, ``snp-leaf-kind``,
        ``snp-tcb-layout``.
    """
    extensions = leaf.extensions
    version = _integer(extensions, _STRUCT_VERSION)
    if version not in _KNOWN_STRUCT_VERSIONS:
        raise Refused("snp-struct-version", f"the leaf's extensions are of version {version}; 0 and 1 are understood")
    name = _text(extensions, _PRODUCT_NAME)
    match = _NAME.fullmatch(name)
    if match is None or match.group(1) != product.name:
        raise Refused("snp-product-mismatch", f"the leaf is for {name[:32]!r}, its chain for {product.name}")
    levels = {part: _integer(extensions, LEVEL_OIDS[part]) for part in product.layout}
    absent = [oid for part, oid in LEVEL_OIDS.items() if part not in product.layout]
    for oid in (*absent, *RESERVED_LEVEL_OIDS):
        if oid in extensions and _integer(extensions, oid) != 0:
            raise Refused("snp-tcb-layout", f"the leaf has a level ({oid}) that {product.name} has not")
    hwid = csp_id = None
    if signer is Signer.VCEK:
        hwid = _octets(extensions, _HWID, product.hwid_size)
        if _CSP_ID in extensions:
            raise Refused("snp-leaf-kind", "the VCEK names a cloud provider, as only a VLEK does")
    else:
        csp_id = _text(extensions, _CSP_ID)
        if _HWID in extensions:
            raise Refused("snp-leaf-kind", "the VLEK names a chip, as only a VCEK does")
    return Leaf(levels=MappingProxyType(levels), hwid=hwid, csp_id=csp_id)


def _value(extensions: Mapping[str, bytes], oid: str) -> bytes:
    if oid not in extensions:
        raise Refused("snp-extension-missing", f"the leaf lacks the extension {oid}")
    return extensions[oid]


def _malformed(oid: str) -> InvalidInput:
    return InvalidInput("snp-extension-malformed", f"the leaf's extension {oid} is not encoded as AMD defines it")


def _integer(extensions: Mapping[str, bytes], oid: str) -> int:
    """A DER INTEGER of 0 to 255."""
    value = _value(extensions, oid)
    if len(value) == 3 and value[:2] == b"\x02\x01" and value[2] < 0x80:
        return value[2]
    if len(value) == 4 and value[:3] == b"\x02\x02\x00" and value[3] >= 0x80:
        return value[3]
    raise _malformed(oid)


def _text(extensions: Mapping[str, bytes], oid: str) -> str:
    """A DER IA5String of 1 to 127 printable characters."""
    value = _value(extensions, oid)
    if len(value) < 3 or value[0] != 0x16 or value[1] != len(value) - 2 or value[1] > 0x7F:
        raise _malformed(oid)
    if not all(0x20 <= byte < 0x7F for byte in value[2:]):
        raise _malformed(oid)
    return value[2:].decode("ascii")


def _octets(extensions: Mapping[str, bytes], oid: str, size: int) -> bytes:
    """Bytes as they are, or in a DER OCTET STRING: AMD has issued both."""
    value = _value(extensions, oid)
    if len(value) == size + 2 and value[0] == 0x04 and value[1] == size:
        return value[2:]
    if len(value) != size:
        raise _malformed(oid)
    return value
