"""Random statements, approvals, revocations, rotations, clocks and restarts by persons of one identity.

The rule is stated here once more, without the code that keeps it: whatever an identity that needs two persons gains
or gets in place of something else, it gains by an approval, whose author is one of its persons and another one than
the author of what is approved, who was one too.
"""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloister.base.errors import CloisterError
from cloister.base.ids import ModelId
from cloister.base.limits import APPROVAL_S
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.keyservice.state.audit import audit
from cloister.log.entry import Entry
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person
from cloister.testing.plenty import PLENTY
from cloister.wire.statements import (
    FOREVER,
    REQUEST_KEY,
    Approve,
    Body,
    Consent,
    Decline,
    DefinePolicy,
    Delegate,
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

OWNER = 0
who = st.integers(0, 3)
names = st.sampled_from(["a", "b"])

Facts = dict[object, object]


class TwoPersonsMachine(RuleBasedStateMachine):
    """Person 0 is the identity; 1 and 2 are its delegates at first, 3 is nobody."""

    @initialize()
    def begin(self) -> None:
        self.ks = EmbeddedKeyService(rates=PLENTY)
        self.clock: Any = self.ks.clock
        self.people = [self.ks.person(bytes([number + 1]) * 32) for number in range(4)]
        self.owner = self.people[OWNER]
        self.policy = self.ks.runtime_tee.policy()
        self.counter = itertools.count(1)
        self.asked: list[tuple[int, bytes, bytes]] = []  # entry, statement, issuer
        self.persons = {self.owner.id}
        self.required = False
        self.known = self.facts()
        for person in self.people:
            self.ks.say(person.statement(DefinePolicy(self.policy.encode())))
        for name in ("a", "b"):
            key = self.secret()
            body = PublishModel(name, 1, self.digest(), key_commitment(key))
            self.says(OWNER, body, key)
        for number in (1, 2):
            self.says(OWNER, Delegate(self.people[number].id, FOREVER))
        self.says(OWNER, RequireApproval(2, tuple(sorted(person.id for person in self.people[1:3]))))

    def secret(self) -> SecretBytes:
        return SecretBytes(next(self.counter).to_bytes(32, "big"))

    def digest(self) -> bytes:
        return key_commitment(self.secret())

    def facts(self) -> Facts:
        """What the identity lets happen, and who speaks for it."""
        state = self.ks.assembled.ledger._state
        found: Facts = {}
        for (model, user), grant in state.grants.items():
            if model.owner == self.owner.id:
                found["grant", model, user] = (grant.policy_digest, grant.validity, grant.entry)
        for (user, model), consent in state.consents.items():
            if user == self.owner.id:
                found["consent", model] = (consent.key_commitment, consent.entry)
        for model, record in state.models.items():
            if model.owner == self.owner.id:
                for version in record.versions:
                    if not version.retired:
                        found["version", model, version.manifest_digest] = version.key_commitment
        for (subject, delegate), until in state.delegations.items():
            if subject == self.owner.id:
                found["delegate", delegate] = until
        if self.owner.id not in state.two_persons:
            found["alone"] = True
        return found

    def says(self, number: int, body: Body, *keys: SecretBytes, approved_by: bytes | None = None) -> None:
        """Somebody says it for the identity, and what that changed is judged."""
        person = self.people[number]
        statement = person.statement(body, subject=self.owner.id)
        persons, required = set(self.persons), self.required
        try:
            done = self.ks.say(statement, *keys)
        except CloisterError:
            done = None
        if done is not None and done["pending"]:
            self.asked.append((done["entry"], statement, person.id))
        after = self.facts()
        gained = {name for name, value in after.items() if self.known.get(name) != value}
        if gained and required:
            assert isinstance(body, Approve), gained
            assert done is not None
            (first,) = (issuer for entry, said, issuer in self.asked if (entry, said) == (body.entry, body.statement))
            assert person.id != first
            assert {person.id, first} <= persons
        if self.known != after:
            assert done is not None, "what was refused changed something"
            assert not done["pending"], "what waits changed something"
        self.known = after
        self.required = "alone" not in after
        self.persons = {self.owner.id} | {
            name[1] for name in after if isinstance(name, tuple) and name[0] == "delegate"
        }

    @rule(by=who, name=names, user=who, days=st.integers(1, 9))
    def grant(self, by: int, name: str, user: int, days: int) -> None:
        validity = Validity(0, int(self.clock.now()) + days * 86400)
        self.says(by, Grant(name, self.people[user].id, self.policy.digest, validity, 0))

    @rule(by=who, name=names, user=who)
    def revoke(self, by: int, name: str, user: int) -> None:
        self.says(by, RevokeGrant(name, self.people[user].id))

    @rule(by=who, name=names, version=st.integers(1, 4), again=st.booleans())
    def publish(self, by: int, name: str, version: int, again: bool) -> None:
        key = self.secret()
        kind = RotateModelKey if again else PublishModel
        self.says(by, kind(name, version, self.digest(), key_commitment(key)), key)

    @rule(by=who, name=names)
    def retire(self, by: int, name: str) -> None:
        model = self.ks.assembled.ledger._state.models.get(ModelId(self.owner.id, name))
        assert model is not None
        self.says(by, RetireModel(name, model.versions[-1].manifest_digest))

    @rule(by=who, owner=who)
    def consent(self, by: int, owner: int) -> None:
        key, model = self.secret(), ModelId(self.people[owner].id, "m")
        self.says(by, Consent(model, self.policy.digest, None, REQUEST_KEY, key_commitment(key), Validity()), key)

    @rule(by=who, owner=who, back=st.booleans())
    def consented(self, by: int, owner: int, back: bool) -> None:
        key, model = self.secret(), ModelId(self.people[owner].id, "m")
        if back:
            self.says(by, RevokeConsent(model))
        else:
            self.says(by, RotateRequestKey(model, key_commitment(key)), key)

    @rule(by=who, to=who, back=st.booleans(), life=st.sampled_from([FOREVER, 3600]))
    def delegate(self, by: int, to: int, back: bool, life: int) -> None:
        until = life if life == FOREVER else int(self.clock.now()) + life
        self.says(by, Delegate(self.people[to].id, 0 if back else until))

    @rule(by=who, begin=st.booleans())
    def require(self, by: int, begin: bool) -> None:
        named = tuple(sorted(self.persons - {self.owner.id})) if begin else ()
        if named or not begin:
            self.says(by, RequireApproval(2 if begin else 1, named))

    @precondition(lambda self: self.asked)
    @rule(by=who, data=st.data(), twist=st.sampled_from(["", "", "", "entry", "statement"]))
    def approve(self, by: int, data: st.DataObject, twist: str) -> None:
        entry, statement, _ = data.draw(st.sampled_from(self.asked))
        if twist == "entry":
            entry = data.draw(st.sampled_from(self.asked))[0]
        if twist == "statement":
            statement = data.draw(st.sampled_from(self.asked))[1]
        self.says(by, Approve(entry, statement))

    @precondition(lambda self: self.asked)
    @rule(by=who, data=st.data())
    def decline(self, by: int, data: st.DataObject) -> None:
        self.says(by, Decline(data.draw(st.sampled_from(self.asked))[0]))

    @rule(number=who, recovery=st.booleans())
    def rotate(self, number: int, recovery: bool) -> None:
        """By oneself only; the persons stay who they are."""
        person, new = self.people[number], SigningKey.generate()
        sequence = next(self.counter) if recovery else person.sequence + 1
        body = RotateIdentity.prove(new, person.id, sequence)
        self.ks.say(person.statement(body, sequence=sequence, key=person.recovery if recovery else person.key))
        replace_key(person, new)
        assert self.facts() == self.known

    @rule(seconds=st.sampled_from([60, 3600, APPROVAL_S]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.ks.service.maintain()

    @rule()
    def restart(self) -> None:
        self.ks.restart()
        assert self.facts() == self.known

    @invariant()
    def the_line_is_of_persons_and_in_order(self) -> None:
        if not hasattr(self, "asked"):
            return
        items = self.ks.ask(self.owner, "pending")["items"]
        now = self.clock.now()
        assert all(now < item["until"] <= now + APPROVAL_S for item in items)
        shown = [(item["index"], Entry.decode(item["entry"]).body) for item in items]
        assert shown == [(entry, said) for entry, said, _ in self.asked if entry in {index for index, _ in shown}]

    def teardown(self) -> None:
        if hasattr(self, "ks"):
            ledger = self.ks.assembled.ledger
            entries = [Entry.decode(data) for _, data, _ in ledger.entries(list(range(ledger.head().size)))]
            assert audit(enumerate(entries), self.ks.id).findings == ()
            self.ks.close()


def replace_key(person: Person, key: SigningKey) -> None:
    """The person has a new key, whose numbers begin anew."""
    person.key, person.sequence = key, 0


TestTwoPersons = TwoPersonsMachine.TestCase
TestTwoPersons.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
