"""What each entry of the log does to the state (spec/protocol.md, clause 13.1). Pure: replaying gives the same state.

Rules were checked before the entry was written and are not checked again: changing a rule never changes history.
"""

from __future__ import annotations

from dataclasses import replace

from cloister.access.records import (
    ConsentRecord,
    GrantRecord,
    Identity,
    Model,
    ModelVersion,
    PreviousKey,
    ServiceKey,
)
from cloister.base.errors import Tampered
from cloister.base.ids import ModelId
from cloister.base.limits import APPROVAL_MARGIN_S, REQUEST_FRESHNESS_S
from cloister.crypto.digest import Context, digest
from cloister.keyservice.state.persons import (
    APPROVED,
    DECLINED,
    EXPIRED,
    SUPERSEDED,
    Waiting,
    needs_second,
    overtaken,
    settled,
    waits,
)
from cloister.keyservice.state.rules import authenticate
from cloister.keyservice.state.state import EVERYBODY, KEPT_UNTIL_REPLACED, CustodyState, SecretPlace, State
from cloister.log import entry as log
from cloister.log.custody import CustodySet, Recovery
from cloister.log.entry import (
    BundleRecord,
    Entry,
    Genesis,
    HandOverRecord,
    ReleaseRecord,
    ServiceKeyEpoch,
    sealed_release_parties,
)
from cloister.wire.log_keys import LogKeys
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
    peek_statement,
)


def apply(state: State, entry: Entry, *, sealed: bool = False) -> None:
    """Apply the next entry.

    :param sealed: as of :meth:`Entry.decode`; what was checked before it was written is not checked again.
    :raises Tampered: ``log-order`` for an entry that cannot stand at this place.
    :raises InvalidInput: an entry whose body is malformed.
    """
    index = state.size
    if (entry.kind == log.GENESIS) != (index == 0) or entry.time < state.time:
        raise Tampered("log-order", f"log entry {index} cannot stand where it stands")
    before = (state.size, state.time, state.genesis, state.log_keys, state.bundle, state.custody)

    def undo() -> None:
        state.size, state.time, state.genesis, state.log_keys, state.bundle, state.custody = before

    state.journal.note(undo)
    match entry.kind:
        case log.GENESIS:
            state.genesis = Genesis.decode(entry.body)
            state.log_keys = LogKeys(state.genesis.log_key)
        case log.STATEMENT:
            _statement(state, index, entry)
        case log.RELEASE:
            _about(state, index, *_parties(entry.body, sealed=sealed))
        case log.BUNDLE:
            named = BundleRecord.decode(entry.body)
            if state.bundle is None or named.version > state.bundle.version:
                state.bundle = named
            _about(state, index, EVERYBODY)
        case log.HAND_OVER:
            HandOverRecord.decode(entry.body)
            _about(state, index, EVERYBODY)
        case log.ROTATION:
            _rotation(state, index, entry)
            _about(state, index, EVERYBODY)
        case log.CUSTODY:
            _custody(state, index, entry.time, CustodySet.decode(entry.body))
        case log.RECOVERY:
            _recovery(state, index, Recovery.decode(entry.body))
        case _:
            _service_key(state, index, ServiceKeyEpoch.decode(entry.body))
    state.size, state.time = index + 1, entry.time


def _rotation(state: State, index: int, entry: Entry) -> None:
    """Another log key signs from here on; the root before the rotation is for whoever has the tree."""
    if state.log_keys is None:
        raise Tampered("log-order", "the log's first entry names no log key")
    keys = state.log_keys.then(entry.body)
    certificate = keys.certificates[-1]
    if (certificate.size, certificate.time) != (index, entry.time):
        raise Tampered("log-order", f"log entry {index} holds a certificate that was made for another place")
    state.log_keys = keys


def _parties(release: bytes, *, sealed: bool) -> tuple[bytes, bytes]:
    if sealed:
        return sealed_release_parties(release)
    record = ReleaseRecord.decode(release)
    return record.user, record.model.owner


def _about(state: State, index: int, *parties: bytes) -> None:
    for party in dict.fromkeys(parties):
        state.events.append(party, index)


def _statement(state: State, index: int, entry: Entry) -> None:
    statement, time = peek_statement(entry.body), entry.time
    body = statement.body
    parties = [statement.issuer, statement.subject]
    if not isinstance(body, (Register, RotateIdentity, DisableIdentity)):
        _advance(state, statement)
    if needs_second(state, statement, time):
        _wait(state, index, time, statement, entry.body)
    elif isinstance(body, Approve):
        parties += _approve(state, index, time, body)
    elif isinstance(body, Decline):
        item = _proposed(state, body.entry)
        parties.append(item.issuer)
        _settle(state, item, DECLINED, index, time)
    else:
        parties += _effect(state, index, time, statement, entry.body)
        _overtake(state, statement, index, index, time)
    _about(state, index, *parties)


def _effect(state: State, index: int, time: int, statement: Statement, received: bytes) -> list[bytes]:
    """What a statement does; whom it concerns beside issuer and subject.

    :param index: of the entry that holds it, beside which its key is.
    """
    body, subject = statement.body, statement.subject
    parties: list[bytes] = []
    match body:
        case Register():
            state.identities.put(
                subject, Identity(subject, body.public_key, body.recovery_key, statement.sequence, time)
            )
        case RotateIdentity() | DisableIdentity():
            _identity(state, received, statement, body)
        case DefinePolicy():
            name = digest(Context.POLICY, body.policy)  # as written: what a later version cannot parse keeps its name
            state.policies.put(name, body.policy)
            state.policies_of.add(subject, name)
        case PublishModel() | RotateModelKey():
            _publish(state, index, time, subject, body)
        case RetireModel():
            _retire(state, time, ModelId(subject, body.name), body.manifest_digest)
        case Grant():
            model = ModelId(subject, body.name)
            record = GrantRecord(model, body.user, body.policy_digest, body.validity, body.quota, index)
            state.grants.put((model, body.user), record)
            state.grants_by.add(subject, (model, body.user))
            state.grants_to.add(body.user, model)
            parties.append(body.user)
        case RevokeGrant():
            model = ModelId(subject, body.name)
            if (model, body.user) in state.grants:
                parties.append(body.user)
            state.grants.drop((model, body.user))
            state.grants_by.discard(subject, (model, body.user))
            state.grants_to.discard(body.user, model)
        case Consent():
            _consent(state, index, time, subject, body)
            parties.extend(_granting(state, subject, body.model))
        case RevokeConsent():
            _forget_consent(state, time, subject, body.model)
            state.consents.drop((subject, body.model))
            state.consents_by.discard(subject, body.model)
            state.consents_to.discard(body.model, subject)
            parties.extend(_granting(state, subject, body.model))
        case RotateRequestKey():
            _rotate_request_key(state, index, time, subject, body)
            parties.extend(_granting(state, subject, body.model))
        case Delegate():
            if body.not_after > time or state.delegates_of.has(subject, body.delegate):
                parties.append(body.delegate)
            _delegate(state, time, subject, body)
        case RequireApproval():
            if body.approvals > 1:
                state.two_persons.put(subject, index)
            else:
                state.two_persons.drop(subject)
        case Approve() | Decline():
            raise Tampered("log-order", "a log entry approves what approves")
    return parties


def _wait(state: State, index: int, time: int, statement: Statement, received: bytes) -> None:
    """One person said it. Its key is kept, and destroyed unless another one says it too."""
    commitment = getattr(statement.body, "key_commitment", b"")
    item = waits(state, index, statement, received, time, keyed=bool(commitment))
    for earlier in state.waiting.of(statement.subject):
        over = _proposed(state, earlier)
        if time >= over.until:
            _settle(state, over, EXPIRED, index, time)
    state.proposed.put(index, item)
    state.waiting.add(statement.subject, index)
    if commitment:
        state.secrets.put(index, SecretPlace(commitment))
        _kill(state, index, item.until + APPROVAL_MARGIN_S)


def _approve(state: State, index: int, time: int, body: Approve) -> list[bytes]:
    """It has effect as of now, with the key that arrived beside it."""
    item, statement = _proposed(state, body.entry), peek_statement(body.statement)
    state.proposed.put(item.entry, settled(item, APPROVED, index))
    state.waiting.discard(item.subject, item.entry)
    state.dying.drop(item.entry)
    parties = _effect(state, item.entry, time, statement, body.statement)
    _overtake(state, statement, item.entry, index, time)
    return [item.issuer, *parties]


def _overtake(state: State, statement: Statement, entry: int, index: int, time: int) -> None:
    for item in list(overtaken(state, statement, entry, time)):
        _settle(state, item, SUPERSEDED, index, time)


def _settle(state: State, item: Waiting, outcome: str, index: int, time: int) -> None:
    """It comes to nothing, and its key is destroyed."""
    state.proposed.put(item.entry, settled(item, outcome, index))
    state.waiting.discard(item.subject, item.entry)
    if item.keyed:
        _kill(state, item.entry, time)


def _proposed(state: State, entry: int) -> Waiting:
    item = state.proposed.get(entry)
    if item is None:
        raise Tampered("log-order", "a log entry settles a statement that no earlier entry holds")
    return item


def _granting(state: State, user: bytes, model: ModelId) -> tuple[bytes, ...]:
    """The owner, if he granted: what strangers say of a model concerns him only then."""
    return (model.owner,) if (model, user) in state.grants else ()


def _advance(state: State, statement: Statement) -> None:
    issuer = _known(state, statement.issuer)
    state.identities.put(issuer.id, replace(issuer, sequence=statement.sequence))


def _known(state: State, identity: bytes) -> Identity:
    found = state.identities.get(identity)
    if found is None:
        raise Tampered("log-order", "a log entry is by an identity that no earlier entry registers")
    return found


def _identity(state: State, received: bytes, statement: Statement, body: RotateIdentity | DisableIdentity) -> None:
    """Rotating starts the count anew: what an old key signed does not verify under the new one.

    The recovery key has a count of its own, so that a thief of the identity's key cannot use up the owner's.
    """
    identity = _known(state, statement.issuer)
    if authenticate(received, identity).signed_by == identity.recovery_key:
        identity = replace(identity, recovery_sequence=statement.sequence)
    if isinstance(body, DisableIdentity):
        state.identities.put(identity.id, replace(identity, disabled=True))
        return
    past = (*identity.past_keys, identity.public_key)
    state.identities.put(identity.id, replace(identity, public_key=body.public_key, sequence=0, past_keys=past))


def _publish(state: State, index: int, time: int, owner: bytes, body: PublishModel | RotateModelKey) -> None:
    name = ModelId(owner, body.name)
    model = state.models.get(name) or Model(name, ())
    versions = model.versions
    if isinstance(body, RotateModelKey):
        _kill(state, versions[-1].key_entry, time)
        versions = (*versions[:-1], replace(versions[-1], retired=True))
    version = ModelVersion(body.version, body.manifest_digest, body.key_commitment, index, time)
    state.models.put(name, replace(model, versions=(*versions, version)))
    state.models_of.add(owner, name)
    state.secrets.put(index, SecretPlace(body.key_commitment))


def _retire(state: State, time: int, name: ModelId, manifest: bytes) -> None:
    model = state.models.get(name)
    if model is None:
        return
    versions = []
    for version in model.versions:
        ends = not version.retired and (not manifest or version.manifest_digest == manifest)
        if ends:
            _kill(state, version.key_entry, time)
        versions.append(replace(version, retired=True) if ends else version)
    state.models.put(name, replace(model, versions=tuple(versions), retired=model.retired or not manifest))


def _consent(state: State, index: int, time: int, user: bytes, body: Consent) -> None:
    """A consent on other terms ends the old one's key at once, for what was sealed under it was for its policy.

    On the same terms (a longer validity, a new key) the old key keeps opening requests under way, as in a rotation.
    """
    old = state.consents.get((user, body.model))
    terms = (body.policy_digest, body.manifest_digest, body.mode)
    previous = None
    if old is not None and old.mode == REQUEST_KEY and terms == (old.policy_digest, old.manifest_digest, old.mode):
        previous = _supersede(state, time, old)
    else:
        _forget_consent(state, time, user, body.model)
    record = ConsentRecord(
        user=user,
        model=body.model,
        policy_digest=body.policy_digest,
        manifest_digest=body.manifest_digest,
        mode=body.mode,
        key_commitment=body.key_commitment,
        key_entry=index,
        validity=body.validity,
        entry=index,
        previous=previous,
    )
    state.consents.put((user, body.model), record)
    state.consents_by.add(user, body.model)
    state.consents_to.add(body.model, user)
    if body.mode == REQUEST_KEY:
        state.secrets.put(index, SecretPlace(body.key_commitment))


def _supersede(state: State, time: int, old: ConsentRecord) -> PreviousKey:
    """The present key becomes the previous one for a while; the one before that ends now."""
    if old.previous is not None:
        _kill(state, old.previous.key_entry, time)
    until = time + REQUEST_FRESHNESS_S
    _kill(state, old.key_entry, until)
    return PreviousKey(old.key_commitment, old.key_entry, until)


def _forget_consent(state: State, time: int, user: bytes, model: ModelId) -> None:
    old = state.consents.get((user, model))
    if old is not None and old.mode == REQUEST_KEY:
        _kill(state, old.key_entry, time)
        if old.previous is not None:
            _kill(state, old.previous.key_entry, time)


def _rotate_request_key(state: State, index: int, time: int, user: bytes, body: RotateRequestKey) -> None:
    old = state.consents.get((user, body.model))
    if old is None:
        raise Tampered("log-order", "a log entry rotates the key of a consent that no earlier entry gives")
    previous = _supersede(state, time, old)
    record = replace(old, key_commitment=body.key_commitment, key_entry=index, previous=previous)
    state.consents.put((user, body.model), record)
    state.secrets.put(index, SecretPlace(body.key_commitment))


def _delegate(state: State, time: int, subject: bytes, body: Delegate) -> None:
    if body.not_after <= time:
        state.delegations.drop((subject, body.delegate))
        state.delegates_of.discard(subject, body.delegate)
        state.delegated_to.discard(body.delegate, subject)
        return
    state.delegations.put((subject, body.delegate), body.not_after)
    state.delegates_of.add(subject, body.delegate)
    state.delegated_to.add(body.delegate, subject)


def _service_key(state: State, index: int, body: ServiceKeyEpoch) -> None:
    """A new epoch; the one before it keeps its time, those before that are over and leave the state."""
    name = (body.model, body.manifest_digest, body.policy_digest)
    key = ServiceKey(
        model=body.model,
        manifest_digest=body.manifest_digest,
        policy_digest=body.policy_digest,
        epoch=body.epoch,
        key_id=digest(Context.SERVICE_KEY, body.public_key),
        not_before=body.not_before,
        not_after=body.not_after,
        key_entry=index,
    )
    earlier = state.service_keys.get(name) or ()
    state.service_keys.put(name, (*earlier[-2:], key))
    state.secrets.put(index, SecretPlace(key.key_id))
    _kill(state, index, body.not_after + REQUEST_FRESHNESS_S)
    _about(state, index, body.model.owner)


def _custody(state: State, index: int, time: int, made: CustodySet) -> None:
    """The record of the set before it is destroyed; this one's is kept beside this entry."""
    if state.custody is not None:
        _kill(state, state.custody.entry, time)
    state.custody = CustodyState(index, made)
    if made.custodians:
        state.secrets.put(index, SecretPlace(made.record, KEPT_UNTIL_REPLACED))
    _about(state, index, EVERYBODY)


def _recovery(state: State, index: int, recovery: Recovery) -> None:
    """The set was used, and is to be replaced."""
    if state.custody is not None and state.custody.made.set == recovery.set:
        state.custody = replace(state.custody, used=True)
    _about(state, index, EVERYBODY)


def _kill(state: State, entry: int, until: int) -> None:
    """The secret beside ``entry`` is destroyed at ``until``, or earlier if that was said before."""
    place = state.secrets.get(entry)
    if place is None:
        return
    until = until if place.until is None else min(until, place.until)
    state.secrets.put(entry, SecretPlace(place.commitment, until))
    state.dying.put(entry, until)
