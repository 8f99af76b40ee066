"""Everything that a service needs of its TEE, from the machine it runs on: evidence, sealing, its own measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cloister.adapters.tee.bound import REPORT_DATA_LENGTH
from cloister.adapters.tee.detect import detect
from cloister.adapters.tee.sealing import open_sealer
from cloister.attest.types import Attester, Evidence, Sealer, TeeType
from cloister.base.errors import Unavailable


@dataclass(frozen=True, slots=True)
class HardwareTee:
    """A TEE that answers.

    :param measurement: MRENCLAVE, MRTD, MEASUREMENT or PCR0, as the TEE's own evidence says.
    """

    attester: Attester
    sealer: Sealer
    measurement: bytes


def open_tee(
    configuration_digest: bytes,
    *,
    expected: TeeType | None = None,
    privilege_level: int | None = None,
    root: Path = Path("/"),
) -> HardwareTee:
    """Find the TEE, ask it for evidence once, and open its sealer.

    :param configuration_digest: what is sealed is bound to it.
    :raises Unavailable: ``evidence-unavailable``, ``sealing-unavailable``.
    :raises Refused: ``tee-ambiguous``, ``tee-unexpected``.
    :raises Tampered: ``evidence-device-lied``.
    """
    attester = detect(root=root, expected=expected, privilege_level=privilege_level)
    measurement = measurement_of(attester.evidence(bytes(REPORT_DATA_LENGTH)))
    sealer = open_sealer(attester.tee, configuration_digest, privilege_level=privilege_level or 0, root=root)
    return HardwareTee(attester, sealer, measurement)


def measurement_of(evidence: Evidence) -> bytes:
    """The measurement in evidence of this machine's own TEE, which nobody has verified.

    :raises InvalidInput: it is malformed.
    :raises Unavailable: ``evidence-unavailable`` for simulation, which is no hardware.
    """
    if evidence.tee in (TeeType.SGX, TeeType.TDX):
        from cloister.attest.dcap.parse import parse as parse_quote
        from cloister.attest.dcap.quote import TdxQuote

        quote = parse_quote(evidence.body)
        return quote.report.mr_td if isinstance(quote, TdxQuote) else quote.report.mr_enclave
    if evidence.tee is TeeType.SEV_SNP:
        from cloister.attest.snp.parse import parse as parse_report

        return parse_report(evidence.body).measurement
    if evidence.tee is TeeType.NITRO:
        from cloister.attest.nitro.parse import parse as parse_document

        return parse_document(evidence.body).pcrs.get(0, b"")
    raise Unavailable("evidence-unavailable", f"{evidence.tee.value} is no hardware")
