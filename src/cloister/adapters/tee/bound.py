"""Is evidence over the bytes that were asked for? Asked of every device, before its evidence leaves the guest."""

from __future__ import annotations

from typing import Final

from cloister.attest.types import Evidence, TeeType
from cloister.base.errors import InvalidInput, Tampered
from cloister.crypto.digest import same

REPORT_DATA_LENGTH: Final = 64


def check_report_data(report_data: bytes) -> None:
    """:raises InvalidInput: ``report-data-length``."""
    if len(report_data) != REPORT_DATA_LENGTH:
        raise InvalidInput(
            "report-data-length", f"report data has {REPORT_DATA_LENGTH} bytes, this has {len(report_data)}"
        )


def check_bound(evidence: Evidence, report_data: bytes) -> None:
    """:raises Tampered: ``evidence-device-lied`` when the evidence is malformed, of another TEE, or for other bytes."""
    try:
        found = _report_data(evidence)
    except InvalidInput as error:
        raise Tampered("evidence-device-lied", f"the device answers with what is no evidence: {error}") from error
    if found is None or not same(found, report_data):
        raise Tampered("evidence-device-lied", "the device answers with evidence over other report data")


def _report_data(evidence: Evidence) -> bytes | None:
    """Only the parser of this TEE is loaded."""
    if evidence.tee in (TeeType.SGX, TeeType.TDX):
        from cloister.attest.dcap.parse import parse as parse_quote
        from cloister.attest.dcap.quote import TdxQuote

        quote = parse_quote(evidence.body)
        if isinstance(quote, TdxQuote) != (evidence.tee is TeeType.TDX):
            return None
        return quote.report.report_data
    if evidence.tee is TeeType.SEV_SNP:
        from cloister.attest.snp.parse import parse as parse_report

        return parse_report(evidence.body).report_data
    if evidence.tee is TeeType.NITRO:
        from cloister.attest.nitro.parse import parse as parse_document

        return parse_document(evidence.body).user_data
    return None
