"""Ask a verifier, and demand that it refuses with exactly one code, in exactly one step."""

from __future__ import annotations

from cloister.attest.anchors import TrustAnchors
from cloister.attest.steps import Steps, Verdict
from cloister.attest.types import Collateral, Evidence
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError


def require_refusal(
    code: str, evidence: Evidence, collateral: Collateral, anchors: TrustAnchors, now: float
) -> CloisterError:
    """Verify, and return the error.

    :raises AssertionError: it was accepted, or refused with another code, or not in a step that says so.
    """
    steps = Steps()
    try:
        verify(evidence, collateral, anchors, now, steps)
    except CloisterError as error:
        failed = [step.code for step in steps.report if step.verdict is Verdict.FAIL]
        if error.code != code or failed != [code]:
            raise AssertionError(
                f"refused with {error.code} ({error.message}), failed steps {failed}, not {code}"
            ) from error
        return error
    raise AssertionError(f"accepted, instead of refused with {code}")
