"""What a TEE's own evidence says of the code in it, for the code in it to say in its answers."""

from __future__ import annotations

from cloister.attest.types import Attester, TeeType
from cloister.base.errors import Tampered

_NOTHING_BOUND = bytes(64)


def own_code(attester: Attester) -> bytes:
    """What names the code as a trust bundle's successor (attestation.md, 10.9); raises as :func:`own_measurement`."""
    if attester.tee is not TeeType.TDX:
        return own_measurement(attester)
    from cloister.attest.code import tdx_code
    from cloister.attest.dcap.parse import parse as parse_quote
    from cloister.attest.dcap.quote import TdxQuote

    quote = parse_quote(attester.evidence(_NOTHING_BOUND).body)
    if not isinstance(quote, TdxQuote):
        raise Tampered("evidence-device-lied", "the quote of this TD is none of a TD")
    return tdx_code(quote.report.mr_td, quote.report.rtmr)


def own_measurement(attester: Attester) -> bytes:
    """MRENCLAVE, MRTD, launch measurement or PCR0.

    Only parsed, not verified: it is this machine's own word, and whoever must believe it verifies evidence of his own.

    :raises Unavailable: ``evidence-unavailable``. :raises InvalidInput: evidence that cannot be read.
    :raises Tampered: ``evidence-device-lied``.
    """
    body = attester.evidence(_NOTHING_BOUND).body
    match attester.tee:
        case TeeType.SGX | TeeType.TDX:
            from cloister.attest.dcap.parse import parse as parse_quote
            from cloister.attest.dcap.quote import TdxQuote

            quote = parse_quote(body)
            return quote.report.mr_td if isinstance(quote, TdxQuote) else quote.report.mr_enclave
        case TeeType.SEV_SNP:
            from cloister.attest.snp.parse import parse as parse_report

            return parse_report(body).measurement
        case TeeType.NITRO:
            from cloister.attest.nitro.parse import parse as parse_document

            pcrs = parse_document(body).pcrs
            if 0 not in pcrs:
                raise Tampered("evidence-device-lied", "the document of this enclave has no PCR0")
            return pcrs[0]
        case TeeType.SIMULATION:
            from cloister.attest.simulation.parse import parse as parse_token

            return parse_token(body).measurement
