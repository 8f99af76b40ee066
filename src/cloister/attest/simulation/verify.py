"""Verify simulated evidence under the keys that the trust anchors name (spec/attestation.md, clauses 6.1, 6.2)."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from cloister.attest import claim_names
from cloister.attest.anchors import TrustAnchors
from cloister.attest.simulation.parse import WARNING, parse, parse_payload
from cloister.attest.steps import Steps
from cloister.attest.types import PROOF_OF_VERIFICATION, Claims, Collateral, Evidence, TeeType, VerifiedEvidence
from cloister.base.errors import InvalidInput, Refused
from cloister.base.limits import CLOCK_SKEW_S, MAX_SIMULATED_EVIDENCE, SIMULATED_EVIDENCE_LIFETIME_S
from cloister.crypto.digest import Context
from cloister.wire import cose

PLAN: Final = (
    ("parse", "attestation.md 6.1"),
    ("simulation-key", "attestation.md 6.2"),
    ("signature", "attestation.md 6.1"),
    ("validity", "attestation.md 2.5"),
)


def verify(
    evidence: Evidence, collateral: Collateral, anchors: TrustAnchors, now: float, steps: Steps
) -> VerifiedEvidence:
    """Claims of simulated evidence.

    :raises InvalidInput: ``evidence-other-tee``, ``simulation-collateral`` and the parser's codes.
    :raises Refused: ``simulation-refused`` unless the anchors name the key; ``simulation-expired``,
        ``simulation-not-yet-valid``.
    :raises Tampered: ``signature-invalid``.
    """
    steps.extend(PLAN)
    with steps.step("parse"):
        if evidence.tee is not TeeType.SIMULATION:
            raise InvalidInput("evidence-other-tee", f"evidence of {evidence.tee} is not {WARNING} evidence")
        if collateral.files or evidence.endorsements:
            raise InvalidInput("simulation-collateral", f"{WARNING} evidence comes without collateral")
        key = parse(evidence.body).key
    with steps.step("simulation-key", f"{WARNING}: {key.hex()}"):
        if key not in anchors.simulation_keys:
            raise Refused(
                "simulation-refused",
                f"the trust anchors do not accept {WARNING} evidence of this key",
                hint="Simulation protects nothing; only a trust bundle that names the key makes it acceptable.",
            )
    with steps.step("signature"):
        token = parse_payload(
            cose.verify1(
                evidence.body, Context.SIMULATED_EVIDENCE, key, limit=MAX_SIMULATED_EVIDENCE, what="simulated evidence"
            )
        )
    expires_at = float(token.issued_at + SIMULATED_EVIDENCE_LIFETIME_S)
    with steps.step("validity"):
        if token.issued_at > now + CLOCK_SKEW_S:
            raise Refused("simulation-not-yet-valid", f"the evidence was issued at {token.issued_at}, after {now:.0f}")
        if now > expires_at:
            raise Refused("simulation-expired", f"the evidence of {token.issued_at} expired at {expires_at:.0f}")
    claims = Claims(
        tee=TeeType.SIMULATION,
        measurements=MappingProxyType({"measurement": token.measurement}),
        report_data=token.report_data,
        debug=token.debug,
        tcb_status="UpToDate",
        advisories=(),
        security_version=token.security_version,
        platform_id=b"",
        specific=MappingProxyType(
            {
                claim_names.SIMULATION_WARNING: WARNING,
                claim_names.SIMULATION_ISSUED_AT: token.issued_at,
                claim_names.SIMULATION_CONFIGURATION: token.configuration_digest,
            }
        ),
        configuration_digest=token.configuration_digest,
    )
    return VerifiedEvidence(claims, verified_at=now, expires_at=expires_at, proof=PROOF_OF_VERIFICATION)
