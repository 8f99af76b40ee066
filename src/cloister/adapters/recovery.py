"""Whether a KeyService may be brought back, for custodians and the enclave that asks (spec/protocol.md, 13.24.7)."""

from __future__ import annotations

from cloister.adapters.keyservice import judge
from cloister.attest.bundle import TrustBundle
from cloister.attest.code import code_name
from cloister.attest.types import Appraisal, Claims, Collateral
from cloister.base.errors import Refused
from cloister.wire.custody import Code
from cloister.wire.recovery import Offer


def judge_offer(offer: Offer, *, bundle: TrustBundle, collateral: Collateral, now: float) -> Appraisal:
    """Whether what asks for shares is a KeyService that the bundle means, and the one that was lost, or its successor.

    :raises Refused: ``recovery-code``; and as :func:`~cloister.adapters.keyservice.judge`, which raises the rest.
    """
    appraisal = judge(offer, bundle=bundle, collateral=collateral, now=now)
    check_code(offer.record.code, appraisal, bundle)
    return appraisal


def code_of(claims: Claims, configuration: bytes) -> Code:
    """What attested claims say of the code.

    :param configuration: digest of its measured configuration.
    :raises InvalidInput: ``code-unnamed``.
    """
    return Code(claims.tee.value, code_name(claims.tee, claims.measurements), configuration)


def check_code(lost: Code, found: Appraisal, bundle: TrustBundle) -> None:
    """:raises Refused: ``recovery-code`` unless it is what was lost, or the bundle names it as a successor."""
    code = code_of(found.claims, found.configuration.digest)
    if found.claims.debug:
        raise Refused("recovery-code", "what would be brought back is open to its host: it runs in debug mode")
    if code == lost or bundle.names(code.measurement, code.configuration):
        return
    what = "configured otherwise" if code.measurement == lost.measurement else "other code"
    raise Refused(
        "recovery-code",
        f"what would be brought back is {what} than the KeyService that was lost, and no successor of it",
        hint="Use the code and configuration it had, or have the author of the trust bundle name these as a successor.",
        details={
            "lost": f"{lost.tee} {lost.measurement.hex()}, configuration {lost.configuration.hex()}",
            "found": f"{code.tee} {code.measurement.hex()}, configuration {code.configuration.hex()}",
        },
    )
