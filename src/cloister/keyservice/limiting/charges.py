"""What each statement costs its issuer (spec/protocol.md, 5.7). Pure.

Nothing that somebody else can replay costs anything: a statement is charged when it is about to become an entry, which
each does once. Taking back what is there costs nothing, for it was paid for by what it takes back.
"""

from __future__ import annotations

from enum import StrEnum

from cloister.base.ids import ModelId
from cloister.keyservice.state.persons import about
from cloister.keyservice.state.state import State
from cloister.wire.statements import (
    Approve,
    Decline,
    Delegate,
    DisableIdentity,
    Register,
    RetireModel,
    RevokeConsent,
    RevokeGrant,
    RotateIdentity,
    RotateModelKey,
    RotateRequestKey,
    Statement,
)


class Charge(StrEnum):
    """Which bucket of its issuer a statement is taken from; the value is the label in metrics."""

    REGISTRATION = "registration"  # of a stranger: a bucket for all of them
    STATEMENT = "statement"
    WITHDRAWAL = "withdrawal"  # rotations, and taking back what is not there
    RECOVERY = "recovery"  # by the recovery key, which no thief of the other one has
    NONE = "none"


def charge_of(state: State, statement: Statement, now: float, *, by_recovery_key: bool) -> Charge:
    """Of a statement that may be applied to this state now."""
    body, subject = statement.body, statement.subject
    match body:
        case Register():
            return Charge.NONE if state.grants_to.count(statement.issuer) else Charge.REGISTRATION
        case DisableIdentity() | Approve() | Decline():
            return Charge.NONE  # once for each identity, and for each statement that waits
        case RotateIdentity():
            return Charge.RECOVERY if by_recovery_key else Charge.WITHDRAWAL
        case RotateModelKey() | RotateRequestKey():
            return Charge.WITHDRAWAL
        case RevokeGrant():
            there = (ModelId(subject, body.name), body.user) in state.grants
        case RevokeConsent():
            there = (subject, body.model) in state.consents
        case RetireModel():
            there = _retires(state, ModelId(subject, body.name), body.manifest_digest)
        case Delegate() if body.not_after <= now:
            there = state.delegates_of.has(subject, body.delegate)
        case _:
            return Charge.STATEMENT
    return Charge.NONE if there or _waits(state, statement) else Charge.WITHDRAWAL


def _waits(state: State, statement: Statement) -> bool:
    """Whether it takes back what waits for a second person."""
    name = about(statement)
    found = (state.proposed.get(entry) for entry in state.waiting.of(statement.subject))
    return any(item is not None and item.about == name for item in found)


def _retires(state: State, name: ModelId, manifest: bytes) -> bool:
    model = state.models.get(name)
    if model is None:
        return False
    if not manifest:
        return not model.retired
    version = model.find(manifest)
    return version is not None and not version.retired
