"""Quotes recorded on real hardware give the verdict and the claims that their meta.json states."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cloister.attest.anchors import TrustAnchors, production_anchors
from cloister.attest.dcap.parse import parse
from cloister.attest.dcap.quote import SgxQuote
from cloister.attest.steps import Steps, Verdict
from cloister.attest.types import Collateral, Evidence, TeeType, VerifiedEvidence
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, Refused
from cloister.testing.evidence_dcap import SyntheticIntel

NAMES = ("sgx/v3-processor-ca", "tdx/v4-uptodate", "tdx/v4-outofdate", "tdx/v4-DEBUG", "tdx/v5-td15-uptodate")
GOOD = tuple(name for name in NAMES if "DEBUG" not in name)


class Recorded:
    """One folder."""

    def __init__(self, folder: Path) -> None:
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        self.evidence = Evidence(TeeType(self.meta["tee"]), (folder / "quote.bin").read_bytes())
        self.collateral = Collateral({"collateral.json": (folder / "collateral.json").read_bytes()})
        self.now: int = self.meta["verify_at"]

    def verify(self, anchors: TrustAnchors | None = None, now: float | None = None) -> tuple[VerifiedEvidence, Steps]:
        steps = Steps()
        at = self.now if now is None else now
        return verify(self.evidence, self.collateral, anchors or production_anchors(), at, steps), steps


@pytest.fixture
def recorded(evidence_dir: Path, request: pytest.FixtureRequest) -> Recorded:
    return Recorded(evidence_dir / request.param)


@pytest.mark.parametrize("recorded", GOOD, indirect=True)
def test_genuine_evidence_verifies_at_the_time_it_was_made(recorded: Recorded) -> None:
    verified, steps = recorded.verify()
    assert all(step.verdict is Verdict.PASS for step in steps.report)
    claims = verified.claims
    assert claims.tee is recorded.evidence.tee
    assert not claims.debug
    assert claims.specific["fmspc"] == bytes.fromhex(recorded.meta["fmspc"])
    assert claims.specific["quote_version"] == recorded.meta.get("quote_version", 3)
    assert len(claims.platform_id) == 16
    assert verified.verified_at == recorded.now <= verified.expires_at < math.inf
    assert verified.parts == ()


STATUS = {
    "sgx/v3-processor-ca": "ConfigurationAndSWHardeningNeeded",
    "tdx/v4-uptodate": "UpToDate",
    "tdx/v4-outofdate": "OutOfDate",
    "tdx/v5-td15-uptodate": "UpToDate",
}


@pytest.mark.parametrize(("recorded", "status"), STATUS.items(), indirect=["recorded"])
def test_the_tcb_status_is_what_meta_json_states(recorded: Recorded, status: str) -> None:
    assert status in recorded.meta["expect"]
    assert recorded.verify()[0].claims.tcb_status == status


@pytest.mark.parametrize("recorded", ["sgx/v3-processor-ca"], indirect=True)
def test_claims_of_the_recorded_enclave(recorded: Recorded) -> None:
    claims = recorded.verify()[0].claims
    assert claims.advisories == ("INTEL-SA-00289", "INTEL-SA-00615")
    assert claims.measurements["mrenclave"].hex().startswith("33d8736db756ed49")
    assert claims.measurements["mrsigner"].hex().startswith("815f42f11cf64430")
    assert claims.report_data == b"Hello, world!".ljust(64, b"\0")
    assert (claims.security_version, claims.specific["product_id"]) == (0, 0)
    assert claims.specific["tcb_evaluation_data_number"] == 17
    assert not {"smt", "dynamic_platform", "cached_keys", "platform_instance_id"} & set(claims.specific)


@pytest.mark.parametrize("recorded", ["tdx/v4-uptodate"], indirect=True)
def test_claims_of_the_recorded_td(recorded: Recorded) -> None:
    claims = recorded.verify()[0].claims
    assert claims.advisories == ()
    assert set(claims.measurements) == {"mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"}
    assert claims.measurements["mrtd"].hex().startswith("91eb2b44d141d4ec")
    assert claims.measurements["rtmr3"] == bytes(48)
    assert (claims.specific["smt"], claims.specific["dynamic_platform"], claims.specific["cached_keys"]) == (True,) * 3
    assert claims.specific["td_attributes"] == 1 << 28
    assert claims.specific["xfam"] == 0x602E7
    assert claims.specific["td_report"] == "1.0"
    assert "tee_tcb_svn2" not in claims.specific
    assert parse(recorded.evidence.body).padding == 70


@pytest.mark.parametrize("recorded", ["tdx/v5-td15-uptodate"], indirect=True)
def test_claims_of_the_recorded_td_with_report_1_5(recorded: Recorded) -> None:
    claims = recorded.verify()[0].claims
    assert claims.specific["td_report"] == "1.5"
    assert claims.specific["tee_tcb_svn2"] == bytes.fromhex("0d0104").ljust(16, b"\0")


@pytest.mark.parametrize("recorded", ["tdx/v4-outofdate"], indirect=True)
def test_out_of_date_is_never_reported_as_up_to_date(recorded: Recorded) -> None:
    """dcap-qvl returns normally for OutOfDate (its issue 125); what comes out here says so."""
    claims = recorded.verify()[0].claims
    assert claims.tcb_status == "OutOfDate"
    assert claims.specific["cached_keys"] is False


@pytest.mark.parametrize("recorded", ["tdx/v4-DEBUG"], indirect=True)
def test_a_td_in_debug_mode_is_refused_although_every_signature_is_genuine(recorded: Recorded) -> None:
    steps = Steps()
    with pytest.raises(Refused) as refusal:
        verify(recorded.evidence, recorded.collateral, production_anchors(), recorded.now, steps)
    assert refusal.value.code == "debug-enabled"
    *before, last = steps.report
    assert (last.name, last.verdict) == ("attributes", Verdict.FAIL)
    assert all(step.verdict is Verdict.PASS for step in before)


@pytest.mark.parametrize("recorded", GOOD, indirect=True)
def test_verification_is_at_a_time(recorded: Recorded) -> None:
    expires = recorded.verify()[0].expires_at
    recorded.verify(now=expires)  # the last moment is inside
    for moment in (expires + 1, expires + 10**9, 0):
        with pytest.raises(Refused, match=r"expired|not-yet-valid"):
            recorded.verify(now=moment)


@pytest.mark.parametrize("recorded", NAMES, indirect=True)
def test_genuine_evidence_is_refused_under_any_other_root(recorded: Recorded) -> None:
    for anchors in (TrustAnchors(), SyntheticIntel.sgx().anchors()):
        with pytest.raises(Refused, match="root-not-pinned"):
            recorded.verify(anchors)


@pytest.mark.parametrize("recorded", NAMES, indirect=True)
def test_collateral_of_another_platform_is_refused(recorded: Recorded, evidence_dir: Path) -> None:
    for name in NAMES:
        other = Recorded(evidence_dir / name)
        if other.meta["fmspc"] == recorded.meta["fmspc"]:
            continue
        with pytest.raises(CloisterError):
            verify(recorded.evidence, other.collateral, production_anchors(), recorded.now)


@pytest.mark.parametrize("recorded", NAMES, indirect=True)
def test_a_quote_is_not_evidence_of_the_other_tee(recorded: Recorded) -> None:
    other = TeeType.TDX if recorded.evidence.tee is TeeType.SGX else TeeType.SGX
    with pytest.raises(Refused, match="evidence-other-tee"):
        verify(Evidence(other, recorded.evidence.body), recorded.collateral, production_anchors(), recorded.now)


@pytest.mark.parametrize("recorded", NAMES, indirect=True)
def test_the_parser_reads_every_byte_of_the_body(recorded: Recorded) -> None:
    quote = parse(recorded.evidence.body)
    size = 384 if isinstance(quote, SgxQuote) else {"1.0": 584, "1.5": 648 + 6}[quote.report.version]
    assert len(quote.signed) == 48 + size
    assert quote.signed == recorded.evidence.body[: 48 + size]
