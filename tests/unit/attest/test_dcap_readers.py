"""Two readers of one quote must agree, and what neither may read is refused before either does (clause 3.15)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cloister.attest.anchors import TrustAnchors
from cloister.attest.dcap import verify as module
from cloister.attest.dcap.parse import parse
from cloister.attest.dcap.pck import PckPlatform
from cloister.attest.dcap.quote import SgxQuote, TdxQuote
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput, Tampered
from cloister.base.limits import MAX_EVIDENCE
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import NOW

MAKERS = {"sgx": SyntheticIntel.sgx, "tdx4": lambda: SyntheticIntel.tdx(4), "tdx5": lambda: SyntheticIntel.tdx(5)}


def code_of(intel: SyntheticIntel, anchors: TrustAnchors | None = None) -> str:
    with pytest.raises(CloisterError) as refusal:
        verify(intel.evidence(), intel.collateral(), anchors or intel.anchors(), NOW)
    return refusal.value.code


def misread(body: bytes, **fields: bytes) -> SgxQuote | TdxQuote:
    """The quote, as a parser with a fault would report it."""
    quote = parse(body)
    return replace(quote, report=replace(quote.report, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("field", ["measurement", "report_data"])
def test_a_claim_that_the_other_reader_did_not_read_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, field: str
) -> None:
    intel = MAKERS[kind]()
    name = field if field == "report_data" else "mr_enclave" if kind == "sgx" else "mr_td"
    length = len(getattr(parse(intel.quote()).report, name))
    assert verify(intel.evidence(), intel.collateral(), intel.anchors(), NOW)
    monkeypatch.setattr(module, "parse", lambda body: misread(body, **{name: b"\x99" * length}))
    assert code_of(intel) == "dcap-disagreement"


PLATFORMS: dict[str, Callable[[PckPlatform], PckPlatform]] = {
    "ppid": lambda platform: replace(platform, ppid=b"\x99" * 16),
    "cpu_svn": lambda platform: replace(platform, cpu_svn=b"\x99" * 16),
    "pce_svn": lambda platform: replace(platform, pce_svn=platform.pce_svn + 1),
}


@pytest.mark.parametrize("field", PLATFORMS)
def test_a_platform_that_the_other_reader_did_not_read_is_refused(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    intel, read = SyntheticIntel.tdx(4), module.platform_of
    monkeypatch.setattr(module, "platform_of", lambda leaf: PLATFORMS[field](read(leaf)))
    with pytest.raises(Tampered, match="dcap-disagreement"):
        verify(intel.evidence(), intel.collateral(), intel.anchors(), NOW)


def test_a_quote_above_the_limit_is_not_read() -> None:
    with pytest.raises(InvalidInput, match="quote-too-long"):
        parse(SyntheticIntel.sgx().quote() + bytes(MAX_EVIDENCE))


def test_a_pin_that_is_no_certificate_is_an_error_of_its_own() -> None:
    assert code_of(SyntheticIntel.sgx(), TrustAnchors(intel_root_der=(b"no certificate",))) == "anchor-malformed"
