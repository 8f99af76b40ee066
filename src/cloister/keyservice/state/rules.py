"""The rules of statements (spec/protocol.md, section 6): may this one be applied now? Pure; changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from cloister.access.records import Identity, Model
from cloister.attest.policy import Policy
from cloister.base import limits
from cloister.base.errors import InvalidInput, Refused, Tampered
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context, same
from cloister.crypto.sign import verify
from cloister.keyservice.state.persons import WAITING, Waiting, needs_second, statement_digest, waiting_of
from cloister.keyservice.state.state import State
from cloister.wire.statements import (
    REQUEST_KEY,
    Approve,
    Consent,
    Decline,
    DefinePolicy,
    Delegate,
    DisableIdentity,
    Grant,
    PublishModel,
    Register,
    RequireApproval,
    RetireModel,
    RevokeConsent,
    RevokeGrant,
    RotateIdentity,
    RotateModelKey,
    RotateRequestKey,
    Statement,
    identity_id,
    key_commitment,
    peek_statement,
    verify_statement,
)

_MADE_HERE: Final = object()


@final
@dataclass(frozen=True, slots=True)
class VerifiedStatement:
    """A statement whose signature verified under ``signed_by``; made by :func:`authenticate` only."""

    proof: object
    statement: Statement
    received: bytes
    signed_by: bytes

    def __post_init__(self) -> None:
        """One that was not verified is a programming error."""
        if self.proof is not _MADE_HERE:
            msg = "a VerifiedStatement is made by authenticate() only"
            raise AssertionError(msg)


def authenticate(received: bytes, identity: Identity | None) -> VerifiedStatement:
    """Verify a statement under the key of the identity that says it.

    ``register`` verifies under the key it brings; rotating and disabling also under the recovery key.

    :param identity: as the state has it; the rules compare again, should it change meanwhile.
    :raises InvalidInput: anything malformed.
    :raises Refused: ``identity-unknown``.
    :raises Tampered: ``signature-invalid``.
    """
    statement = peek_statement(received)
    body = statement.body
    if isinstance(body, Register):
        keys = [body.public_key]
    elif identity is None or identity.id != statement.issuer:
        raise _unknown(statement.issuer)
    else:
        keys = [identity.public_key]
        if isinstance(body, (RotateIdentity, DisableIdentity)):
            keys.append(identity.recovery_key)
    for key in keys[:-1]:
        try:
            return VerifiedStatement(_MADE_HERE, verify_statement(received, key), received, key)
        except Tampered:
            continue
    return VerifiedStatement(_MADE_HERE, verify_statement(received, keys[-1]), received, keys[-1])


def _unknown(identity: bytes) -> Refused:
    return Refused(
        "identity-unknown", f"identity {identity.hex()[:16]}... is not registered here", hint="Register it first."
    )


def check(state: State, verified: VerifiedStatement, keys: tuple[SecretBytes, ...], now: float) -> None:
    """Whether the statement may be applied to this state now.

    :param keys: key material that travelled beside it.
    :param now: the KeyService's time.
    :raises Refused: with the code of the rule that says no.
    :raises InvalidInput: ``keys-mismatch``, and the codes of ``Policy.decode``.
    """
    _check_keys(verified.statement, keys)
    check_rules(state, verified, now)


def check_rules(state: State, verified: VerifiedStatement, now: float) -> None:
    """:func:`check` but for the keys, which an auditor never sees."""
    statement = verified.statement
    if state.genesis is None or statement.keyservice != state.genesis.keyservice:
        raise Refused("statement-other-keyservice", "the statement is for another KeyService")
    statement.check_time(now)
    if isinstance(statement.body, Register):
        _check_register(state, statement, statement.body)
        return
    _check_issuer(state, verified, now)
    _check_body(state, statement, now)
    if needs_second(state, statement, now):
        count = len(waiting_of(state, statement.subject, now))
        _limit(count + 1, limits.MAX_WAITING, "statements that wait for a second person")


def _check_keys(statement: Statement, keys: tuple[SecretBytes, ...]) -> None:
    body = statement.body
    wanted: tuple[bytes, ...] = ()
    if isinstance(body, (PublishModel, RotateModelKey, RotateRequestKey)) or (
        isinstance(body, Consent) and body.mode == REQUEST_KEY
    ):
        wanted = (body.key_commitment,)
    if tuple(map(key_commitment, keys)) != wanted:
        raise InvalidInput(
            "keys-mismatch",
            f"{len(keys)} keys came with the statement; it commits to {len(wanted)}, and they must be the same",
        )


def _check_register(state: State, statement: Statement, body: Register) -> None:
    if not statement.issuer == statement.subject == identity_id(body.public_key):
        raise Refused("identity-not-own", "an identity registers itself, under the id of its first key")
    if body.recovery_key == body.public_key:
        raise Refused("recovery-key-same", "the recovery key is the identity's key itself")
    if statement.issuer in state.identities:
        raise Refused("identity-known", "this identity is registered already")


def _check_issuer(state: State, verified: VerifiedStatement, now: float) -> None:
    statement = verified.statement
    issuer = state.identities.get(statement.issuer)
    subject = state.identities.get(statement.subject)
    if issuer is None or subject is None:
        raise _unknown(statement.issuer if issuer is None else statement.subject)
    if issuer.disabled or subject.disabled:
        raise Refused("identity-disabled", "an identity that was disabled says nothing more")
    if isinstance(statement.body, (RotateIdentity, DisableIdentity)) and verified.signed_by == issuer.recovery_key:
        last = issuer.recovery_sequence
    elif verified.signed_by == issuer.public_key:
        last = issuer.sequence
    else:
        raise Refused("identity-key-superseded", "the statement was signed by a key that was rotated away")
    if statement.sequence <= last:
        raise Refused(
            "statement-replayed",
            f"statement {statement.sequence} comes after statement {last} of the same issuer",
            hint="Take the next sequence number from a whoami query.",
            details={"sequence": str(last)},
        )
    if not state.may_speak_for(statement.issuer, statement.subject, now):
        raise Refused("not-delegated", "the subject has not delegated to this issuer, or no longer does")
    if statement.issuer != statement.subject and isinstance(
        statement.body, (RotateIdentity, DisableIdentity, Delegate, RequireApproval)
    ):
        raise Refused("delegate-limits", "a delegate neither delegates, rotates, disables nor says how many it takes")


def _check_body(state: State, statement: Statement, now: float) -> None:
    body, subject = statement.body, statement.subject
    match body:
        case Register():
            msg = "register has its own rules"
            raise AssertionError(msg)
        case RotateIdentity():
            _check_rotate_identity(state, statement, body)
        case DisableIdentity():
            pass
        case DefinePolicy():
            known = state.policies_of.has(subject, Policy.decode(body.policy).digest)
            count = state.policies_of.count(subject)
            _limit(count + (not known), limits.MAX_POLICIES_PER_IDENTITY, "policies of one identity")
        case PublishModel():
            _check_publish(state, subject, body)
        case RotateModelKey():
            _check_rotate_model_key(state, subject, body)
        case RetireModel() | RevokeGrant() | RevokeConsent():
            # Taking back what is not there is recorded all the same (clause 6.5): a refusal would leave the sequence
            # number free, and what was to be taken back, withheld by the network, could still be delivered after it.
            pass
        case Grant():
            _own_model(state, subject, body.name)
            _own_policy(state, subject, body.policy_digest)
            known = (ModelId(subject, body.name), body.user) in state.grants
            _limit(state.grants_by.count(subject) + (not known), limits.MAX_GRANTS_PER_OWNER, "grants of one owner")
        case Consent():
            _own_policy(state, subject, body.policy_digest)
            _check_fresh_key(state, subject, body.model, body.key_commitment)
            known = (subject, body.model) in state.consents
            _limit(state.consents_by.count(subject) + (not known), limits.MAX_CONSENTS_PER_USER, "consents of one user")
        case RotateRequestKey():
            consent = state.consents.get((subject, body.model))
            if consent is None:
                raise Refused("consent-missing", "there is no consent to this model")
            if consent.mode != REQUEST_KEY:
                raise Refused("mode-not-consented", "the consent is for the service key; there is no request key")
            _check_fresh_key(state, subject, body.model, body.key_commitment)
        case Delegate():
            _check_delegate(state, subject, body, now)
        case RequireApproval():
            _check_require_approval(state, subject, body, now)
        case Approve():
            _check_approve(state, statement, body, now)
        case Decline():
            _waiting(state, subject, body.entry, now)


def _check_rotate_identity(state: State, statement: Statement, body: RotateIdentity) -> None:
    identity = state.identities.get(statement.issuer)
    assert identity is not None  # noqa: S101  # _check_issuer raised otherwise
    verify(
        body.public_key,
        body.proof,
        Context.IDENTITY,
        statement.issuer,
        statement.sequence.to_bytes(8, "big"),
        what="the proof of the new identity key",
    )
    if body.public_key in (identity.public_key, identity.recovery_key, *identity.past_keys):
        raise Refused("identity-key-reused", "the new key is, or was, a key of this identity")
    _limit(len(identity.past_keys) + 1, limits.MAX_KEY_ROTATIONS, "keys of one identity")


def _check_publish(state: State, owner: bytes, body: PublishModel) -> None:
    model = state.models.get(ModelId(owner, body.name))
    if model is None:
        _limit(state.models_of.count(owner) + 1, limits.MAX_MODELS_PER_OWNER, "models of one owner")
        return
    _check_new_manifest(model, body.manifest_digest, body.key_commitment)
    newest = model.versions[-1].version
    if body.version <= newest:
        raise Refused("version-not-newer", f"version {body.version} does not come after version {newest}")


def _check_rotate_model_key(state: State, owner: bytes, body: RotateModelKey) -> None:
    model = _own_model(state, owner, body.name)
    _check_new_manifest(model, body.manifest_digest, body.key_commitment)
    newest = model.versions[-1]
    if body.version != newest.version or newest.retired:
        raise Refused(
            "version-not-newest",
            f"the key of version {body.version} cannot be rotated; the newest is version {newest.version}",
            hint="Publish a new version instead." if newest.retired else None,
        )


def _check_new_manifest(model: Model, manifest: bytes, key: bytes) -> None:
    if model.retired:
        raise Refused("model-retired", f"model {model.id.name!r} was retired for good")
    if model.find(manifest) is not None:
        raise Refused("manifest-known", "this manifest was published before")
    if any(version.key_commitment == key for version in model.versions):
        raise Refused("key-reused", "this model key was used for another manifest")
    _limit(len(model.versions) + 1, limits.MAX_VERSIONS_PER_MODEL, "versions of one model")


def _check_fresh_key(state: State, user: bytes, model: ModelId, commitment: bytes) -> None:
    consent = state.consents.get((user, model))
    previous = consent.previous.commitment if consent and consent.previous else b""
    if consent is not None and commitment and commitment in (consent.key_commitment, previous):
        raise Refused("key-reused", "this request key is in use already")


def _check_delegate(state: State, subject: bytes, body: Delegate, now: float) -> None:
    if body.delegate == subject:
        raise Refused("delegate-self", "an identity does not delegate to itself")
    known = state.delegates_of.has(subject, body.delegate)
    if body.not_after <= now:
        return  # taken back, or nothing to take back: recorded either way
    if body.delegate not in state.identities:
        raise _unknown(body.delegate)
    _limit(state.delegates_of.count(subject) + (not known), limits.MAX_DELEGATES, "delegates of one identity")


def _check_require_approval(state: State, subject: bytes, body: RequireApproval, now: float) -> None:
    required = subject in state.two_persons
    if (body.approvals > 1) is required:
        raise Refused("approval-unchanged", f"this identity's statements need {1 + required} already")
    if body.approvals > 1 and body.delegates != persons_beside(state, subject, now):
        raise Refused(
            "delegates-differ",
            "the delegates in force are others than those named as second persons",
            hint="Look at `cloister identity show`: whoever is delegated to can approve from now on.",
        )


def persons_beside(state: State, subject: bytes, now: float) -> tuple[bytes, ...]:
    """Who can be a second person beside the identity itself, sorted: its delegates in force."""
    found = []
    for delegate in state.delegates_of.of(subject):
        identity = state.identities.get(delegate)
        if identity is not None and not identity.disabled and state.may_speak_for(delegate, subject, now):
            found.append(delegate)
    return tuple(sorted(found))


def _waiting(state: State, subject: bytes, entry: int, now: float) -> Waiting:
    item = state.proposed.get(entry)
    if item is None or item.subject != subject:
        raise Refused("approval-unknown", f"no statement of this identity waits in log entry {entry}")
    if item.outcome != WAITING:
        raise Refused("approval-settled", f"the statement in log entry {entry} was {item.outcome} already")
    if now >= item.until:
        raise Refused("approval-expired", f"the statement in log entry {entry} waited too long", hint="Say it again.")
    return item


def _check_approve(state: State, statement: Statement, body: Approve, now: float) -> None:
    """The second person is another one, and says the very same; everything else is judged as if it were said now."""
    item = _waiting(state, statement.subject, body.entry, now)
    if not same(statement_digest(body.statement), item.statement):
        raise Refused("approval-other", f"another statement waits in log entry {body.entry} than the one approved")
    if statement.issuer == item.issuer:
        raise Refused("approval-same-person", "whoever made a statement cannot be the second person for it")
    first = state.identities.get(item.issuer)
    if (
        first is None
        or first.disabled
        or first.public_key != item.signed_by
        or not state.may_speak_for(item.issuer, item.subject, now)
    ):
        raise Refused(
            "approval-issuer-gone", "whoever made the statement may say it no more, or has another key by now"
        )
    _check_body(state, peek_statement(body.statement), now)


def _own_model(state: State, owner: bytes, name: str) -> Model:
    model = state.models.get(ModelId(owner, name))
    if model is None:
        raise Refused("model-unknown", f"this owner has no model {name!r}", hint="Publish it first.")
    if model.retired:
        raise Refused("model-retired", f"model {name!r} was retired for good")
    return model


def _own_policy(state: State, identity: bytes, digest: bytes) -> None:
    if not state.policies_of.has(identity, digest):
        raise Refused("policy-unknown", "this identity has not defined that policy", hint="Define the policy first.")


def _limit(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise Refused("limit-reached", f"at most {limit} {what}")
