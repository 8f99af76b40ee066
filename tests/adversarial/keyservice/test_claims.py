"""The claims S4 to S9 against the KeyService, by an attacker who owns network, disk and clock (protocol.md, 1)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cloister.adapters.keyservice import VolatileHeads, check_head
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context
from cloister.crypto.sign import SigningKey
from cloister.keyservice.app import assemble
from cloister.keyservice.opening import Tee
from cloister.keyservice.root import make_root, open_root
from cloister.keyservice.settings import Settings
from cloister.log.merkle import verify_consistency
from cloister.testing.embedded import EmbeddedKeyService, RuntimeSession, attest_request
from cloister.testing.people import Person
from cloister.testing.rows import MemoryRows
from cloister.testing.tee import SimulatedTee
from cloister.wire import calls, cbor, cose, provisioning
from cloister.wire.calls import Description, LogHead, verify_status
from cloister.wire.provisioning import AttestRequest, Release, ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Consent,
    DefinePolicy,
    Delegate,
    DisableIdentity,
    Grant,
    PublishModel,
    RetireModel,
    RevokeConsent,
    RevokeGrant,
    Validity,
    key_commitment,
)

MODEL_KEY = SecretBytes(b"M" * 32)
REQUEST = SecretBytes(b"Q" * 32)


class World:
    """Owner, user, model, grant and consent: a release succeeds until the attacker does something."""

    def __init__(self) -> None:
        self.ks = EmbeddedKeyService()
        self.clock: Any = self.ks.clock
        self.owner, self.user = self.ks.person(), self.ks.person()
        self.model = ModelId(self.owner.id, "model")
        self.policy = self.ks.runtime_tee.policy()
        for person in (self.owner, self.user):
            self.ks.say(person.statement(DefinePolicy(self.policy.encode())))
        body = PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))
        self.ks.say(self.owner.statement(body), MODEL_KEY)
        self.ks.say(self.owner.statement(self.grant()))
        self.ks.say(self.user.statement(self.consent()), REQUEST)
        self.request = ReleaseRequest(self.user.id, self.model, REQUEST_KEY, key_commitment(REQUEST))

    def grant(self, validity: Validity | None = None) -> Grant:
        return Grant("model", self.user.id, self.policy.digest, validity or Validity(), 0)

    def consent(self) -> Consent:
        return Consent(self.model, self.policy.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())

    def release(self, tee: SimulatedTee | None = None) -> Release:
        return self.ks.attest(tee).release(self.request)

    def refused(self, tee: SimulatedTee | None = None) -> None:
        with pytest.raises(Refused) as caught:
            self.release(tee)
        assert caught.value.code == "release-refused"


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.ks.close()


# --- S4: two keys to every door ---


@pytest.mark.parametrize("who", ["owner", "user"])
def test_s4_either_party_alone_shuts_the_door(world: World, who: str) -> None:
    assert world.release().model_key == MODEL_KEY
    if who == "owner":
        world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    else:
        world.ks.say(world.user.statement(RevokeConsent(world.model)))
    world.refused()


def test_s4_nobody_grants_or_consents_for_another(world: World) -> None:
    thief = world.ks.person()
    world.ks.say(thief.statement(DefinePolicy(world.policy.encode())))
    for body, subject in (
        (replace(world.grant(), user=thief.id), world.owner.id),
        (world.consent(), world.user.id),
    ):
        with pytest.raises(Refused) as caught:
            world.ks.say(thief.statement(body, subject=subject), *([REQUEST] if isinstance(body, Consent) else []))
        assert caught.value.code == "not-delegated"
    world.ks.say(thief.statement(world.consent()), REQUEST)  # his own consent, without a grant
    with pytest.raises(Refused):
        world.ks.attest().release(replace(world.request, user=thief.id))


def test_s4_another_measurement_configuration_or_debug_gets_nothing(world: World) -> None:
    honest = world.ks.runtime_tee
    world.refused(replace(honest, name="patched"))
    world.refused(replace(honest, values={"isolation": "per-user"}))
    world.refused(replace(honest, debug=True))
    assert world.release().model_key == MODEL_KEY


def test_s4_evidence_of_an_unknown_root_opens_no_session(world: World) -> None:
    with pytest.raises(Refused) as caught:
        world.ks.attest(replace(world.ks.runtime_tee, key=SigningKey.generate()))
    assert caught.value.code == "simulation-refused"


def test_s4_a_configuration_other_than_the_attested_one_is_refused(world: World) -> None:
    request, _ = attest_request(world.ks.runtime_tee, world.ks.service.challenge())
    other = SimulatedTee(values={"isolation": "strict"}).configuration.encoded
    for forged in (
        replace(request, configuration=other),
        replace(request, bundle_digest=b"b" * 32),
        replace(request, session_key=attest_request(world.ks.runtime_tee, request.challenge)[0].session_key),
    ):
        with pytest.raises(Refused) as caught:
            world.ks.call(calls.ATTEST, forged.encode())
        assert caught.value.code == "report-data-mismatch"


# --- S5: revocation bites ---


def test_s5_nothing_is_released_after_the_acknowledgement(world: World) -> None:
    session = world.ks.attest()
    assert session.release(world.request).lease_s <= 60
    for body, person in (
        (RevokeGrant("model", world.user.id), world.owner),
        (RevokeConsent(world.model), world.user),
    ):
        world.ks.say(person.statement(body))
        with pytest.raises(Refused):
            session.release(world.request)


@pytest.mark.parametrize("who", ["owner", "user"])
def test_s5_a_disabled_identity_shuts_the_door_at_once(world: World, who: str) -> None:
    person: Person = getattr(world, who)
    world.ks.say(person.statement(DisableIdentity(), key=person.recovery))
    world.refused()


def test_s5_the_hosts_clock_does_not_bring_an_expired_grant_back(world: World) -> None:
    now = int(world.clock.now())
    world.ks.say(world.owner.statement(world.grant(Validity(0, now + 100))))
    world.clock.advance(101)
    world.refused()
    world.clock.advance(-101)
    world.refused()  # the KeyService's own time does not go back
    world.ks.say(world.user.statement(DefinePolicy(world.policy.encode())))
    world.ks.restart()
    world.refused()  # nor behind its newest entry after a restart


def test_s5_a_lease_ends_with_the_grant(world: World) -> None:
    now = int(world.clock.now())
    world.ks.say(world.owner.statement(world.grant(Validity(0, now + 7))))
    assert world.release().lease_s == 7


# --- S6: no replay ---


def test_s6_a_captured_call_gains_nothing(world: World) -> None:
    description = Description.decode(world.ks.service.description())
    pending = calls.seal_call(description, calls.STATEMENT, world.owner.statement(RevokeGrant("model", world.user.id)))
    calls.open_reply(pending, world.ks.service.call(pending.data))
    world.ks.say(world.owner.statement(world.grant()))
    second = world.ks.service.call(pending.data)  # the attacker sends it again
    with pytest.raises(Refused) as caught:
        calls.open_reply(pending, second)
    assert caught.value.code == "statement-replayed"
    assert world.release().model_key == MODEL_KEY


def test_s6_replies_to_the_same_call_never_share_a_key(world: World) -> None:
    description = Description.decode(world.ks.service.description())
    pending = calls.seal_call(description, calls.QUERY, world.owner.query("whoami"))
    first, second = world.ks.service.call(pending.data), world.ks.service.call(pending.data)
    assert first[:32] != second[:32]
    other = calls.seal_call(description, calls.QUERY, world.owner.query("whoami"))
    with pytest.raises(Tampered):
        calls.open_reply(other, first)


def test_s6_a_withheld_grant_dies_with_a_later_statement_and_by_itself(world: World) -> None:
    withheld = world.owner.statement(world.grant())
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    with pytest.raises(Refused) as caught:
        world.ks.say(withheld)
    assert caught.value.code == "statement-replayed"
    late = world.owner.statement(world.grant())
    world.clock.advance(600)
    with pytest.raises(Refused) as caught:
        world.ks.say(late)
    assert caught.value.code == "statement-expired"
    world.refused()


def test_s6_what_was_taken_back_cannot_be_delivered_afterwards(world: World) -> None:
    """The first statement never arrived; its revocation finds nothing, and must bite all the same."""
    other, name = world.ks.person(), SecretBytes(b"N" * 32)
    absent = ModelId(world.owner.id, "absent")
    scenes: list[tuple[Person, Any, tuple[SecretBytes, ...], Any]] = [
        (world.owner, replace(world.grant(), user=other.id), (), RevokeGrant("model", other.id)),
        (world.user, replace(world.consent(), model=absent), (REQUEST,), RevokeConsent(absent)),
        (world.owner, Delegate(other.id, 2**40), (), Delegate(other.id, 0)),
        (
            world.owner,
            PublishModel("absent", 1, b"9" * 32, key_commitment(name)),
            (name,),
            RetireModel("absent", b""),
        ),
        (
            world.owner,
            PublishModel("model", 2, b"9" * 32, key_commitment(name)),
            (name,),
            RetireModel("model", b"9" * 32),
        ),
        (
            world.owner,
            Grant("absent", other.id, world.policy.digest, Validity(), 0),
            (),
            RevokeGrant("absent", other.id),
        ),
    ]
    for person, body, keys, back in scenes:
        withheld = person.statement(body)
        acknowledged = world.ks.say(person.statement(back))
        assert acknowledged["sequence"] == person.sequence
        with pytest.raises(Refused) as caught:
            world.ks.say(withheld, *keys)
        assert caught.value.code == "statement-replayed"
    world.ks.restart()
    assert world.release().model_key == MODEL_KEY


def test_s6_a_challenge_is_redeemed_once_and_by_this_process_only(world: World) -> None:
    request, _ = attest_request(world.ks.runtime_tee, world.ks.service.challenge())
    world.ks.call(calls.ATTEST, request.encode())
    with pytest.raises(Refused) as caught:
        world.ks.call(calls.ATTEST, request.encode())
    assert caught.value.code == "challenge-redeemed"
    request, _ = attest_request(world.ks.runtime_tee, world.ks.service.challenge())
    world.clock.advance(60)
    with pytest.raises(Refused) as caught:
        world.ks.call(calls.ATTEST, request.encode())
    assert caught.value.code == "challenge-expired"
    request, _ = attest_request(world.ks.runtime_tee, world.ks.service.challenge())
    world.ks.restart()
    with pytest.raises(InvalidInput) as malformed:
        world.ks.call(calls.ATTEST, request.encode())
    assert malformed.value.code == "challenge-malformed"


def test_s6_a_failed_attestation_does_not_use_up_the_challenge(world: World) -> None:
    challenge = world.ks.service.challenge()
    request, _ = attest_request(replace(world.ks.runtime_tee, key=SigningKey.generate()), challenge)
    with pytest.raises(Refused):
        world.ks.call(calls.ATTEST, request.encode())
    good, _ = attest_request(world.ks.runtime_tee, challenge)
    world.ks.call(calls.ATTEST, good.encode())


def test_s6_session_calls_are_answered_once(world: World) -> None:
    session = world.ks.attest()
    data = session.seal(world.request)
    world.ks.service.session(data)
    size = len(world.ks.disk.tables["entries"])
    for _ in range(2):
        with pytest.raises(InvalidInput) as caught:
            world.ks.service.session(data)
        assert caught.value.code == "call-refused"
    assert len(world.ks.disk.tables["entries"]) == size


def test_s6_session_calls_arrive_in_any_order(world: World) -> None:
    session = world.ks.attest()
    sealed = [session.seal(world.request) for _ in range(5)]
    for data in reversed(sealed):
        world.ks.service.session(data)
    session.sequence = 5000
    world.ks.service.session(session.seal(world.request))
    session.sequence = 3000  # behind the window
    with pytest.raises(InvalidInput):
        world.ks.service.session(session.seal(world.request))


def test_s6_a_reply_of_another_call_is_not_taken(world: World) -> None:
    session = world.ks.attest()
    first, second = session.seal(world.request), session.seal(world.request)
    reply = world.ks.service.session(first)
    with pytest.raises(Tampered):
        provisioning.open_session_reply(session.session, second, reply)


# --- S7: what a single node can: any client that saw a later head notices ---


def head(ks: EmbeddedKeyService) -> LogHead:
    nonce = secrets.token_bytes(32)
    return verify_status(ks.service.status(nonce), Description.decode(ks.service.description()), nonce)


def test_s7_a_restored_database_is_noticed_by_whoever_saw_more(world: World) -> None:
    snapshot = world.ks.disk.copy()
    seen = VolatileHeads()
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    seen.remember(world.ks.id, head(world.ks))
    old = EmbeddedKeyService(clock=world.clock, disk=snapshot, runtime_tee=world.ks.runtime_tee)
    with pytest.raises(Tampered) as caught:
        check_head(seen.newest(old.id), head(old))
    assert caught.value.code == "keyservice-rolled-back"
    # the release itself carries the head, so a runtime that saw more notices too
    release = RuntimeSession(old, old.attest().session).release(world.request)
    with pytest.raises(Tampered):
        check_head(seen.newest(old.id), release.head)
    old.close()


def test_s7_a_fork_is_noticed(world: World) -> None:
    snapshot = world.ks.disk.copy()
    seen = VolatileHeads()
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    real = head(world.ks)
    seen.remember(world.ks.id, real)
    fork = EmbeddedKeyService(clock=world.clock, disk=snapshot, runtime_tee=world.ks.runtime_tee)
    fork.attest().release(world.request)
    with pytest.raises(Tampered) as caught:
        check_head(seen.newest(fork.id), head(fork))
    assert caught.value.code == "keyservice-forked"
    fork.attest().release(world.request)  # longer than what was seen: only a proof shows it
    longer = head(fork)
    asked = cbor.encode({"first": real.size, "second": longer.size})
    proof = cbor.decode(fork.service.consistency(asked), limit=4096, what="the proof")["proof"]
    with pytest.raises(Tampered) as caught:
        verify_consistency(real.size, real.root, longer.size, longer.root, proof)
    assert caught.value.code == "log-fork"
    fork.close()


@pytest.mark.parametrize("table", ["entries", "secrets", "head"])
def test_s7_mixing_old_and_new_records_stops_the_service(world: World, table: str) -> None:
    snapshot = world.ks.disk.copy()
    body = PublishModel("model", 2, b"2" * 32, key_commitment(REQUEST))
    world.ks.say(world.owner.statement(body), REQUEST)
    world.ks.close()
    world.ks.disk.tables[table] = snapshot.tables[table]
    with pytest.raises(Tampered):
        world.ks.restart()


def test_s7_a_removed_secret_stops_the_service(world: World) -> None:
    world.ks.close()
    world.ks.disk.tables["secrets"].popitem()
    with pytest.raises(Tampered) as caught:
        world.ks.restart()
    assert caught.value.code == "secret-missing"


def test_s7_an_emptied_store_is_no_new_beginning(world: World) -> None:
    world.ks.close()
    for rows in world.ks.disk.tables.values():
        rows.clear()
    with pytest.raises(Tampered) as caught:
        world.ks.restart()
    assert caught.value.code == "store-empty"


def test_s7_a_revoked_consents_key_brought_back_is_not_released(world: World) -> None:
    snapshot = world.ks.disk.copy()
    world.ks.say(world.user.statement(RevokeConsent(world.model)))
    world.ks.service.maintain()
    assert len(world.ks.disk.tables["secrets"]) == 1
    world.ks.close()
    world.ks.disk.tables["secrets"] = snapshot.tables["secrets"]
    world.ks.restart()
    world.refused()


def test_s7_a_single_node_says_that_it_has_no_protection(world: World) -> None:
    description = Description.decode(world.ks.service.description())
    configuration = cbor.decode(description.configuration, limit=16384, what="the configuration")
    assert configuration["rollback_protection"] == "none"


# --- S8: fail closed ---


def test_s8_a_full_disk_refuses_and_service_resumes(world: World) -> None:
    world.ks.disk.fail_before = 0
    with pytest.raises(Unavailable) as caught:
        world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    assert caught.value.code == "store-unavailable"
    assert world.release().model_key == MODEL_KEY
    world.ks.disk.fail_before = 0
    with pytest.raises(Unavailable):
        world.release()  # no key leaves that is not in the log
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    world.refused()


def test_s8_each_write_of_a_scenario_fails_once_either_way(world: World) -> None:
    """Fault injection at every write: before it happened, and after it happened but failed to say so."""
    steps = [
        (world.owner, RevokeGrant("model", world.user.id), ()),
        (world.owner, world.grant(), ()),
        (world.user, RevokeConsent(world.model), ()),
        (world.user, world.consent(), (REQUEST,)),
    ]
    for fault in ("fail_before", "fail_after"):
        for person, body, keys in steps:
            setattr(world.ks.disk, fault, 0)
            statement = person.statement(body)
            with pytest.raises(Unavailable):
                world.ks.say(statement, *keys)
            if fault == "fail_after":  # the process dies before it can take the write back
                world.ks.close()
                world.ks.restart()
                with pytest.raises(Refused):
                    world.ks.say(statement, *keys)  # it was written whole
            else:
                world.ks.say(statement, *keys)
        assert world.release().key == REQUEST


@pytest.mark.parametrize("size", [0, 1, 40, 200, 1200, 70_000])
def test_s8_noise_gets_one_answer(world: World, size: int) -> None:
    noise = secrets.token_bytes(size)
    description = Description.decode(world.ks.service.description())
    wrapped = cbor.encode({"ks": description.keyservice, "epoch": description.epoch, "sealed": noise})
    for data in (noise, wrapped):
        with pytest.raises(InvalidInput) as caught:
            world.ks.service.call(data)
        assert (caught.value.code, caught.value.details) == ("call-refused", {})
        with pytest.raises(InvalidInput) as caught:
            world.ks.service.session(data)
        assert caught.value.code == "call-refused"
    for kind in (calls.STATEMENT, calls.QUERY, calls.ATTEST):
        with pytest.raises(CloisterError):
            world.ks.call(kind, noise[:60_000])


def test_s8_every_flipped_bit_of_a_statement_is_refused(world: World) -> None:
    statement = world.owner.statement(RevokeGrant("model", world.user.id))
    for at in range(0, len(statement), 3):
        changed = bytearray(statement)
        changed[at] ^= 1 << at % 8
        with pytest.raises(CloisterError):
            world.ks.say(bytes(changed))
    assert world.release().model_key == MODEL_KEY


def test_s8_attest_requests_with_other_bytes(world: World) -> None:
    request, _ = attest_request(world.ks.runtime_tee, world.ks.service.challenge())
    encoded = request.encode()
    for at in range(0, len(encoded), 29):
        changed = bytearray(encoded)
        changed[at] ^= 1
        with pytest.raises(CloisterError):
            world.ks.call(calls.ATTEST, bytes(changed))
    empty = replace(request, challenge=b"")
    with pytest.raises(InvalidInput) as caught:
        world.ks.call(calls.ATTEST, empty.encode())
    assert caught.value.code == "challenge-malformed"


# --- S9: no confusion ---


@pytest.mark.parametrize("context", [c for c in Context if c is not Context.STATEMENT])
def test_s9_a_signature_for_anything_else_is_no_statement(world: World, context: Context) -> None:
    honest = world.owner.statement(RevokeGrant("model", world.user.id))
    payload = cose.peek1(honest, limit=65536, what="the statement")
    with pytest.raises(Tampered) as caught:
        world.ks.say(cose.sign1(world.owner.key, context, payload))
    assert caught.value.code == "signature-invalid"


def test_s9_calls_of_one_kind_are_not_taken_as_another(world: World) -> None:
    statement = world.owner.statement(RevokeGrant("model", world.user.id))
    query = world.owner.query("whoami")
    request, _ = attest_request(world.ks.runtime_tee, world.ks.service.challenge())
    bodies = {calls.STATEMENT: statement, calls.QUERY: query, calls.ATTEST: request.encode()}
    for kind in bodies:
        for other, body in bodies.items():
            if kind != other:
                with pytest.raises(CloisterError):
                    world.ks.call(kind, body)
    assert world.release().model_key == MODEL_KEY


def test_s9_runtime_evidence_is_not_the_keyservices_and_back(world: World) -> None:
    """The KeyService's own evidence, reflected as a runtime's."""
    description = Description.decode(world.ks.service.description())
    reflected = AttestRequest(
        session_key=description.call_key,
        challenge=world.ks.service.challenge(),
        configuration=description.configuration,
        bundle_digest=description.bundle_digest,
        evidence=description.evidence,
    )
    with pytest.raises(Refused) as caught:
        world.ks.call(calls.ATTEST, reflected.encode())
    assert caught.value.code == "report-data-mismatch"


def test_s9_what_is_for_another_keyservice_is_refused(world: World) -> None:
    other = EmbeddedKeyService(clock=world.clock, seed=b"x" * 32, runtime_tee=world.ks.runtime_tee)
    statement = world.owner.register()
    with pytest.raises(Refused) as caught:
        other.say(statement)
    assert caught.value.code == "statement-other-keyservice"
    pending = calls.seal_call(Description.decode(other.service.description()), calls.QUERY, world.owner.query("whoami"))
    with pytest.raises(InvalidInput):
        world.ks.service.call(pending.data)
    request, _ = attest_request(world.ks.runtime_tee, other.service.challenge())
    with pytest.raises(InvalidInput) as malformed:
        world.ks.call(calls.ATTEST, request.encode())
    assert malformed.value.code == "challenge-malformed"
    other.close()


def test_s9_a_store_of_another_keyservice_is_refused(world: World, tmp_path: Any) -> None:
    world.ks.close()
    tee = SimulatedTee("keyservice", values=world.ks.settings.measured().values, clock=world.clock)
    make_root(tmp_path / "root", tee.sealer())
    root = open_root(tmp_path / "root", tee.sealer())
    with pytest.raises(Tampered):
        assemble(
            MemoryRows(world.ks.disk),
            root,
            Tee(tee.attester(), tee.sealer(), tee.measurement),
            world.ks.settings,
            clock=world.clock,
            collateral=world.ks._collateral,
            bundle_digest=lambda: bytes(32),
            events=world.ks.events,
        )
    assert not world.ks.disk.locked


@pytest.mark.parametrize("what", ["code", "configuration", "platform", "bit", "cut"])
def test_s9_the_root_opens_for_this_code_with_this_configuration_only(world: World, tmp_path: Any, what: str) -> None:
    tee = SimulatedTee("keyservice", values=Settings().measured().values, clock=world.clock)
    path = tmp_path / "root"
    make_root(path, tee.sealer())
    with pytest.raises(Refused) as exists:
        make_root(path, tee.sealer())
    assert exists.value.code == "state-exists"
    data = bytearray(path.read_bytes())
    match what:
        case "code":
            tee = replace(tee, name="patched")
        case "configuration":
            tee = replace(tee, values=Settings(simulation_keys=(b"a" * 32,)).measured().values)
        case "platform":
            tee = replace(tee, key=SigningKey.generate())
        case "bit":
            data[-20] ^= 1
            path.write_bytes(bytes(data))
        case _:
            path.write_bytes(bytes(data[:20]))
    with pytest.raises(Tampered) as caught:
        open_root(path, tee.sealer())
    assert caught.value.code == "unseal-failed"
