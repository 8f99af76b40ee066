"""Statements that need two persons (spec/protocol.md, 6.8): which do, what they are about, what becomes of them. Pure.

The persons of an identity are itself and those to whom it has delegated. A statement of one of them that widens or
replaces waits beside its keys until another one says it too; one that takes back acts at once, and on what waits as
well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cloister.base.ids import ModelId
from cloister.base.limits import APPROVAL_S
from cloister.crypto.digest import Context, digest
from cloister.wire.statements import (
    Consent,
    Delegate,
    DisableIdentity,
    Grant,
    PublishModel,
    RequireApproval,
    RetireModel,
    RevokeConsent,
    RevokeGrant,
    RotateModelKey,
    RotateRequestKey,
    Statement,
)

if TYPE_CHECKING:
    from cloister.keyservice.state.state import State

WAITING: Final = "waiting"
APPROVED: Final = "approved"
DECLINED: Final = "declined"
EXPIRED: Final = "expired"
SUPERSEDED: Final = "superseded"  # by what was taken back, or said later, of the same


@dataclass(frozen=True, slots=True)
class Waiting:
    """A statement that one person made and that needs two.

    :param signed_by: the issuer's key then: one that is rotated away speaks no more.
    :param statement: its digest. :param about: what it would change, see :func:`about`.
    :param until: Unix seconds; from then on nobody can approve it.
    :param outcome: ``waiting``, and then for ever what became of it; :param settled_by: by which entry.
    """

    entry: int
    subject: bytes
    issuer: bytes
    signed_by: bytes
    statement: bytes
    about: str
    until: int
    keyed: bool
    outcome: str = WAITING
    settled_by: int = -1


def statement_digest(received: bytes) -> bytes:
    """What the state keeps of a statement that waits."""
    return digest(Context.WAITING_STATEMENT, received)


def needs_second(state: State, statement: Statement, now: float) -> bool:
    """Whether one person is not enough for it now."""
    if statement.subject not in state.two_persons:
        return False
    body = statement.body
    match body:
        case Grant() | Consent() | PublishModel() | RotateModelKey() | RotateRequestKey():
            return True
        case Delegate():
            return body.not_after > now
        case RequireApproval():
            return body.approvals < 2
        case _:
            return False  # taking back, and what gives nobody anything


def about(statement: Statement) -> str:
    """What a statement of its subject changes; two of the same are in each other's place."""
    body = statement.body
    match body:
        case Grant() | RevokeGrant():
            return about_grant(body.name, body.user)
        case Consent() | RotateRequestKey() | RevokeConsent():
            return about_consent(body.model)
        case PublishModel() | RotateModelKey() | RetireModel():
            return about_model(body.name)
        case Delegate():
            return f"delegate {body.delegate.hex()}"
        case RequireApproval():
            return "persons"
        case _:
            return ""


def about_grant(name: str, user: bytes) -> str:
    """Of one model to one user."""
    return f"grant {name} {user.hex()}"


def about_consent(model: ModelId) -> str:
    """Of a user to one model."""
    return f"consent {model}"


def about_model(name: str) -> str:
    """The versions of one model."""
    return f"model {name}"


def waiting_of(state: State, subject: bytes, now: float) -> list[Waiting]:
    """What waits for a second person of this identity now, oldest first."""
    found = (state.proposed.get(entry) for entry in sorted(state.waiting.of(subject)))
    return [item for item in found if item is not None and now < item.until]


def overtaken(state: State, statement: Statement, entry: int, time: float) -> Iterator[Waiting]:
    """What waits no more once a statement has effect that is in ``entry``: all that it takes back, or what was said
    earlier of the same.
    """
    body, subject = statement.body, statement.subject
    if not state.waiting.count(subject):
        return
    name = about(statement)
    withdraws = isinstance(body, (RevokeGrant, RevokeConsent, RetireModel, DisableIdentity))
    leaves = body.delegate if isinstance(body, Delegate) and body.not_after <= time else None
    for index in state.waiting.of(subject):
        item = state.proposed.get(index)
        if item is None:
            continue
        same = bool(name) and item.about == name and (withdraws or leaves is not None or index < entry)
        if same or isinstance(body, DisableIdentity) or item.issuer == leaves:
            yield item


def waits(state: State, entry: int, statement: Statement, received: bytes, time: int, *, keyed: bool) -> Waiting:
    """The record of a statement that begins to wait."""
    issuer = state.identities.get(statement.issuer)
    return Waiting(
        entry=entry,
        subject=statement.subject,
        issuer=statement.issuer,
        signed_by=issuer.public_key if issuer else b"",
        statement=statement_digest(received),
        about=about(statement),
        until=time + APPROVAL_S,
        keyed=keyed,
    )


def settled(item: Waiting, outcome: str, entry: int) -> Waiting:
    """What became of it."""
    return replace(item, outcome=outcome, settled_by=entry)
