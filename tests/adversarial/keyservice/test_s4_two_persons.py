"""One person, and the whole cloud, against an identity whose statements need two (spec/protocol.md, 6.8).

The traitor is a person of the identity: its own key, or a delegate's. The cloud repeats, withholds and reorders
calls, sets the clock, restarts the KeyService, and owns its disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloister.base.errors import CloisterError, Refused
from cloister.base.ids import ModelId
from cloister.base.limits import APPROVAL_MARGIN_S, APPROVAL_S, MAX_WAITING
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.log.entry import Entry
from cloister.testing.embedded import EmbeddedKeyService, RuntimeSession
from cloister.testing.people import Person
from cloister.testing.plenty import PLENTY
from cloister.wire import calls
from cloister.wire.calls import Description
from cloister.wire.provisioning import Release, ReleaseRequest
from cloister.wire.statements import (
    FOREVER,
    REQUEST_KEY,
    Approve,
    Body,
    Consent,
    Decline,
    DefinePolicy,
    Delegate,
    DisableIdentity,
    Grant,
    PublishModel,
    RequireApproval,
    RetireModel,
    RevokeConsent,
    RevokeGrant,
    RotateIdentity,
    RotateModelKey,
    RotateRequestKey,
    Validity,
    key_commitment,
)

MODEL_KEY = SecretBytes(b"M" * 32)
OTHER_KEY = SecretBytes(b"N" * 32)
REQUEST = SecretBytes(b"Q" * 32)


class World:
    """A hospital whose statements need two of three: itself, anna, ben. A doctor consents to its model."""

    def __init__(self) -> None:
        self.ks = EmbeddedKeyService(rates=PLENTY)
        self.clock: Any = self.ks.clock
        self.hospital, self.anna, self.ben = (self.ks.person() for _ in range(3))
        self.doctor, self.stranger = self.ks.person(), self.ks.person()
        self.model = ModelId(self.hospital.id, "model")
        self.policy = self.ks.runtime_tee.policy()
        for person in (self.hospital, self.doctor):
            self.ks.say(person.statement(DefinePolicy(self.policy.encode())))
        self.ks.say(self.hospital.statement(PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))), MODEL_KEY)
        for person in (self.anna, self.ben):
            self.ks.say(self.hospital.statement(Delegate(person.id, FOREVER)))
        self.consent = Consent(self.model, self.policy.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
        self.ks.say(self.doctor.statement(self.consent), REQUEST)
        self.grant = Grant("model", self.doctor.id, self.policy.digest, Validity(), 0)
        self.request = ReleaseRequest(self.doctor.id, self.model, REQUEST_KEY, key_commitment(REQUEST))
        beside = tuple(sorted((self.anna.id, self.ben.id)))
        self.ks.say(self.hospital.statement(RequireApproval(2, beside)))
        self.runtime: RuntimeSession | None = None

    def says(self, person: Person, body: Body, *keys: SecretBytes, **options: Any) -> dict[str, Any]:
        """A person says it for the hospital."""
        return self.ks.say(person.statement(body, subject=self.hospital.id, **options), *keys)

    def asks(self, person: Person, body: Body, *keys: SecretBytes) -> Approve:
        """A person says what has to wait; what another one would have to say."""
        statement = person.statement(body, subject=self.hospital.id)
        done = self.ks.say(statement, *keys)
        assert done["pending"] == int(self.clock.now()) + APPROVAL_S
        return Approve(done["entry"], statement)

    def release(self) -> Release:
        """Ask with a session that lives; the clock may have been set."""
        return self.ks.attest().release(self.request)

    def shut(self) -> None:
        """No key is released."""
        with pytest.raises(Refused) as caught:
            self.release()
        assert caught.value.code == "release-refused"

    def waiting(self, person: Person) -> list[int]:
        """Entries that wait, as a person sees them."""
        items = self.ks.ask(person, "pending", subject=self.hospital.id)["items"]
        return [item["index"] for item in items]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.ks.close()


def refused(code: str, call: Callable[[], object]) -> None:
    with pytest.raises(CloisterError) as caught:
        call()
    assert caught.value.code == code


# --- what it is for ---


def test_s4_one_person_opens_nothing_and_two_do(world: World) -> None:
    asked = world.asks(world.anna, world.grant)
    world.shut()
    assert world.waiting(world.hospital) == world.waiting(world.ben) == [asked.entry]
    world.says(world.ben, asked)
    assert world.release().model_key == MODEL_KEY
    assert world.waiting(world.hospital) == []


@pytest.mark.parametrize("first", ["hospital", "anna", "ben"])
@pytest.mark.parametrize("second", ["hospital", "anna", "ben", "stranger", "doctor"])
def test_s4_two_means_two_of_its_persons(world: World, first: str, second: str) -> None:
    asked = world.asks(getattr(world, first), world.grant)
    approving = getattr(world, second)
    if second in ("stranger", "doctor"):
        refused("not-delegated", lambda: world.says(approving, asked))
        refused("approval-unknown", lambda: world.ks.say(approving.statement(asked)))
        world.shut()
    elif second == first:
        refused("approval-same-person", lambda: world.says(approving, asked))
        world.shut()
    else:
        world.says(approving, asked)
        assert world.release().model_key == MODEL_KEY


def widenings(world: World) -> list[tuple[Body, tuple[SecretBytes, ...]]]:
    fresh = SigningKey.generate().public_key
    model = ModelId(world.hospital.id, "model")
    consent = Consent(model, world.policy.digest, None, REQUEST_KEY, key_commitment(OTHER_KEY), Validity())
    return [
        (world.grant, ()),
        (PublishModel("model", 2, b"2" * 32, key_commitment(OTHER_KEY)), (OTHER_KEY,)),
        (PublishModel("another", 1, fresh, key_commitment(OTHER_KEY)), (OTHER_KEY,)),
        (RotateModelKey("model", 1, b"2" * 32, key_commitment(OTHER_KEY)), (OTHER_KEY,)),
        (consent, (OTHER_KEY,)),
    ]


@pytest.mark.parametrize("which", range(5))
def test_s4_whatever_widens_or_replaces_changes_nothing_by_one_person(world: World, which: int) -> None:
    body, keys = widenings(world)[which]
    before = facts(world)
    world.asks(world.anna, body, *keys)
    assert facts(world) == before


def facts(world: World) -> object:
    state = world.ks.assembled.ledger._state
    tables = (state.models, state.grants, state.consents, state.delegations, state.two_persons, state.identities)
    keep = {world.anna.id, world.ben.id, world.hospital.id}  # whose sequence numbers go on
    return [[row for row in table.items() if row[0] not in keep] for table in tables]  # type: ignore[attr-defined]


def test_s4_a_request_key_is_not_replaced_by_one_person(world: World) -> None:
    beside = (world.anna.id,)
    world.ks.say(world.doctor.statement(Delegate(world.anna.id, FOREVER)))
    world.ks.say(world.doctor.statement(RequireApproval(2, beside)))
    world.says(world.ben, world.asks(world.hospital, world.grant))
    statement = world.doctor.statement(RotateRequestKey(world.model, key_commitment(OTHER_KEY)))
    done = world.ks.say(statement, OTHER_KEY)
    assert world.release().key == REQUEST
    swapped = ReleaseRequest(world.doctor.id, world.model, REQUEST_KEY, key_commitment(OTHER_KEY))
    refused("release-refused", lambda: world.ks.attest().release(swapped))
    approval = world.anna.statement(Approve(done["entry"], statement), subject=world.doctor.id)
    world.ks.say(approval)
    assert world.ks.attest().release(swapped).key == OTHER_KEY


# --- taking back needs one ---


def test_s4_taking_back_acts_at_once_by_one_person(world: World) -> None:
    world.says(world.ben, world.asks(world.hospital, world.grant))
    world.release()
    world.says(world.anna, RevokeGrant("model", world.doctor.id))
    world.shut()
    world.says(world.ben, world.asks(world.hospital, world.grant))
    world.says(world.hospital, Delegate(world.anna.id, 0))
    refused("not-delegated", lambda: world.says(world.anna, RevokeGrant("model", world.doctor.id)))
    world.release()
    world.says(world.ben, RetireModel("model", b""))
    world.shut()


# --- approvals, repeated, swapped, of something else ---


def test_s4_s6_an_approval_is_for_one_statement_once(world: World) -> None:
    asked = world.asks(world.anna, world.grant)
    approval = world.ben.statement(asked, subject=world.hospital.id)
    world.ks.say(approval)
    world.says(world.anna, RevokeGrant("model", world.doctor.id))
    refused("statement-replayed", lambda: world.ks.say(approval))
    refused("approval-settled", lambda: world.says(world.ben, asked))
    world.shut()
    again = world.asks(world.anna, world.grant)  # the same words are another statement
    refused("approval-other", lambda: world.says(world.ben, Approve(again.entry, asked.statement)))
    world.shut()


def test_s4_an_approval_of_what_was_shown_is_not_one_of_what_waits(world: World) -> None:
    """The traitor makes two statements and shows the harmless one beside the number of the other."""
    harmless = world.asks(world.anna, Grant("model", world.doctor.id, world.policy.digest, Validity(0, 1), 1))
    harmful = world.asks(world.anna, Grant("model", world.stranger.id, world.policy.digest, Validity(), 0))
    refused("approval-other", lambda: world.says(world.ben, Approve(harmful.entry, harmless.statement)))
    refused("approval-other", lambda: world.says(world.ben, Approve(harmless.entry, harmful.statement)))
    refused("approval-unknown", lambda: world.says(world.ben, Approve(10**6, harmful.statement)))
    refused("approval-unknown", lambda: world.says(world.ben, Approve(0, harmful.statement)))


def test_s4_an_approval_for_one_identity_is_none_for_another(world: World) -> None:
    """Anna is a person of the hospital and of the doctor; what waits for one is not approved for the other."""
    world.ks.say(world.doctor.statement(Delegate(world.ben.id, FOREVER)))
    asked = world.asks(world.anna, world.grant)
    refused("approval-unknown", lambda: world.ks.say(world.ben.statement(asked, subject=world.doctor.id)))
    refused("approval-unknown", lambda: world.ks.say(world.ben.statement(asked)))
    world.shut()


def test_s4_nobody_approves_what_never_waited_or_an_approval(world: World) -> None:
    done = world.says(world.hospital, RevokeGrant("model", world.stranger.id))
    statement = world.hospital.statement(world.grant, sequence=world.hospital.sequence)
    refused("approval-unknown", lambda: world.says(world.ben, Approve(done["entry"], statement)))
    asked = world.asks(world.anna, world.grant)
    nested = world.anna.statement(asked, subject=world.hospital.id)
    refused("approval-other", lambda: world.says(world.ben, Approve(asked.entry, nested)))
    world.shut()


# --- changing the rule, and who is a person ---


def test_s4_one_person_neither_ends_the_rule_nor_begins_it_anew(world: World) -> None:
    for person in (world.anna, world.ben):
        refused("delegate-limits", lambda person=person: world.says(person, RequireApproval(1, ())))
    asked = world.asks(world.hospital, RequireApproval(1, ()))
    refused("approval-same-person", lambda: world.says(world.hospital, asked))
    refused("approval-unchanged", lambda: world.says(world.hospital, RequireApproval(2, (world.anna.id,))))
    assert world.asks(world.hospital, world.grant).entry in world.waiting(world.anna)
    world.says(world.anna, asked)
    world.says(world.hospital, world.grant)
    assert world.release().model_key == MODEL_KEY
    refused("approval-unchanged", lambda: world.says(world.hospital, RequireApproval(1, ())))


def test_s4_one_person_appoints_no_second_one(world: World) -> None:
    puppet = world.ks.person()
    asked = world.asks(world.hospital, Delegate(puppet.id, FOREVER))
    grant = world.asks(world.hospital, world.grant)
    refused("not-delegated", lambda: world.says(puppet, grant))
    refused("not-delegated", lambda: world.says(puppet, asked))
    for person in (world.anna, world.ben):
        refused("delegate-limits", lambda person=person: world.says(person, Delegate(puppet.id, FOREVER)))
    world.ks.say(world.anna.statement(Delegate(puppet.id, FOREVER)))  # her own delegate is none of the hospital's
    refused("not-delegated", lambda: world.says(puppet, grant))
    refused("approval-unknown", lambda: world.ks.say(puppet.statement(grant, subject=world.anna.id)))
    world.shut()
    world.says(world.ben, asked)  # two appoint a third
    world.says(puppet, grant)
    assert world.release().model_key == MODEL_KEY


def test_s4_the_rule_begins_with_all_delegates_named_and_with_one_at_least(world: World) -> None:
    """A delegate whom somebody appointed just before the rule is seen by whoever makes it."""
    other = world.ks.person()
    world.ks.say(other.statement(DefinePolicy(world.policy.encode())))
    refused("delegates-differ", lambda: world.ks.say(other.statement(RequireApproval(2, (world.anna.id,)))))
    world.ks.say(other.statement(Delegate(world.anna.id, FOREVER)))
    world.ks.say(other.statement(Delegate(world.stranger.id, FOREVER)))
    for named in ((world.anna.id,), tuple(sorted((world.anna.id, world.ben.id)))):
        refused("delegates-differ", lambda named=named: world.ks.say(other.statement(RequireApproval(2, named))))
    world.ks.say(other.statement(Delegate(world.stranger.id, 0)))
    world.ks.say(other.statement(RequireApproval(2, (world.anna.id,))))
    assert world.ks.ask(other, "whoami")["approvals"] == 2


def test_s4_a_delegate_who_was_dismissed_or_disabled_is_no_second_person(world: World) -> None:
    by_anna = world.asks(world.anna, world.grant)
    by_hospital = world.asks(world.hospital, world.grant)
    world.says(world.hospital, Delegate(world.anna.id, 0))
    refused("not-delegated", lambda: world.says(world.anna, by_hospital))
    refused("approval-settled", lambda: world.says(world.ben, by_anna))  # nor is what she said worth anything now
    world.ks.say(world.ben.statement(DisableIdentity()))
    refused("identity-disabled", lambda: world.says(world.ben, by_hospital))
    world.shut()


def test_s4_a_delegation_that_ended_is_no_second_person(world: World) -> None:
    carla = world.ks.person()
    asked = world.asks(world.hospital, Delegate(carla.id, int(world.clock.now()) + 3600))
    world.says(world.anna, asked)
    by_carla = world.asks(carla, world.grant)
    by_anna = world.asks(world.anna, world.grant)
    world.clock.advance(3600)
    refused("not-delegated", lambda: world.says(carla, by_anna))
    refused("approval-issuer-gone", lambda: world.says(world.ben, by_carla))
    world.shut()


# --- keys of one person ---


def test_s4_recovery_and_rotation_make_no_second_person_of_one(world: World) -> None:
    """Whoever holds the identity's key and its recovery key is one person all the same."""
    hospital = world.hospital
    asked = world.asks(hospital, world.grant)
    new = SigningKey.generate()
    refused("signature-invalid", lambda: world.says(hospital, asked, key=hospital.recovery))
    world.ks.say(hospital.statement(RotateIdentity.prove(new, hospital.id, 1), sequence=1, key=hospital.recovery))
    for sequence in (1, 2**40):
        refused("approval-same-person", lambda s=sequence: world.says(hospital, asked, key=new, sequence=s))
    refused("approval-issuer-gone", lambda: world.says(world.anna, asked))  # the old key said it, and is gone
    again = world.says(hospital, world.grant, key=new, sequence=2**41)
    assert again["pending"]
    refused("delegate-limits", lambda: world.says(world.anna, RequireApproval(1, ()), sequence=2**41))
    world.shut()


def test_s4_a_rotation_of_either_person_leaves_one_person_one(world: World) -> None:
    by_hospital, new = world.asks(world.hospital, world.grant), SigningKey.generate()
    anna = world.anna
    world.ks.say(anna.statement(RotateIdentity.prove(new, anna.id, anna.sequence + 1)))
    refused("signature-invalid", lambda: world.says(anna, by_hospital))
    world.says(anna, by_hospital, key=new, sequence=1)  # her new key is hers
    assert world.release().model_key == MODEL_KEY


# --- time ---


def test_s4_what_waited_too_long_is_approved_by_nobody_whatever_the_clock_says(world: World) -> None:
    asked = world.asks(world.anna, PublishModel("model", 2, b"2" * 32, key_commitment(OTHER_KEY)), OTHER_KEY)
    grant = world.asks(world.anna, world.grant)
    began = world.clock.now()
    world.clock.advance(APPROVAL_S - 1)
    world.says(world.ben, grant)
    world.clock.advance(1)
    refused("approval-expired", lambda: world.says(world.ben, asked))
    assert world.waiting(world.hospital) == []
    world.says(world.hospital, RevokeGrant("model", world.stranger.id))  # an entry, behind which time does not go
    world.clock.set(began)
    refused("approval-expired", lambda: world.says(world.ben, asked, issued_at=int(began) + APPROVAL_S))


def test_s4_keys_of_what_comes_to_nothing_are_destroyed(world: World) -> None:
    vault = world.ks.assembled.ledger._vault
    publish = PublishModel("model", 2, b"2" * 32, key_commitment(OTHER_KEY))
    asked = world.asks(world.anna, publish, OTHER_KEY)
    assert vault.holds(asked.entry)
    world.says(world.hospital, Decline(asked.entry))
    world.ks.service.maintain()
    assert not vault.holds(asked.entry)
    asked = world.asks(world.anna, publish, OTHER_KEY)
    world.says(world.hospital, RetireModel("model", b"1" * 32))
    refused("approval-settled", lambda: world.says(world.ben, asked))
    world.ks.service.maintain()
    assert not vault.holds(asked.entry)
    asked = world.asks(world.anna, publish, OTHER_KEY)
    world.clock.advance(APPROVAL_S + APPROVAL_MARGIN_S)
    world.ks.service.maintain()
    assert not vault.holds(asked.entry)


def test_s4_a_clock_that_jumps_there_and_back_leaves_no_model_without_its_key(world: World) -> None:
    """The host sets the clock ahead, the waiting key is destroyed, and back again: no approval without a key."""
    asked = world.asks(world.anna, PublishModel("model", 2, b"2" * 32, key_commitment(OTHER_KEY)), OTHER_KEY)
    began = world.clock.now()
    world.clock.set(began + 2 * APPROVAL_S)
    world.ks.service.maintain()
    world.clock.set(began)
    world.ks.restart()
    refused("key-destroyed", lambda: world.says(world.ben, asked))
    world.ks.restart()
    world.says(world.ben, world.asks(world.hospital, world.grant))
    assert world.release().version == 1


# --- order: withheld, reordered, at once ---


def test_s4_s6_what_is_taken_back_takes_back_what_waits(world: World) -> None:
    """The cloud holds the approval back until after the revocation, which one person made because of it."""
    asked = world.asks(world.anna, world.grant)
    approval = world.ben.statement(asked, subject=world.hospital.id)
    world.says(world.hospital, RevokeGrant("model", world.doctor.id))
    refused("approval-settled", lambda: world.ks.say(approval))
    world.shut()


def test_s4_s6_an_older_statement_is_not_approved_over_a_newer_one(world: World) -> None:
    wide = world.asks(world.anna, world.grant)
    narrow = world.asks(world.anna, Grant("model", world.doctor.id, world.policy.digest, Validity(0, 1), 1))
    withheld = world.ben.statement(wide, subject=world.hospital.id)
    world.says(world.hospital, narrow)
    refused("approval-settled", lambda: world.ks.say(withheld))
    world.shut()


def test_s4_everything_is_judged_anew_when_it_is_approved(world: World) -> None:
    first = world.asks(world.anna, PublishModel("model", 2, b"2" * 32, key_commitment(OTHER_KEY)), OTHER_KEY)
    third = SecretBytes(b"3" * 32)
    newer = world.asks(world.anna, PublishModel("other", 2, b"3" * 32, key_commitment(third)), third)
    world.says(world.ben, newer)
    world.says(world.ben, first)
    grant = world.asks(world.anna, Grant("other", world.doctor.id, world.policy.digest, Validity(), 0))
    world.says(world.hospital, RetireModel("other", b""))
    refused("model-retired", lambda: world.says(world.ben, grant))
    doctor = world.asks(world.anna, world.grant)
    world.ks.say(world.hospital.statement(DisableIdentity()))
    refused("identity-disabled", lambda: world.says(world.ben, doctor))
    world.shut()


def test_s4_one_person_declines_and_fills_no_line_for_ever(world: World) -> None:
    asked = [world.asks(world.anna, world.grant) for _ in range(MAX_WAITING)]
    refused("limit-reached", lambda: world.says(world.anna, world.grant))
    refused("limit-reached", lambda: world.says(world.hospital, world.grant))
    refused("not-delegated", lambda: world.says(world.stranger, Decline(asked[0].entry)))
    refused("approval-unknown", lambda: world.ks.say(world.stranger.statement(Decline(asked[0].entry))))
    world.says(world.ben, Decline(asked[0].entry))
    refused("approval-settled", lambda: world.says(world.ben, asked[0]))
    refused("approval-settled", lambda: world.says(world.ben, Decline(asked[0].entry)))
    world.says(world.ben, world.asks(world.hospital, world.grant))
    assert world.waiting(world.hospital) == [], "and what was said later of the same settles the rest"
    for _ in range(MAX_WAITING):
        world.asks(world.anna, world.grant)
    world.clock.advance(APPROVAL_S)
    world.asks(world.anna, world.grant)


# --- the disk and the network ---


def test_s4_a_restart_and_a_replay_change_nothing_about_who_said_what(world: World) -> None:
    asked = world.asks(world.anna, RotateModelKey("model", 1, b"2" * 32, key_commitment(OTHER_KEY)), OTHER_KEY)
    grant = world.asks(world.hospital, world.grant)
    world.ks.restart()
    world.shut()
    refused("approval-same-person", lambda: world.says(world.anna, asked))
    world.says(world.ben, asked)
    world.ks.restart()
    world.says(world.anna, grant)
    assert world.release().model_key == OTHER_KEY
    world.ks.restart()
    assert world.release().model_key == OTHER_KEY


def test_s4_captured_calls_say_nothing_twice(world: World) -> None:
    description = Description.decode(world.ks.service.description())
    statement = world.anna.statement(world.grant, subject=world.hospital.id)
    asking = calls.seal_call(description, calls.STATEMENT, statement)
    done = calls.open_reply(asking, world.ks.service.call(asking.data))
    body = Approve(done["entry"], statement)
    approving = calls.seal_call(description, calls.STATEMENT, world.ben.statement(body, subject=world.hospital.id))
    world.ks.service.call(approving.data)
    world.release()
    world.says(world.hospital, RevokeGrant("model", world.doctor.id))
    for call in (asking, approving, asking, approving):
        world.ks.service.call(call.data)
    assert world.waiting(world.hospital) == []
    world.shut()


def test_s4_s10_only_its_persons_see_what_waits(world: World) -> None:
    asked = world.asks(world.anna, world.grant)
    for person in (world.stranger, world.doctor):
        refused("not-delegated", lambda person=person: world.waiting(person))
        shown = [item["index"] for item in world.ks.ask(person, "events")["items"]]
        assert asked.entry not in shown
    assert "waiting" in world.ks.ask(world.doctor, "why", model=str(world.model), user=world.doctor.id)
    about = {"model": str(world.model), "user": world.doctor.id}
    assert world.ks.ask(world.doctor, "why", **about)["waiting"] == []
    mine = world.ks.ask(world.anna, "why", **about, subject=world.hospital.id)["waiting"]
    assert [item["entry"] for item in mine] == [asked.entry]
    world.says(world.ben, asked)
    items = {item["index"]: item["entry"] for item in world.ks.ask(world.doctor, "events")["items"]}
    bodies = [Entry.decode(entry).body for entry in items.values()]
    assert any(asked.statement in body for body in bodies), "whom it concerns sees what two persons said"


def test_s4_the_user_takes_back_alone(world: World) -> None:
    """Rules of one identity are none of another's."""
    world.says(world.ben, world.asks(world.hospital, world.grant))
    world.ks.say(world.doctor.statement(RevokeConsent(world.model)))
    world.shut()
