"""S10, S4: only auditors that the measured configuration names read the whole log, and a log that lies is found out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.client.audit import readers
from cloister.keyservice.proposals import Proposal
from cloister.keyservice.settings import Settings
from cloister.keyservice.state.audit import Audit, audit
from cloister.log.entry import RELEASE, STATEMENT, Entry, ReleaseRecord
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person
from cloister.wire.provisioning import ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Consent,
    DefinePolicy,
    Delegate,
    Grant,
    PublishModel,
    RevokeGrant,
    RotateRequestKey,
    Validity,
    key_commitment,
)

SEED = b"a" * 32
AUDITOR = Person(bytes(32), None, SEED).id  # type: ignore[arg-type]  # its id needs neither
KEY, MODEL_KEY = SecretBytes(b"Q" * 32), SecretBytes(b"M" * 32)


class World:
    """An owner, a user, an auditor, and a KeyService that names the auditor; keys were released once."""

    def __init__(self, **settings: Any) -> None:
        self.ks = EmbeddedKeyService(**{"auditors": (AUDITOR,), **settings})
        self.owner, self.user, self.auditor = self.ks.person(), self.ks.person(), self.ks.person(SEED)
        self.model, self.policy = ModelId(self.owner.id, "model"), self.ks.runtime_tee.policy()
        for person in (self.owner, self.user):
            self.ks.say(person.statement(DefinePolicy(self.policy.encode())))
        self.ks.say(self.owner.statement(PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))), MODEL_KEY)
        self.grant()
        body = Consent(self.model, self.policy.digest, None, REQUEST_KEY, key_commitment(KEY), Validity())
        self.ks.say(self.user.statement(body), KEY)
        self.request = ReleaseRequest(self.user.id, self.model, REQUEST_KEY, key_commitment(KEY))
        self.ks.attest().release(self.request)

    def grant(self, quota: int = 0, validity: Validity | None = None) -> None:
        body = Grant("model", self.user.id, self.policy.digest, validity or Validity(), quota)
        self.ks.say(self.owner.statement(body))

    def history(self, asker: Person) -> list[tuple[int, Entry]]:
        found: list[tuple[int, Entry]] = []
        after = 0
        while after >= 0:
            page = self.ks.ask(asker, "history", after=after)
            assert page["first"] == after
            found += [(index, Entry.decode(data)) for index, data in enumerate(page["entries"], after)]
            after = page["next"]
        return found

    def record(self) -> ReleaseRecord:
        """The newest release."""
        releases = [entry for _, entry in self.history(self.auditor) if entry.kind == RELEASE]
        return ReleaseRecord.decode(releases[-1].body)

    def write(self, kind: str, body: bytes) -> None:
        """What a KeyService that breaks its rules would write."""
        self.ks.assembled.ledger.commit(lambda _state, _vault, _now: Proposal(kind, body))

    def audit(self) -> Audit:
        return audit(self.history(self.auditor), self.ks.id)

    def codes(self) -> set[str]:
        return {finding.code for finding in self.audit().findings}


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.ks.close()


def test_s10_the_whole_log_is_opened_to_named_auditors_only(world: World) -> None:
    for curious in (world.owner, world.user):
        with pytest.raises(Refused) as caught:
            world.ks.ask(curious, "history")
        assert caught.value.code == "not-auditor"
    entries = world.history(world.auditor)
    head = world.ks.assembled.ledger.head()
    assert [index for index, _ in entries] == list(range(head.size))
    leaves = world.ks.assembled.ledger.leaves(0, head.size)
    assert b"".join(entry.leaf() for _, entry in entries) == leaves
    for _, entry in entries:
        for secret in (KEY, MODEL_KEY):
            assert secret.reveal() not in entry.body


def test_s10_nobody_makes_himself_an_auditor(world: World) -> None:
    stranger = world.ks.person()
    with pytest.raises(Refused):  # nor by somebody's name
        world.ks.ask(stranger, "history", subject=AUDITOR)
    world.ks.say(world.auditor.statement(Delegate(stranger.id, int(world.ks.clock.now()) + 60)))
    assert world.ks.ask(stranger, "history", subject=AUDITOR)["entries"]
    world.ks.clock.advance(61)
    with pytest.raises(Refused, match="not-delegated"):
        world.ks.ask(stranger, "history", subject=AUDITOR)


def test_s10_a_keyservice_with_auditors_looks_different_in_its_evidence() -> None:
    plain, named = Settings(), Settings(auditors=(AUDITOR,))
    assert plain.measured().digest != named.measured().digest
    assert named.measured().values["auditors"] == (AUDITOR.hex(),)
    for bad in ((AUDITOR, AUDITOR), (b"short",), tuple(bytes([n]) * 32 for n in range(17))):
        with pytest.raises(InvalidInput, match="configuration-malformed"):
            Settings(auditors=bad)


def test_s4_an_honest_log_passes_the_audit(world: World) -> None:
    world.ks.say(world.user.statement(RotateRequestKey(world.model, key_commitment(MODEL_KEY))), MODEL_KEY)
    world.ks.attest().release(world.request)  # the previous key, for a while
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    with pytest.raises(CloisterError):
        world.ks.attest().release(world.request)
    found = world.audit()
    assert found.findings == ()
    assert (found.releases, found.genesis.keyservice) == (2, world.ks.id)
    assert found.statements == len(world.history(world.auditor)) - 3


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"user": b"x" * 32}, "grant-missing"),
        ({"key_id": b"k" * 32}, "key-not-current"),
        ({"mode": "service-key"}, "mode-not-consented"),
        ({"version": 2}, "version-other"),
        ({"manifest_digest": b"2" * 32}, "version-other"),
        ({"owner_policy": b"p" * 32}, "policy-other"),
        ({"user_policy": b"p" * 32}, "policy-other"),
        ({"owner_rule": "another"}, "rule-unknown"),
        ({"tee": "sgx"}, "rule-unknown"),
        ({"measurements": {"measurement": b"e" * 48}}, "measurement-other"),
    ],
)
def test_s4_a_release_that_nobody_allowed_is_found(world: World, change: dict[str, Any], code: str) -> None:
    world.write(RELEASE, replace(world.record(), **change).encode())
    assert code in world.codes()


def test_s4_a_release_after_the_revocation_is_found(world: World) -> None:
    record = world.record()
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    world.write(RELEASE, record.encode())
    assert world.codes() == {"grant-missing"}


def test_s4_a_lease_beyond_what_was_granted_is_found(world: World) -> None:
    record = world.record()
    now = int(world.ks.clock.now())
    world.grant(quota=5, validity=Validity(now - 1, now + 30))
    world.write(RELEASE, replace(record, lease_s=60, lease_requests=6).encode())
    assert world.codes() == {"lease-over", "quota-exceeded"}


def test_s4_a_statement_that_its_issuer_never_made_is_found(world: World) -> None:
    thief = Person(world.ks.id, world.ks.clock)
    body = Grant("model", thief.id, world.policy.digest, Validity(), 0)
    world.write(STATEMENT, world.owner.statement(body, key=thief.key))
    found = world.audit().findings
    assert [finding.code for finding in found] == ["signature-invalid"]


def test_s4_a_statement_against_the_rules_is_found(world: World) -> None:
    replayed = world.owner.statement(Grant("model", world.user.id, world.policy.digest, Validity(), 0))
    world.ks.say(replayed)
    world.write(STATEMENT, replayed)
    assert world.codes() == {"statement-replayed"}


def test_s10_who_could_read_what_is_one_line_each(world: World) -> None:
    world.ks.clock.advance(100)
    world.ks.attest().release(world.request)
    (row,) = readers(world.history(world.auditor))
    begun, now = int(world.ks.clock.now()) - 100, int(world.ks.clock.now())
    assert (row["user"], row["model"], row["version"]) == (world.user.id.hex(), str(world.model), 1)
    assert (row["releases"], row["first"], row["until"]) == (2, begun, now + 60)
    assert row["owner_policy"] == row["user_policy"] == world.policy.digest.hex()
    assert row["measurements"] == {"measurement": world.ks.runtime_tee.measurement.hex()}


def test_s7_a_history_with_a_gap_is_no_audit(world: World) -> None:
    entries = world.history(world.auditor)
    for part in (entries[1:], entries[:2] + entries[3:], []):
        with pytest.raises(InvalidInput, match="audit-incomplete"):
            audit(part, world.ks.id)
    with pytest.raises(Tampered, match="store-other"):
        audit(entries, bytes(32))
