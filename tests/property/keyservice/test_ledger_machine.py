"""Random statements, replays, rotations, delegations, faults and restarts against a simple model of the KeyService."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from cloister.base.errors import CloisterError, Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.keyservice.keeper import Keeper
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.proposals import Proposal
from cloister.keyservice.state.audit import audit
from cloister.keyservice.state.rules import authenticate, check
from cloister.keyservice.state.state import State
from cloister.keyservice.storage.sealed import SealedStore
from cloister.keyservice.vault import Vault
from cloister.log.entry import STATEMENT, Entry, Genesis
from cloister.log.merkle import verify_consistency, verify_inclusion
from cloister.testing.clock import FakeClock
from cloister.testing.keyservice_state import canonical, without_snapshot
from cloister.testing.logs import MemoryLog
from cloister.testing.people import Person, simulation_policy
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.wire.calls import keyservice_id
from cloister.wire.statements import (
    REQUEST_KEY,
    Body,
    Consent,
    DefinePolicy,
    Delegate,
    Grant,
    PublishModel,
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

KS = keyservice_id(bytes(32))
POLICY = simulation_policy(b"m" * 48)
people = st.integers(0, 2)
names = st.sampled_from(["a", "b"])


class KeyServiceMachine(RuleBasedStateMachine):
    """The model: plain dictionaries of what was acknowledged."""

    said = Bundle("said")

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock()
        self.disk = MemoryDisk()
        self.ledger = Ledger.begin(self.store(), self.clock, Genesis(KS, bytes(32), b"\xa0"))
        self.people = [Person(KS, self.clock, bytes([n]) * 32) for n in (1, 2, 3)]
        self.sequence: dict[bytes, int] = {}
        self.models: dict[ModelId, tuple[int, bytes]] = {}
        self.dead: set[ModelId] = set()
        self.grants: set[tuple[ModelId, bytes]] = set()
        self.consents: dict[tuple[bytes, ModelId], bytes] = {}
        self.delegates: set[tuple[bytes, bytes]] = set()
        self.secrets = 0
        self.head = self.ledger.head()
        self.snapshots = 0
        for person in self.people:
            self.say(person.register(), (), person.id)
            self.sequence[person.id] = person.sequence
            self.say(person.statement(DefinePolicy(POLICY.encode())), (), person.id)
            self.sequence[person.id] = person.sequence

    def store(self) -> SealedStore:
        return SealedStore(MemoryRows(self.disk), SecretBytes(b"k" * 32), KS, block_entries=4)

    def say(self, received: bytes, keys: tuple[SecretBytes, ...], issuer: bytes) -> None:
        with self.ledger.read() as (state, _):
            verified = authenticate(received, state.identities.get(issuer))

        def propose(state: State, _vault: Vault, now: float) -> Proposal:
            check(state, verified, keys, now)
            return Proposal(STATEMENT, received, keys[0] if keys else None)

        done = self.ledger.commit(propose)
        assert done is not None
        verify_inclusion(done.entry.leaf(), done.index, done.head.size, done.inclusion, done.head.root)

    def tries(
        self, issuer: Person, body: Body, *keys: SecretBytes, subject: Person | None = None, expect: bool = True
    ) -> bytes | None:
        """Say it; ``expect`` is what the model thinks of everything but the delegation."""
        subject = subject or issuer
        allowed = issuer is subject or (subject.id, issuer.id) in self.delegates
        received = issuer.statement(body, subject=subject.id)
        if allowed and expect:
            self.say(received, keys, issuer.id)
            self.sequence[issuer.id] = issuer.sequence
            return received
        with pytest.raises(CloisterError):
            self.say(received, keys, issuer.id)
        return None

    def fresh(self) -> SecretBytes:
        self.secrets += 1
        return SecretBytes(self.secrets.to_bytes(32, "big"))

    @rule(target=said, who=people, subject=people, name=names, version=st.integers(1, 9))
    def publish(self, who: int, subject: int, name: str, version: int) -> bytes | None:
        issuer, owner = self.people[who], self.people[subject]
        model, key = ModelId(owner.id, name), self.fresh()
        manifest = key_commitment(self.fresh())
        good = model not in self.dead and version > self.models.get(model, (0, b""))[0]
        body = PublishModel(name, version, manifest, key_commitment(key))
        received = self.tries(issuer, body, key, subject=owner, expect=good)
        if received:
            self.models[model] = (version, manifest)
        return received

    @rule(target=said, who=people, name=names, version=st.integers(1, 9))
    def rotate_model_key(self, who: int, name: str, version: int) -> bytes | None:
        owner = self.people[who]
        model, key, manifest = ModelId(owner.id, name), self.fresh(), key_commitment(self.fresh())
        good = model not in self.dead and self.models.get(model, (0, b""))[0] == version
        body = RotateModelKey(name, version, manifest, key_commitment(key))
        received = self.tries(owner, body, key, expect=good)
        if received:
            self.models[model] = (version, manifest)
        return received

    @rule(target=said, who=people, name=names)
    def retire(self, who: int, name: str) -> bytes | None:
        model = ModelId(self.people[who].id, name)
        received = self.tries(self.people[who], RetireModel(name, b""))
        if model in self.models:
            self.dead.add(model)
        return received

    @rule(target=said, who=people, subject=people, user=people, name=names)
    def grant(self, who: int, subject: int, user: int, name: str) -> bytes | None:
        owner, guest = self.people[subject], self.people[user]
        model = ModelId(owner.id, name)
        body = Grant(name, guest.id, POLICY.digest, Validity(), 0)
        good = model in self.models and model not in self.dead
        received = self.tries(self.people[who], body, subject=owner, expect=good)
        if received:
            self.grants.add((model, guest.id))
        return received

    @rule(target=said, who=people, user=people, name=names)
    def revoke_grant(self, who: int, user: int, name: str) -> bytes | None:
        key = (ModelId(self.people[who].id, name), self.people[user].id)
        received = self.tries(self.people[who], RevokeGrant(name, key[1]))
        self.grants.discard(key)
        return received

    @rule(target=said, who=people, owner=people, name=names)
    def consent(self, who: int, owner: int, name: str) -> bytes | None:
        user, model, key = self.people[who], ModelId(self.people[owner].id, name), self.fresh()
        body = Consent(model, POLICY.digest, None, REQUEST_KEY, key_commitment(key), Validity())
        received = self.tries(user, body, key)
        self.consents[user.id, model] = key_commitment(key)
        return received

    @rule(target=said, who=people, owner=people, name=names)
    def rotate_request_key(self, who: int, owner: int, name: str) -> bytes | None:
        user, model, key = self.people[who], ModelId(self.people[owner].id, name), self.fresh()
        known = (user.id, model) in self.consents
        received = self.tries(user, RotateRequestKey(model, key_commitment(key)), key, expect=known)
        if received:
            self.consents[user.id, model] = key_commitment(key)
        return received

    @rule(target=said, who=people, owner=people, name=names)
    def revoke_consent(self, who: int, owner: int, name: str) -> bytes | None:
        user, model = self.people[who], ModelId(self.people[owner].id, name)
        received = self.tries(user, RevokeConsent(model))
        self.consents.pop((user.id, model), None)
        return received

    @rule(target=said, who=people, to=people, forever=st.booleans())
    def delegate(self, who: int, to: int, forever: bool) -> bytes | None:
        subject, other = self.people[who], self.people[to]
        until = 2**40 if forever else 0
        received = self.tries(subject, Delegate(other.id, until), expect=who != to)
        if received and forever:
            self.delegates.add((subject.id, other.id))
        elif received:
            self.delegates.discard((subject.id, other.id))
        return received

    @rule(who=people, recovery=st.booleans())
    def rotate_identity(self, who: int, recovery: bool) -> None:
        person, new = self.people[who], SigningKey.generate()
        person.sequence += 1
        body = RotateIdentity.prove(new, person.id, person.sequence)
        signer = person.recovery if recovery else person.key
        self.say(person.statement(body, sequence=person.sequence, key=signer), (), person.id)
        person.key = new
        self.sequence[person.id] = 0

    @rule(received=said)
    def replay(self, received: bytes | None) -> None:
        if received is None:
            return
        before = self.ledger.head().size
        with pytest.raises(CloisterError):
            self.say(received, (), peek_statement(received).issuer)
        assert self.ledger.head().size == before

    @rule(who=people, happened=st.booleans())
    def the_disk_fails(self, who: int, happened: bool) -> None:
        person = self.people[who]
        received = person.statement(DefinePolicy(POLICY.encode()))
        setattr(self.disk, "fail_after" if happened else "fail_before", 0)
        with pytest.raises(Unavailable):
            self.say(received, (), person.id)
        self.say(received, (), person.id)  # not applied, so it is no replay
        self.sequence[person.id] = person.sequence

    @rule(seconds=st.integers(0, 200))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.ledger.sweep()

    @rule()
    def snapshot(self) -> None:
        keeper = Keeper(self.ledger, self.clock, MemoryLog())
        assert keeper.save()
        assert keeper.saved == self.ledger.head().size
        self.snapshots += 1

    @rule(happened=st.booleans(), writes=st.integers(0, 6))
    def a_snapshot_is_cut_short(self, happened: bool, writes: int) -> None:
        setattr(self.disk, "fail_after" if happened else "fail_before", writes)
        with contextlib.suppress(Unavailable):
            Keeper(self.ledger, self.clock, MemoryLog()).save()
        self.disk.fail_after = self.disk.fail_before = None

    @rule()
    def restart(self) -> None:
        head = self.ledger.head()
        self.ledger.close()
        self.ledger = Ledger(self.store(), self.clock)
        assert (self.ledger.head().size, self.ledger.head().root) == (head.size, head.root)
        assert not self.ledger.ignored
        assert self.ledger.begun or not self.snapshots
        self.state_from_the_snapshot_is_the_one_from_the_log()

    def state_from_the_snapshot_is_the_one_from_the_log(self) -> None:
        replayed = Ledger(
            SealedStore(MemoryRows(without_snapshot(self.disk)), SecretBytes(b"k" * 32), KS, block_entries=4),
            self.clock,
        )
        assert not replayed.begun
        for ledger in (self.ledger, replayed):
            ledger.sweep()  # which secrets are gone already is no part of the log
        assert canonical(self.ledger) == canonical(replayed)

    @invariant()
    def state_is_what_was_acknowledged(self) -> None:
        with self.ledger.read() as (state, _):
            for person in self.people:
                identity = state.identities.get(person.id)
                assert identity is not None
                assert (identity.public_key, identity.sequence) == (person.key.public_key, self.sequence[person.id])
            assert {key for key, _ in state.grants.items()} == self.grants
            consents: dict[Any, bytes] = {key: record.key_commitment for key, record in state.consents.items()}
            assert consents == self.consents
            for name, (version, manifest) in self.models.items():
                model = state.models.get(name)
                assert model is not None
                newest = model.versions[-1]
                assert (newest.version, newest.manifest_digest) == (version, manifest)
                assert model.retired == (name in self.dead)
            assert {key for key, _ in state.delegations.items()} == self.delegates
            live = sum(1 for _, place in state.secrets.items() if place.until is None)
            newest_alive = sum(
                1 for name, m in state.models.items() for v in m.versions if not v.retired and name not in self.dead
            )
            assert live == newest_alive + len(self.consents)

    @invariant()
    def the_log_only_grows(self) -> None:
        head = self.ledger.head()
        proof = self.ledger.consistency(self.head.size, head.size)
        verify_consistency(self.head.size, self.head.root, head.size, head.root, proof)
        self.head = head

    def teardown(self) -> None:
        """An auditor who reads all of it finds nothing, whatever was said in whatever order."""
        size = self.ledger.head().size
        entries = [(index, Entry.decode(data)) for index, data, _ in self.ledger.entries(list(range(size)))]
        found = audit(entries, KS)
        assert (found.findings, found.statements) == ((), size - 1)


KeyServiceMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestKeyService = KeyServiceMachine.TestCase
