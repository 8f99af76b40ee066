"""Check collateral by itself, without evidence: is it the vendor's, whole, and valid (spec/attestation.md, 8.2 to 8.4).

Verification checks the same again with the evidence. This keeps bad answers out of a cache, finds poisoned entries in
one, and says of a bundle when it runs out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509 as pyca

from cloister.adapters.collateral.subject import AmdSubject, IntelSubject, Subject, certificate_der
from cloister.attest import x509
from cloister.attest.anchors import TrustAnchors
from cloister.attest.dcap import chain as paths
from cloister.attest.dcap.collateral import FILE, parse_collateral
from cloister.attest.dcap.collateral_check import check_parts
from cloister.attest.snp.certificates import (
    CRL_FILE,
    VEK_FILE,
    Leaf,
    Signer,
    check_revocation,
    collect,
    read_leaf,
    verify_chain,
)
from cloister.attest.snp.tcb import PRODUCTS, Product
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.base.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Checked:
    """Collateral that is the vendor's and valid.

    :param expires_at: Unix seconds, the earliest end of any part.
    :param numbers: numbers that only grow, by name (clause 8.3). A name says of what the number is, so that what one
        platform brings counts for every other one under the same list.
    """

    expires_at: float
    numbers: Mapping[str, int] = field(default_factory=dict)


def check_collateral(tee: TeeType, collateral: Collateral, anchors: TrustAnchors, now: float) -> Checked:
    """Check collateral of this TEE.

    :raises InvalidInput: malformed, or files that do not belong there.
    :raises Refused: expired, not yet valid, revoked, not under a pinned root.
    :raises Tampered: a signature does not hold.
    """
    if tee in (TeeType.SGX, TeeType.TDX):
        return _intel(tee, collateral, anchors, now)
    if tee is TeeType.SEV_SNP:
        return _amd(collateral, anchors, now)
    if collateral.files:
        raise InvalidInput("collateral-malformed", f"evidence of {tee.value!r} needs no collateral")
    return Checked(float("inf"))


def check_subject(subject: Subject, collateral: Collateral) -> None:
    """Is this collateral of the platform that was asked for?

    :raises InvalidInput: ``collateral-other-platform``, or malformed.
    """
    if isinstance(subject, IntelSubject):
        parts = parse_collateral(collateral.files.get(FILE, b""))
        issuer = paths.read_chain(parts.pck_crl_issuer_chain.encode(), "the PCK CRL's issuer chain")[0]
        fits = parts.tcb_info.fmspc == subject.fmspc and paths.pck_ca(issuer) == subject.ca
    else:
        vek = certificate_der(collateral.files.get(VEK_FILE, b""))
        leaf = x509.load_certificate(vek, VEK_FILE)
        fits = leaf.common_name == subject.signer.leaf_name
        if subject.vek is not None:
            fits = fits and vek == subject.vek
        elif fits:
            chain = collect(Evidence(TeeType.SEV_SNP, b""), collateral, subject.signer)
            product = PRODUCTS.get(chain.ark.common_name.removeprefix("ARK-"))
            fits = product is not None and _is_of(read_leaf(leaf, subject.signer, product), subject, product)
    if not fits:
        raise InvalidInput("collateral-other-platform", f"the collateral is not of {subject.key}")


def _is_of(leaf: Leaf, subject: AmdSubject, product: Product) -> bool:
    chip = subject.chip_id[: product.hwid_size]
    return leaf.hwid == chip and dict(leaf.levels) == dict(product.tcb(subject.tcb))


def _intel(tee: TeeType, collateral: Collateral, anchors: TrustAnchors, now: float) -> Checked:
    if set(collateral.files) != {FILE}:
        raise InvalidInput("collateral-malformed", f"Intel collateral is one file, {FILE!r}")
    parts = parse_collateral(collateral.files[FILE])
    expires = check_parts(tee, parts, anchors, now)
    numbers = {
        f"tcb-info/{tee.value}/{parts.tcb_info.fmspc.hex()}": parts.tcb_info.evaluation_number,
        f"qe-identity/{tee.value}": parts.qe_identity.evaluation_number,
    }
    ca = paths.pck_ca(paths.read_chain(parts.pck_crl_issuer_chain.encode(), "the PCK CRL's issuer chain")[0])
    for name, der in (("root-crl", parts.root_ca_crl), (f"pck-crl/{ca}", parts.pck_crl)):
        number = paths.crl_number(pyca.load_der_x509_crl(der))
        if number is not None:
            numbers[name] = number
    return Checked(expires, numbers)


def _amd(collateral: Collateral, anchors: TrustAnchors, now: float) -> Checked:
    leaf = x509.load_certificate(certificate_der(collateral.files.get(VEK_FILE, b"")), VEK_FILE)
    signer = next((kind for kind in Signer if kind.leaf_name == leaf.common_name), None)
    if signer is None:
        raise InvalidInput("collateral-malformed", f"{VEK_FILE} is neither a VCEK nor a VLEK")
    chain = collect(Evidence(TeeType.SEV_SNP, b""), collateral, signer)
    verify_chain(chain, signer, anchors)
    for what, certificate in chain.named:
        x509.check_window(certificate.not_before, certificate.not_after, now, what)
    ends = [certificate.not_after for _, certificate in chain.named]
    numbers: dict[str, int] = {}
    if chain.crl is not None:
        check_revocation(chain.crl, chain, now)
        ends.append(chain.crl.next_update)
        number = paths.crl_number(pyca.load_der_x509_crl(collateral.files[CRL_FILE]))
        if number is not None:
            numbers[f"ark-crl/{chain.ark.common_name}"] = number
    return Checked(min(ends), numbers)
