"""Every statement, and every rule that refuses one (spec/protocol.md, section 6)."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.base import limits
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.keyservice.state import rules
from cloister.keyservice.state.rules import VerifiedStatement, authenticate, check
from cloister.keyservice.state.state import State
from cloister.keyservice.state.transitions import apply
from cloister.log.entry import GENESIS, RELEASE, STATEMENT, Entry, Genesis
from cloister.testing.clock import FakeClock
from cloister.testing.people import Person, simulation_policy
from cloister.wire.calls import keyservice_id
from cloister.wire.statements import (
    FOREVER,
    REQUEST_KEY,
    SERVICE_KEY,
    Body,
    Consent,
    DefinePolicy,
    Delegate,
    DisableIdentity,
    Grant,
    PublishModel,
    Register,
    RetireModel,
    RevokeConsent,
    RevokeGrant,
    RotateIdentity,
    RotateModelKey,
    RotateRequestKey,
    Validity,
    key_commitment,
    peek_statement,
)

LOG_KEY = bytes(range(32))
KS = keyservice_id(LOG_KEY)
POLICY = simulation_policy(b"m" * 48)


def secret(number: int) -> SecretBytes:
    return SecretBytes(number.to_bytes(32, "big"))


def commitment(number: int) -> bytes:
    return key_commitment(secret(number))


class World:
    """A state, a clock, an owner and a user, both registered."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.state = State()
        self.add(Entry(GENESIS, int(self.clock.now()), bytes(32), Genesis(KS, LOG_KEY, b"\xa0").encode()))
        self.owner = Person(KS, self.clock, b"o" * 32)
        self.user = Person(KS, self.clock, b"u" * 32)
        for person in (self.owner, self.user):
            self.say(person.register())
        self.model = ModelId(self.owner.id, "model")

    def add(self, entry: Entry) -> None:
        apply(self.state, entry)
        self.state.journal.keep()

    def say(self, received: bytes, *keys: int) -> None:
        now = self.state.now(self.clock.now())
        issuer = peek_statement(received).issuer
        verified = authenticate(received, self.state.identities.get(issuer))
        check(self.state, verified, tuple(map(secret, keys)), now)
        self.add(Entry(STATEMENT, int(now), bytes(32), received))

    def owner_says(self, body: Body, *keys: int, **options: Any) -> None:
        self.say(self.owner.statement(body, **options), *keys)

    def user_says(self, body: Body, *keys: int, **options: Any) -> None:
        self.say(self.user.statement(body, **options), *keys)

    def publish(self, version: int = 1, key: int = 100) -> None:
        self.owner_says(PublishModel("model", version, commitment(1000 + key), commitment(key)), key)

    def grant(self, **options: Any) -> None:
        self.owner_says(DefinePolicy(POLICY.encode()))
        self.owner_says(Grant("model", self.user.id, POLICY.digest, options.pop("validity", Validity()), 5), **options)

    def consent(self, key: int = 7, mode: str = REQUEST_KEY, validity: Validity | None = None) -> None:
        self.user_says(DefinePolicy(POLICY.encode()))
        name = commitment(key) if mode == REQUEST_KEY else b""
        body = Consent(self.model, POLICY.digest, None, mode, name, validity or Validity())
        self.user_says(body, *((key,) if mode == REQUEST_KEY else ()))


@pytest.fixture
def world() -> World:
    return World()


def refused(code: str) -> Any:
    class _Matches:
        def __enter__(self) -> None:
            self._raises = pytest.raises(CloisterError)
            self._caught = self._raises.__enter__()

        def __exit__(self, *details: Any) -> bool:
            suppressed = bool(self._raises.__exit__(*details))
            assert self._caught.value.code == code
            return suppressed

    return _Matches()


# --- identities ---


def test_registering_twice_is_refused(world: World) -> None:
    with refused("identity-known"):
        world.say(world.owner.register())


def test_an_identity_registers_only_itself(world: World) -> None:
    thief = Person(KS, world.clock)
    body = Register(thief.key.public_key, thief.recovery.public_key)
    with refused("identity-not-own"):
        world.say(thief.statement(body, issuer=b"x" * 32, subject=b"x" * 32))
    with refused("identity-not-own"):
        world.say(thief.statement(body, subject=world.owner.id))
    with refused("recovery-key-same"):
        world.say(thief.statement(Register(thief.key.public_key, thief.key.public_key)))


def test_unknown_identities_say_nothing(world: World) -> None:
    with refused("identity-unknown"):
        world.say(Person(KS, world.clock).statement(DisableIdentity()))


def test_a_forged_signature_is_refused(world: World) -> None:
    with refused("signature-invalid"):
        world.say(world.owner.statement(DisableIdentity(), key=SigningKey.generate()))


def test_a_statement_for_another_keyservice_is_refused(world: World) -> None:
    other = Person(bytes(32), world.clock, b"o" * 32)
    other.sequence = 50
    with refused("statement-other-keyservice"):
        world.say(other.statement(DefinePolicy(POLICY.encode())))


@pytest.mark.parametrize(
    ("issued", "lifetime", "code"),
    [
        (-600, 600, "statement-expired"),
        (limits.CLOCK_SKEW_S + 1, 600, "statement-from-the-future"),
        (-2, 1, "statement-expired"),
    ],
)
def test_statements_are_fresh(world: World, issued: int, lifetime: int, code: str) -> None:
    at = int(world.clock.now()) + issued
    with refused(code):
        world.owner_says(DefinePolicy(POLICY.encode()), issued_at=at, lifetime=lifetime)


def test_the_time_is_never_behind_the_newest_entry(world: World) -> None:
    withheld = world.owner.statement(DefinePolicy(POLICY.encode()), lifetime=10)
    world.clock.advance(60)
    world.user_says(DefinePolicy(POLICY.encode()))
    world.clock.advance(-60)  # the host sets its clock back
    with refused("statement-expired"):
        world.say(withheld)


def test_sequence_numbers_only_grow(world: World) -> None:
    first = world.owner.statement(DefinePolicy(POLICY.encode()))
    world.say(first)
    with refused("statement-replayed"):
        world.say(first)
    withheld = world.owner.statement(DefinePolicy(POLICY.encode()))
    world.owner_says(DefinePolicy(POLICY.encode()), sequence=world.owner.sequence + 5)
    with refused("statement-replayed"):
        world.say(withheld)


def test_rotation_by_the_current_key(world: World) -> None:
    new, sequence = SigningKey.generate(), world.owner.sequence + 1
    rotation = world.owner.statement(RotateIdentity.prove(new, world.owner.id, sequence))
    world.say(rotation)
    with refused("signature-invalid"):
        world.say(rotation)
    with refused("signature-invalid"):
        world.owner_says(DefinePolicy(POLICY.encode()))
    world.owner_says(DefinePolicy(POLICY.encode()), key=new, sequence=1)


def test_rotation_by_the_recovery_key_has_its_own_count(world: World) -> None:
    thief = SigningKey.generate()
    world.owner_says(RotateIdentity.prove(thief, world.owner.id, 2**62), sequence=2**62)  # with the stolen key
    new = SigningKey.generate()
    rotation = world.owner.statement(RotateIdentity.prove(new, world.owner.id, 1), sequence=1, key=world.owner.recovery)
    world.say(rotation)
    with refused("signature-invalid"):
        world.owner_says(DisableIdentity(), key=thief, sequence=5)
    with refused("statement-replayed"):
        world.say(rotation)


def test_a_key_never_comes_back(world: World) -> None:
    old, new = world.owner.key, SigningKey.generate()
    world.owner_says(RotateIdentity.prove(new, world.owner.id, 2), sequence=2)
    for key in (old, new, world.owner.recovery):
        with refused("identity-key-reused"):
            world.owner_says(RotateIdentity.prove(key, world.owner.id, 5), key=new, sequence=5)


def test_a_rotation_needs_the_new_keys_proof(world: World) -> None:
    new = SigningKey.generate()
    for proof in (
        RotateIdentity.prove(new, world.user.id, 2),
        RotateIdentity.prove(new, world.owner.id, 3),
        RotateIdentity(new.public_key, bytes(64)),
    ):
        with refused("signature-invalid"):
            world.owner_says(proof, sequence=2)


def test_disabled_identities_say_nothing(world: World) -> None:
    world.owner_says(DisableIdentity(), key=world.owner.recovery)
    with refused("identity-disabled"):
        world.owner_says(DefinePolicy(POLICY.encode()))
    with refused("identity-disabled"):
        world.owner_says(RotateIdentity.prove(SigningKey.generate(), world.owner.id, 9), sequence=9)


def test_the_recovery_key_does_nothing_else(world: World) -> None:
    with refused("signature-invalid"):
        world.owner_says(DefinePolicy(POLICY.encode()), key=world.owner.recovery)


def test_a_key_that_changed_meanwhile_is_noticed(world: World) -> None:
    received = world.owner.statement(DefinePolicy(POLICY.encode()))
    verified = authenticate(received, world.state.identities.get(world.owner.id))
    sequence = world.owner.sequence + 1
    world.owner_says(RotateIdentity.prove(SigningKey.generate(), world.owner.id, sequence), sequence=sequence)
    with refused("identity-key-superseded"):
        check(world.state, verified, (), world.clock.now())


def test_verified_statements_come_from_verification_only(world: World) -> None:
    received = world.owner.statement(DisableIdentity())
    with pytest.raises(AssertionError):
        VerifiedStatement(object(), peek_statement(received), received, world.owner.key.public_key)
    with refused("identity-unknown"):
        authenticate(received, world.state.identities.get(world.user.id))


# --- delegation ---


def test_a_delegate_speaks_for_the_subject_until_the_time_is_over(world: World) -> None:
    until = int(world.clock.now()) + 100
    body = DefinePolicy(POLICY.encode())
    with refused("not-delegated"):
        world.user_says(body, subject=world.owner.id)
    world.owner_says(Delegate(world.user.id, until))
    world.user_says(body, subject=world.owner.id)
    assert world.state.policies_of.has(world.owner.id, POLICY.digest)
    world.clock.advance(100)
    with refused("not-delegated"):
        world.user_says(body, subject=world.owner.id)


def test_a_delegation_is_taken_back(world: World) -> None:
    world.owner_says(Delegate(world.user.id, 0))
    world.owner_says(Delegate(world.user.id, FOREVER))
    world.owner_says(Delegate(world.user.id, 0))
    world.owner_says(Delegate(world.user.id, 0))
    with refused("not-delegated"):
        world.user_says(DefinePolicy(POLICY.encode()), subject=world.owner.id)


def test_what_delegates_must_not_do(world: World) -> None:
    with refused("delegate-self"):
        world.owner_says(Delegate(world.owner.id, FOREVER))
    with refused("identity-unknown"):
        world.owner_says(Delegate(b"x" * 32, FOREVER))
    world.owner_says(Delegate(world.user.id, FOREVER))
    for body in (Delegate(world.user.id, FOREVER), DisableIdentity(), RotateIdentity(b"k" * 32, bytes(64))):
        with refused("delegate-limits"):
            world.user_says(body, subject=world.owner.id)


def test_a_disabled_subject_has_no_delegates(world: World) -> None:
    world.owner_says(Delegate(world.user.id, FOREVER))
    world.owner_says(DisableIdentity())
    with refused("identity-disabled"):
        world.user_says(DefinePolicy(POLICY.encode()), subject=world.owner.id)


# --- models ---


def test_versions_only_grow(world: World) -> None:
    world.publish(3, key=1)
    for version in (1, 3):
        with refused("version-not-newer"):
            world.publish(version, key=2)
    world.publish(4, key=3)
    model = world.state.models.get(world.model)
    assert model is not None
    assert [v.version for v in model.versions] == [3, 4]
    with refused("manifest-known"):
        world.owner_says(PublishModel("model", 9, commitment(1003), commitment(5)), 5)
    with refused("key-reused"):
        world.owner_says(PublishModel("model", 9, commitment(5), commitment(3)), 3)


def test_the_key_must_be_the_one_committed_to(world: World) -> None:
    body = PublishModel("model", 1, commitment(1), commitment(2))
    for keys in ((), (3,), (2, 2)):
        with refused("keys-mismatch"):
            world.owner_says(body, *keys)
    with refused("keys-mismatch"):
        world.owner_says(DefinePolicy(POLICY.encode()), 1)


def test_rotating_a_model_key_keeps_the_version_and_retires_the_manifest(world: World) -> None:
    world.publish(1, key=1)
    world.publish(2, key=2)
    with refused("version-not-newest"):
        world.owner_says(RotateModelKey("model", 1, commitment(1003), commitment(3)), 3)
    world.owner_says(RotateModelKey("model", 2, commitment(1003), commitment(3)), 3)
    model = world.state.models.get(world.model)
    assert model is not None
    assert [(v.version, v.retired) for v in model.versions] == [(1, False), (2, True), (2, False)]
    assert world.state.dead_secrets(world.clock.now()) == (model.versions[1].key_entry,)
    newest = model.newest()
    assert newest is not None
    assert newest.manifest_digest == commitment(1003)


def test_retiring_one_and_all(world: World) -> None:
    world.owner_says(RetireModel("model", b""))  # nothing to retire yet
    world.publish(1, key=1)
    world.publish(2, key=2)
    world.owner_says(RetireModel("model", commitment(1002)))
    world.owner_says(RetireModel("model", commitment(1002)))
    with refused("version-not-newest"):
        world.owner_says(RotateModelKey("model", 2, commitment(5), commitment(6)), 6)
    model = world.state.models.get(world.model)
    newest = model.newest() if model else None
    assert newest is not None
    assert newest.version == 1
    world.owner_says(RetireModel("model", b""))
    assert len(world.state.dead_secrets(world.clock.now())) == 2
    for key in (8, 9):
        with refused("model-retired"):
            world.publish(key, key=key)
    with refused("model-retired"):
        world.grant()


def test_nobody_publishes_under_anothers_name(world: World) -> None:
    world.publish()
    world.user_says(PublishModel("model", 1, commitment(1), commitment(2)), 2)
    assert world.state.models.get(ModelId(world.user.id, "model")) is not None
    model = world.state.models.get(world.model)
    assert model is not None
    assert len(model.versions) == 1


# --- grants and consents ---


def test_a_grant_names_an_existing_model_and_ones_own_policy(world: World) -> None:
    with refused("model-unknown"):
        world.grant()
    world.publish()
    world.user_says(DefinePolicy(POLICY.encode()))
    other = simulation_policy(b"n" * 48)
    world.user_says(DefinePolicy(other.encode()))
    with refused("policy-unknown"):
        world.owner_says(Grant("model", world.user.id, other.digest, Validity(), 0))
    world.owner_says(Grant("model", world.user.id, POLICY.digest, Validity(), 0))
    record = world.state.grants.get((world.model, world.user.id))
    assert record is not None
    assert record.policy_digest == POLICY.digest


def test_a_grant_is_replaced_and_revoked(world: World) -> None:
    world.publish()
    world.owner_says(RevokeGrant("model", world.user.id))
    assert 4 not in world.state.events.after(
        world.user.id, 0, 99, {}.__getitem__
    )  # what never was does not concern the user
    world.grant()
    world.grant(validity=Validity(1, 2))
    record = world.state.grants.get((world.model, world.user.id))
    assert record is not None
    assert record.validity == Validity(1, 2)
    assert world.state.grants_to.of(world.user.id) == (world.model,)
    world.owner_says(RevokeGrant("model", world.user.id))
    assert world.state.grants.get((world.model, world.user.id)) is None
    assert world.state.grants_to.of(world.user.id) == ()


def test_a_policy_must_parse(world: World) -> None:
    with pytest.raises(InvalidInput):
        world.owner_says(DefinePolicy(b"\xa0"))


def test_a_consent_may_come_before_the_model(world: World) -> None:
    world.consent()
    assert world.state.consents.get((world.user.id, world.model)) is not None


def test_a_consent_needs_ones_own_policy(world: World) -> None:
    with refused("policy-unknown"):
        world.user_says(Consent(world.model, POLICY.digest, None, REQUEST_KEY, commitment(1), Validity()), 1)


def test_rotating_a_request_key_keeps_the_old_one_for_a_while(world: World) -> None:
    world.consent(key=1)
    with refused("key-reused"):
        world.user_says(RotateRequestKey(world.model, commitment(1)), 1)
    world.user_says(RotateRequestKey(world.model, commitment(2)), 2)
    record = world.state.consents.get((world.user.id, world.model))
    assert record is not None
    assert record.previous is not None
    assert record.previous.commitment == commitment(1)
    assert record.previous.until == int(world.clock.now()) + limits.REQUEST_FRESHNESS_S
    assert world.state.dead_secrets(world.clock.now()) == ()
    assert world.state.dead_secrets(record.previous.until) == (record.previous.key_entry,)
    world.user_says(RotateRequestKey(world.model, commitment(3)), 3)
    assert world.state.dead_secrets(world.clock.now()) == (record.previous.key_entry,)


def test_a_consent_on_the_same_terms_keeps_the_old_key_and_on_others_ends_it(world: World) -> None:
    world.consent(key=1)
    world.consent(key=2)
    record = world.state.consents.get((world.user.id, world.model))
    assert record is not None
    assert record.previous is not None
    world.consent(mode=SERVICE_KEY)
    record = world.state.consents.get((world.user.id, world.model))
    assert record is not None
    assert record.previous is None
    assert len(world.state.dead_secrets(world.clock.now())) == 2
    with refused("mode-not-consented"):
        world.user_says(RotateRequestKey(world.model, commitment(9)), 9)


def test_revoking_a_consent_destroys_its_keys(world: World) -> None:
    world.user_says(RevokeConsent(world.model))
    with refused("consent-missing"):
        world.user_says(RotateRequestKey(world.model, commitment(2)), 2)
    world.consent(key=1)
    world.user_says(RotateRequestKey(world.model, commitment(2)), 2)
    world.user_says(RevokeConsent(world.model))
    assert len(world.state.dead_secrets(world.clock.now())) == 2
    assert world.state.consents_to.of(world.model) == ()


def test_limits_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "MAX_MODELS_PER_OWNER",
        "MAX_GRANTS_PER_OWNER",
        "MAX_CONSENTS_PER_USER",
        "MAX_DELEGATES",
        "MAX_POLICIES_PER_IDENTITY",
        "MAX_VERSIONS_PER_MODEL",
    ):
        monkeypatch.setattr(rules.limits, name, 1)
    world.publish()
    world.grant()
    world.grant()  # again is no further one
    world.consent(key=1)
    world.consent(key=2)
    world.owner_says(Delegate(world.user.id, FOREVER))
    third = Person(KS, world.clock)
    world.say(third.register())
    for body, keys in (
        (PublishModel("other", 1, commitment(1), commitment(2)), (2,)),
        (PublishModel("model", 2, commitment(1), commitment(2)), (2,)),
        (Grant("model", third.id, POLICY.digest, Validity(), 0), ()),
        (DefinePolicy(simulation_policy(b"n" * 48).encode()), ()),
        (Delegate(third.id, FOREVER), ()),
    ):
        with refused("limit-reached"):
            world.owner_says(body, *keys)
    other = ModelId(world.owner.id, "other")
    with refused("limit-reached"):
        world.user_says(Consent(other, POLICY.digest, None, SERVICE_KEY, b"", Validity()))


# --- the log ---


def test_events_are_about_those_concerned(world: World) -> None:
    world.publish()
    world.grant()
    world.consent()
    # genesis, owner, user, publish, owner's policy, grant, user's policy, consent
    assert world.state.events.after(world.owner.id, 0, 99, {}.__getitem__) == [1, 3, 4, 5, 7]
    assert world.state.events.after(world.user.id, 0, 99, {}.__getitem__) == [2, 5, 6, 7]
    assert world.state.events.after(world.user.id, 6, 1, {}.__getitem__) == [6]


@pytest.mark.parametrize("kind", [GENESIS, STATEMENT])
def test_entries_stand_in_order(world: World, kind: str) -> None:
    early = Entry(kind, 0, bytes(32), Genesis(KS, LOG_KEY, b"\xa0").encode())
    with pytest.raises(Tampered):
        world.add(early)
    with pytest.raises(Tampered):
        apply(State(), Entry(RELEASE, 0, bytes(32), b""))


def test_rolling_back_restores_everything(world: World) -> None:
    world.publish()
    world.grant()
    world.consent()
    before = snapshot(world.state)
    steps = [
        (world.owner, RotateModelKey("model", 1, commitment(51), commitment(50)), (50,)),
        (world.user, RotateRequestKey(world.model, commitment(60)), (60,)),
        (world.owner, RevokeGrant("model", world.user.id), ()),
        (world.owner, Delegate(world.user.id, FOREVER), ()),
        (world.user, RevokeConsent(world.model), ()),
        (world.owner, RetireModel("model", b""), ()),
        (world.user, DisableIdentity(), ()),
    ]
    for person, body, _keys in steps:
        apply(world.state, Entry(STATEMENT, int(world.clock.now()), bytes(32), person.statement(body)))
    assert snapshot(world.state) != before
    world.state.journal.rollback()
    assert snapshot(world.state) == before


def snapshot(state: State) -> Any:
    tables = {name: dict(vars(table)["_rows"]) for name, table in vars(state).items() if "_rows" in vars_of(table)}
    indexes = {
        name: {key: set(members) for key, members in vars(table)["_sets"].items() if members}
        for name, table in vars(state).items()
        if "_sets" in vars_of(table)
    }
    events = [{party: list(numbers) for party, numbers in state.events.parties().items()}, state.events.concerned(0)]
    return tables, indexes, events, state.size, state.time


def vars_of(value: object) -> dict[str, object]:
    return getattr(value, "__dict__", {})


def test_refusals_change_nothing(world: World) -> None:
    before = snapshot(world.state)
    with pytest.raises(Refused):
        world.grant()
    assert snapshot(world.state)[0]["grants"] == before[0]["grants"]
