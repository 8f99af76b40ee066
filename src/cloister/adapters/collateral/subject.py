"""Whose collateral is it: the platform that evidence names, before anything in the evidence is believed.

Subjects choose what to ask for and under which name to keep it. A lie in the evidence gives collateral that does not
fit, and verification refuses.
"""

from __future__ import annotations

import hashlib
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from cloister.attest.dcap.chain import PCK_CAS, read_chain
from cloister.attest.dcap.parse import parse as parse_quote
from cloister.attest.dcap.pck import platform_of
from cloister.attest.snp.certificates import CERT_TABLE, VEK_FILE, Signer, cert_table
from cloister.attest.snp.parse import parse as parse_report
from cloister.attest.snp.tcb import PRODUCTS
from cloister.attest.types import Evidence, TeeType
from cloister.base.errors import InvalidInput

VLEKS: Final = "sev-snp/vlek/"  # begins the name of each


@dataclass(frozen=True, slots=True)
class IntelSubject:
    """An SGX or TDX platform: TCB info is per ``fmspc`` (6 bytes), the CRL per CA (``processor`` or ``platform``)."""

    tee: TeeType
    fmspc: bytes
    ca: str

    @property
    def key(self) -> str:
        """The name under which its collateral is kept."""
        return f"{self.tee.value}/{self.fmspc.hex()}/{self.ca}"


@dataclass(frozen=True, slots=True)
class AmdSubject:
    """A chip with its firmware (VCEK), or a provider's key (VLEK).

    :param product: ``Milan``, ``Genoa``, ``Turin``; ``None`` where the report does not say (version 2).
    :param chip_id: 64 bytes; ``tcb`` the 8 bytes of REPORTED_TCB.
    :param vek: the certificate, where it came with the evidence.
    """

    signer: Signer
    product: str | None
    chip_id: bytes
    tcb: bytes
    vek: bytes | None

    @property
    def key(self) -> str:
        """The name under which its collateral is kept."""
        if self.signer is Signer.VLEK:
            return f"{VLEKS}{hashlib.sha256(self.vek or b'').hexdigest()[:32]}"
        return f"sev-snp/vcek/{self.chip_id.hex()}/{self.tcb.hex()}"


Subject = IntelSubject | AmdSubject


def subject_named(key: str, vek: bytes | None) -> Subject:
    """The platform of this name.

    :param vek: the certificate that is kept under it, which the name of a VLEK is made from.
    :raises InvalidInput: ``collateral-malformed`` when it names no platform.
    """
    subject: Subject | None = None
    with suppress(ValueError):  # what is no hexadecimal text names nothing
        match key.split("/"):
            case [("sgx" | "tdx") as tee, fmspc, ca]:
                subject = IntelSubject(TeeType(tee), bytes.fromhex(fmspc), ca)
            case ["sev-snp", "vcek", chip, tcb]:
                subject = AmdSubject(Signer.VCEK, None, bytes.fromhex(chip), bytes.fromhex(tcb), None)
            case ["sev-snp", "vlek", _]:
                subject = AmdSubject(Signer.VLEK, None, b"", b"", vek)
            case _:
                pass
    if subject is None or subject.key != key:
        raise InvalidInput("collateral-malformed", f"the collateral is not of a platform named {key[:256]!r}")
    return subject


def subject_of(evidence: Evidence) -> Subject | None:
    """The platform of this evidence; ``None`` for a TEE that needs no collateral (Nitro, simulation).

    :raises InvalidInput: the evidence is malformed, or of a kind that nobody could fetch collateral for.
    """
    if evidence.tee in (TeeType.SGX, TeeType.TDX):
        return _intel(evidence)
    if evidence.tee is TeeType.SEV_SNP:
        return _amd(evidence)
    return None


def _intel(evidence: Evidence) -> IntelSubject:
    chain = read_chain(parse_quote(evidence.body).signature.pck_chain, "the PCK chain")
    leaf = chain[0]
    names = [str(attribute.value) for attribute in leaf.issuer]
    authority = next((PCK_CAS[name] for name in names if name in PCK_CAS), None)
    if authority is None:
        raise InvalidInput("collateral-subject", "the PCK certificate was not issued by a PCK CA")
    return IntelSubject(evidence.tee, platform_of(leaf).fmspc, authority)


def _amd(evidence: Evidence) -> AmdSubject:
    report = parse_report(evidence.body)
    signer = next((kind for kind in Signer if kind.signing_key == report.signing_key), None)
    if signer is None:
        raise InvalidInput("collateral-subject", f"SIGNING_KEY {report.signing_key} is neither a VCEK nor a VLEK")
    product = None
    if report.cpuid_family is not None and report.cpuid_model is not None:
        found = (p for p in PRODUCTS.values() if p.has_cpu(report.cpuid_family, report.cpuid_model))
        product = next((p.name for p in found), None)
    table = cert_table(evidence.endorsements[CERT_TABLE]) if CERT_TABLE in evidence.endorsements else {}
    vek = evidence.endorsements.get(VEK_FILE, table.get(signer.label))
    vek = None if vek is None else certificate_der(vek)
    return AmdSubject(signer, product, report.chip_id, report.reported_tcb, vek)


def certificate_der(data: bytes) -> bytes:
    """A certificate as DER: some hosts put PEM into the certificate table.

    :raises InvalidInput: ``collateral-malformed``.
    """
    if not data.startswith(b"-----BEGIN CERT"):
        return data
    try:
        return ssl.PEM_cert_to_DER_cert(data.decode("ascii").strip())
    except (UnicodeError, ValueError) as error:
        raise InvalidInput("collateral-malformed", "what looks like a PEM certificate is none") from error
