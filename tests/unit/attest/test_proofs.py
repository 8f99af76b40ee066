"""Types carry proof: who may make a VerifiedEvidence or an Appraisal (spec/attestation.md, clause 1.4)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import cloister
from cloister.attest.appraise import appraise
from cloister.attest.types import Appraisal, VerifiedEvidence

SOURCE = Path(cloister.__file__).parent
HOLDERS = {
    "PROOF_OF_VERIFICATION": {
        "attest/types.py",
        "attest/dcap/verify.py",
        "attest/snp/verify.py",
        "attest/nitro/verify.py",
        "attest/simulation/verify.py",
    },
    "PROOF_OF_APPRAISAL": {"attest/types.py", "attest/appraise.py"},
}


@pytest.mark.parametrize("name", HOLDERS)
def test_only_verifiers_and_appraise_hold_the_proofs(name: str) -> None:
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))
    }
    assert found == HOLDERS[name]


def test_no_other_evidence_counts_as_verified(case) -> None:
    claims = case.verified().claims
    for proof in (None, True, object(), "PROOF_OF_VERIFICATION"):
        with pytest.raises(AssertionError, match="made by a verifier only"):
            VerifiedEvidence(claims, verified_at=1.0, expires_at=2.0, proof=proof)
    with pytest.raises(TypeError):
        VerifiedEvidence(claims, verified_at=1.0, expires_at=2.0)


def test_no_other_verdict_counts_as_an_appraisal(case) -> None:
    verified = case.verified()
    appraisal = appraise(
        verified,
        configuration=case.configuration,
        report_data=case.report_data,
        policy=case.policy(),
        now=case.now,
    )
    for proof in (None, verified.proof, object()):
        with pytest.raises(AssertionError, match=r"made by appraise\(\) only"):
            replace(appraisal, proof=proof)
    with pytest.raises(TypeError):
        Appraisal(verified.claims, case.configuration, b"d" * 32, "rule", 1.0, 2.0)
