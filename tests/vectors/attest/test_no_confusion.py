"""NEGATIVE_CASES A6: evidence of one TEE, labelled as of another, is refused by its verifier, never believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.attest.anchors import production_anchors
from cloister.attest.simulation import produce
from cloister.attest.simulation.parse import SimulatedToken
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.errors import InvalidInput, Refused, Tampered
from cloister.crypto.sign import SigningKey

RECORDED = {
    TeeType.SGX: ("sgx/v3-processor-ca", "quote.bin", ("collateral.json",)),
    TeeType.TDX: ("tdx/v4-uptodate", "quote.bin", ("collateral.json",)),
    TeeType.SEV_SNP: ("sev-snp/milan-v2-vcek", "report.bin", ("vek.der", "ask_ark.pem")),
    TeeType.NITRO: ("nitro/prod-2025", "document.cose", ()),
}


@pytest.mark.parametrize("label", list(TeeType))
@pytest.mark.parametrize("tee", list(RECORDED))
def test_a_label_does_not_make_evidence(evidence_dir: Path, tee: TeeType, label: TeeType) -> None:
    folder, body, files = RECORDED[tee]
    place = evidence_dir / folder
    now = json.loads((place / "meta.json").read_text())["verify_at"]
    evidence = Evidence(label, (place / body).read_bytes())
    collateral = Collateral({name: (place / name).read_bytes() for name in files})
    anchors = production_anchors().with_simulation((SigningKey.generate().public_key,))
    if label is tee:
        assert verify(evidence, collateral, anchors, now).claims.tee is tee
        return
    with pytest.raises((InvalidInput, Refused)):
        verify(evidence, collateral, anchors, now)
    with pytest.raises((InvalidInput, Refused)):
        verify(evidence, Collateral(), anchors, now)


@pytest.mark.parametrize("label", [tee for tee in TeeType if tee is not TeeType.SIMULATION])
def test_simulation_is_no_real_tee(label: TeeType) -> None:
    key = SigningKey.generate()
    token = SimulatedToken(key.public_key, bytes(48), bytes(32), bytes(64), 1_800_000_000)
    evidence = Evidence(label, produce(key, token).body)
    with pytest.raises((InvalidInput, Refused, Tampered)):
        verify(evidence, Collateral(), production_anchors().with_simulation((key.public_key,)), 1_800_000_000.0)
