"""Verify evidence of any TEE: signatures, chains, revocation, collateral, at a given time (spec/attestation.md, 2-6).

The label of the evidence chooses the verifier, and the verifier refuses bytes of another TEE (clause 2.3); each one is
imported only when it is needed, so that a service on one TEE loads no other's.
"""

from __future__ import annotations

import math
from typing import Protocol

from cloister.attest.anchors import TrustAnchors
from cloister.attest.steps import Steps
from cloister.attest.types import Collateral, Evidence, TeeType, VerifiedEvidence
from cloister.base.errors import InvalidInput, Refused
from cloister.base.limits import MAX_COLLATERAL, MAX_EVIDENCE


class Verifier(Protocol):
    """What each TEE's package offers; pure, and made only of its arguments."""

    def __call__(
        self, evidence: Evidence, collateral: Collateral, anchors: TrustAnchors, now: float, steps: Steps
    ) -> VerifiedEvidence:
        """Verify, recording each step.

        :raises InvalidInput: the bytes are not evidence or collateral of this TEE.
        :raises Refused: they are, and a rule of the specification says no.
        :raises Tampered: a signature does not verify.
        """


def _verifier(tee: TeeType) -> Verifier:
    match tee:
        case TeeType.SGX:
            from cloister.attest.dcap.verify import verify_sgx

            return verify_sgx
        case TeeType.TDX:
            from cloister.attest.dcap.verify import verify_tdx

            return verify_tdx
        case TeeType.SEV_SNP:
            from cloister.attest.snp.verify import verify as verify_snp

            return verify_snp
        case TeeType.NITRO:
            from cloister.attest.nitro.verify import verify as verify_nitro

            return verify_nitro
        case TeeType.SIMULATION:
            from cloister.attest.simulation.verify import verify as verify_simulation

            return verify_simulation


def verify(
    evidence: Evidence,
    collateral: Collateral,
    anchors: TrustAnchors,
    now: float,
    steps: Steps | None = None,
) -> VerifiedEvidence:
    """What this evidence proves at ``now`` (Unix seconds) under these trust anchors.

    :param steps: records every step for a report; see :mod:`cloister.attest.steps`.
    :raises InvalidInput: ``evidence-too-long``, ``collateral-too-long``, and each parser's codes.
    :raises Refused: ``evidence-other-tee``, ``evidence-expired``, and each verifier's codes.
    :raises Tampered: a signature does not verify.
    """
    if not math.isfinite(now) or now < 0:
        raise InvalidInput("time-malformed", f"the time of verification is {now}, which is no Unix time")
    size = len(evidence.body) + sum(map(len, evidence.endorsements.values()))
    if size > MAX_EVIDENCE:
        raise InvalidInput("evidence-too-long", f"the evidence has {size} bytes; at most {MAX_EVIDENCE} are accepted")
    size = sum(map(len, collateral.files.values()))
    if size > MAX_COLLATERAL:
        raise InvalidInput(
            "collateral-too-long", f"the collateral has {size} bytes; at most {MAX_COLLATERAL} are accepted"
        )
    verified = _verifier(evidence.tee)(evidence, collateral, anchors, now, Steps() if steps is None else steps)
    if verified.claims.tee is not evidence.tee:
        raise Refused(
            "evidence-other-tee", f"evidence labelled {evidence.tee} turned out to be of {verified.claims.tee}"
        )
    if verified.expires_at < now:
        raise Refused("evidence-expired", "something that the evidence rests on had already expired")
    return verified
