"""Who wants to fill the log, to use up what belongs to others, or to lock the owner out; and who gets in all the same.

No claim promises that a hostile cloud answers. This is about the others: strangers with identities, a thief of a key,
a genuine runtime with hostile plans, and a network that only repeats what it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloister.base.errors import InvalidInput, Refused, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import HANDOVERS_AT_ONCE, NEWCOMER_S
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.keyservice import releases
from cloister.keyservice.limiting.rates import Rate, Rates
from cloister.testing.embedded import EmbeddedKeyService, attest_request
from cloister.testing.people import Person
from cloister.testing.tee import SimulatedTee
from cloister.wire import calls
from cloister.wire.calls import Description
from cloister.wire.provisioning import ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    SERVICE_KEY,
    Body,
    Consent,
    DefinePolicy,
    Delegate,
    DisableIdentity,
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
)

SMALL = Rates(
    statements=Rate(1.0, 12),
    withdrawals=Rate(1.0, 4),
    recoveries=Rate(1.0, 2),
    queries=Rate(1.0, 6),
    registrations=Rate(1.0, 5),
    attestations=Rate(1.0, 3),
    releases=Rate(1.0, 4),
    platform_releases=Rate(1.0, 6),
    growth=Rate(1.0, 400),
    keys=Rate(1.0, 400),
)
KEY = SecretBytes(b"M" * 32)
REQUEST = SecretBytes(b"Q" * 32)


class World:
    """A hospital that owns a model, a doctor who uses it."""

    def __init__(self, rates: Rates = SMALL) -> None:
        self.ks = EmbeddedKeyService(rates=rates)
        self.clock: Any = self.ks.clock
        self.owner, self.user = self.ks.person(), self.ks.person()
        self.model = ModelId(self.owner.id, "model")
        self.policy = self.ks.runtime_tee.policy()
        for person in (self.owner, self.user):
            self.ks.say(person.statement(DefinePolicy(self.policy.encode())))
        self.ks.say(self.owner.statement(PublishModel("model", 1, b"1" * 32, key_commitment(KEY))), KEY)
        self.grant()
        self.consent()

    def grant(self, user: bytes | None = None) -> None:
        body = Grant("model", user or self.user.id, self.policy.digest, Validity(), 0)
        self.ks.say(self.owner.statement(body))

    def consent(self, model: ModelId | None = None) -> None:
        key = SecretBytes(self.user.sequence.to_bytes(32, "big"))
        mode = Consent(model or self.model, self.policy.digest, None, REQUEST_KEY, key_commitment(key), Validity())
        self.ks.say(self.user.statement(mode), key)
        self.request = ReleaseRequest(self.user.id, self.model, REQUEST_KEY, key_commitment(key))

    def entries(self) -> int:
        return self.ks.assembled.ledger.head().size

    def limited(self, kind: str) -> float:
        counter: Any = self.ks.assembled.telemetry
        return float(counter._limited.value(kind))


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.ks.close()


def spend(call: Callable[[], object], most: int = 1_000) -> tuple[int, Unavailable]:
    """Until it is too much: how often it went, and what was said then."""
    for number in range(most):
        try:
            call()
        except Unavailable as error:
            if error.code != "rate-limited":
                raise
            return number, error
    raise AssertionError(f"{most} were let through")


# --- identities ---


def test_a_stranger_who_registers_without_end_fills_no_log_and_keeps_no_guest_out(world: World) -> None:
    size = world.entries()
    done, error = spend(world.ks.person)
    assert (done, world.entries()) == (SMALL.registrations.burst - 2, size + done)
    assert error.retry_after == pytest.approx(1.0, abs=0.01)
    assert error.details == {"kind": "registration"}
    assert world.limited("registration") == 1
    guest = world.ks.person(register=False)
    with pytest.raises(Unavailable):
        world.ks.say(guest.register())
    world.grant(guest.id)  # before the guest is known, which a grant may be
    world.ks.say(guest.register())
    assert world.ks.ask(guest, "whoami")["id"] == guest.id
    world.clock.advance(error.retry_after or 0.0)
    world.ks.person()


def test_closed_to_strangers_it_is_open_to_guests(world: World) -> None:
    world.ks.close()
    closed = EmbeddedKeyService(
        disk=world.ks.disk,
        clock=world.clock,
        runtime_tee=world.ks.runtime_tee,
        rates=Rates(registrations=Rate(0.0, 1)),
    )
    guest = Person(closed.id, world.clock)
    with pytest.raises(Unavailable) as caught:
        closed.say(guest.register())
    assert caught.value.retry_after is None, "nobody shall wait for it"
    body = Grant("model", guest.id, world.policy.digest, Validity(), 0)
    closed.say(world.owner.statement(body))
    closed.say(guest.register())
    closed.close()


def test_an_identity_has_its_own_budget_and_no_other(world: World) -> None:
    noisy = world.ks.person()
    done, error = spend(lambda: world.ks.say(noisy.statement(DefinePolicy(world.policy.encode()))))
    assert done == SMALL.statements.burst
    world.clock.advance(error.retry_after or 0.0)
    world.ks.say(noisy.statement(DefinePolicy(world.policy.encode())))
    world.grant()
    spend(lambda: world.ks.ask(noisy, "whoami"))
    world.ks.ask(world.owner, "whoami")
    assert world.limited("statement") == 1
    assert world.limited("query") == 1


def test_a_replayed_call_costs_the_one_who_made_it_nothing(world: World) -> None:
    """The network has the sealed bytes of calls, and repeats them: refused ones, applied ones, queries."""
    description = Description.decode(world.ks.service.description())
    failing = world.owner.statement(RotateRequestKey(world.model, key_commitment(KEY)))  # its number stays free
    captured = [
        calls.seal_call(description, calls.QUERY, world.owner.query("whoami")),
        calls.seal_call(description, calls.STATEMENT, failing, (KEY,)),
        calls.seal_call(description, calls.STATEMENT, world.owner.statement(RevokeGrant("model", bytes(32)))),
    ]
    for call in captured:
        world.ks.service.call(call.data)
        for _ in range(50):
            world.ks.service.call(call.data)
    assert sum(world.limited(kind) for kind in ("statement", "query", "withdrawal")) == 0
    for _ in range(SMALL.queries.burst - 1):
        world.ks.ask(world.owner, "whoami")


def test_a_request_that_is_sent_again_after_the_pause_it_was_told_gets_through(world: World) -> None:
    for _ in range(5):
        _, error = spend(lambda: world.ks.ask(world.owner, "whoami"))
        assert error.retry_after is not None
        world.clock.advance(error.retry_after)
        world.ks.ask(world.owner, "whoami")


# --- a thief of a key, or a program of one's own that went wild ---


def test_whoever_spends_an_owners_budget_keeps_no_revocation_away(world: World) -> None:
    other = world.ks.person()
    world.ks.say(world.owner.statement(Delegate(other.id, int(world.clock.now()) + 1_000)))
    thief = world.owner  # he has the key
    count = iter(range(1_000))
    spend(lambda: world.ks.say(thief.statement(DefinePolicy(world.policy.encode()))))
    spend(lambda: world.ks.say(thief.statement(RevokeGrant(f"n{next(count)}", bytes(32)))))
    spend(lambda: world.ks.say(world.user.statement(DefinePolicy(world.policy.encode()))))
    spend(lambda: world.ks.say(world.user.statement(RevokeConsent(ModelId(bytes(32), f"n{next(count)}")))))
    takes_back: list[tuple[Person, Body]] = [
        (world.owner, RevokeGrant("model", world.user.id)),
        (world.owner, Delegate(other.id, 0)),
        (world.owner, RetireModel("model", b"1" * 32)),
        (world.owner, RetireModel("model", b"")),
        (world.user, RevokeConsent(world.model)),
        (world.user, DisableIdentity()),
    ]
    for person, body in takes_back:
        world.ks.say(person.statement(body))
        with pytest.raises((Unavailable, Refused)) as caught:  # and once only: not a way to fill the log for nothing
            world.ks.say(person.statement(body))
        assert caught.value.code == ("identity-disabled" if isinstance(body, DisableIdentity) else "rate-limited")


def test_the_recovery_key_has_a_budget_that_no_thief_of_the_other_key_can_spend(world: World) -> None:
    stolen, count = world.owner, iter(range(1_000))
    spend(lambda: world.ks.say(stolen.statement(DefinePolicy(world.policy.encode()))))
    spend(lambda: world.ks.say(stolen.statement(RevokeGrant(f"n{next(count)}", bytes(32)))))
    new = SigningKey.generate()
    body = RotateIdentity.prove(new, stolen.id, stolen.sequence + 1)
    with pytest.raises(Unavailable):
        world.ks.say(stolen.statement(body))
    new = SigningKey.generate()
    body = RotateIdentity.prove(new, stolen.id, 1)
    world.ks.say(stolen.statement(body, sequence=1, key=stolen.recovery))
    new, last = SigningKey.generate(), 2
    body = RotateIdentity.prove(new, stolen.id, last)
    world.ks.say(stolen.statement(body, sequence=last, key=stolen.recovery))
    with pytest.raises(Unavailable):  # it has a bound of its own, for its owner may be the one who fills the log
        world.ks.say(stolen.statement(RotateIdentity.prove(KEYS, stolen.id, 3), sequence=3, key=stolen.recovery))
    world.ks.say(stolen.statement(DisableIdentity(), sequence=4, key=stolen.recovery))


KEYS = SigningKey.generate()


def test_rotations_have_a_budget_beside_other_statements(world: World) -> None:
    spend(lambda: world.ks.say(world.owner.statement(DefinePolicy(world.policy.encode()))))
    spend(lambda: world.ks.say(world.user.statement(DefinePolicy(world.policy.encode()))))
    world.ks.say(world.owner.statement(RotateModelKey("model", 1, b"2" * 32, key_commitment(REQUEST))), REQUEST)
    world.ks.say(world.user.statement(RotateRequestKey(world.model, key_commitment(REQUEST))), REQUEST)


def test_a_delegate_spends_his_own_budget(world: World) -> None:
    other = world.ks.person()
    world.ks.say(world.owner.statement(Delegate(other.id, int(world.clock.now()) + 1_000)))
    spend(lambda: world.ks.say(other.statement(DefinePolicy(world.policy.encode()), subject=world.owner.id)))
    world.grant()


# --- the log as a whole ---


def test_when_the_log_grows_too_fast_strangers_wait_first_and_takings_back_and_models_never() -> None:
    many = Rate(1_000.0, 10**6)
    world = World(Rates(statements=many, registrations=many, withdrawals=many, queries=many, growth=Rate(1e-3, 160)))
    session = world.ks.attest()
    _, error = spend(world.ks.person)
    assert error.details == {"kind": "growth"}
    with pytest.raises(Unavailable):
        world.grant()  # identities of today stand in line with strangers
    world.clock.advance(NEWCOMER_S)
    world.grant()  # those of yesterday go on
    spend(world.grant)
    world.ks.say(world.owner.statement(RevokeGrant("model", bytes(32))))
    spend(lambda: world.ks.say(world.owner.statement(RevokeGrant("model", bytes(32)))))
    world.ks.attest().release(world.request)  # models are served
    with pytest.raises(InvalidInput):
        session.release(world.request)  # of a session that is over long since
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))  # and what is there is taken back
    world.ks.say(world.owner.statement(DisableIdentity(), sequence=1, key=world.owner.recovery))
    world.ks.close()


def test_identities_made_by_the_thousand_do_not_keep_an_owner_from_granting() -> None:
    """Each registers, each is granted to, each grants on: what grows like that ends at half of the log's budget."""
    world = World(Rates(registrations=Rate(0.001, 10**6), growth=Rate(1e-3, 200)))
    world.clock.advance(NEWCOMER_S)
    crowd = [world.ks.person()]

    def more() -> None:
        world.ks.say(crowd[-1].statement(DefinePolicy(world.policy.encode())))
        crowd.append(world.ks.person())

    _, error = spend(more)
    assert error.details == {"kind": "growth"}
    for _ in range(40):
        world.grant()
    world.ks.close()


def test_releases_and_service_keys_grow_the_log_beside_what_people_say() -> None:
    many = Rate(1_000.0, 10**6)
    world = World(Rates(statements=many, queries=many, releases=many, platform_releases=many, keys=Rate(1.0, 20)))
    session = world.ks.attest()
    _, error = spend(lambda: session.release(world.request))
    assert error.details == {"kind": "keys"}
    body = Consent(world.model, world.policy.digest, None, SERVICE_KEY, b"", Validity())
    world.ks.say(world.user.statement(body))  # people go on
    about = {"model": str(world.model), "policy": world.policy.digest, "versions": "any-version-by-this-owner"}
    with pytest.raises(Unavailable) as caught:
        world.ks.ask(world.user, "service-key", **about)
    assert caught.value.details == {"kind": "keys"}
    world.clock.advance(1.0)
    world.ks.ask(world.user, "service-key", **about)
    world.ks.close()


# --- runtimes ---


def test_a_session_and_a_platform_have_their_share_of_releases(world: World) -> None:
    first, second = world.ks.attest(), world.ks.attest()
    done, error = spend(lambda: first.release(world.request))
    assert done == SMALL.releases.burst
    assert spend(lambda: second.release(world.request))[0] == SMALL.platform_releases.burst - SMALL.releases.burst
    size = world.entries()
    for _ in range(20):
        with pytest.raises(Unavailable):
            first.release(world.request)
    assert world.entries() == size
    world.clock.advance((error.retry_after or 0.0) + 2.0)
    first.release(world.request)


def test_asking_for_what_is_refused_costs_as_much(world: World) -> None:
    session = world.ks.attest()
    invented = ReleaseRequest(bytes(32), world.model, REQUEST_KEY, bytes(32))
    for _ in range(SMALL.releases.burst):
        with pytest.raises(Refused):
            session.release(invented)
    with pytest.raises(Unavailable):
        session.release(invented)


def test_names_that_a_runtime_invents_push_out_nobodys_reasons(world: World) -> None:
    many = Rate(1_000.0, 10**6)
    world = World(Rates(releases=many, platform_releases=many, statements=many))
    session = world.ks.attest()
    wrong = ReleaseRequest(world.user.id, world.model, REQUEST_KEY, bytes(32))
    with pytest.raises(Refused):
        session.release(wrong)
    for number in range(50):
        name = ReleaseRequest(number.to_bytes(32, "big"), world.model, REQUEST_KEY, bytes(32))
        with pytest.raises(Refused):
            session.release(name)
    assert len(world.ks.assembled.releases.denials) == 1
    assert world.ks.ask(world.user, "why", model=str(world.model), user=world.user.id)["denial"]
    world.ks.close()


def test_a_platform_that_attests_without_end_is_told_to_wait_and_fills_nothing(world: World) -> None:
    for _ in range(SMALL.attestations.burst):
        world.ks.attest()
    challenges: Any = world.ks.assembled.releases.challenges
    for _ in range(20):
        with pytest.raises(Unavailable) as caught:
            world.ks.attest()
        assert caught.value.code == "rate-limited"
    assert len(challenges._redeemed) == SMALL.attestations.burst
    world.clock.advance(caught.value.retry_after or 0.0)
    world.ks.attest()


def test_a_replayed_attestation_costs_its_platform_nothing(world: World) -> None:
    request, _ = attest_request(world.ks.runtime_tee, world.ks.service.challenge())
    world.ks.call(calls.ATTEST, request.encode())
    for _ in range(20):
        with pytest.raises(Refused) as caught:
            world.ks.call(calls.ATTEST, request.encode())
        assert caught.value.code == "challenge-redeemed"
    for _ in range(SMALL.attestations.burst - 1):
        world.ks.attest()


def test_evidence_of_strangers_takes_half_of_the_threads_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Rates())
    verify, busy = releases.verify, list[str]()

    def nested(*args: Any, **options: Any) -> Any:
        if not busy:  # each one asks for another while it is verified, until there is no place left
            request, _ = attest_request(world.ks.runtime_tee, world.ks.service.challenge())
            try:
                world.ks.call(calls.ATTEST, request.encode())
            except Unavailable as error:
                busy.append(error.code)
        return verify(*args, **options)

    monkeypatch.setattr(releases, "verify", nested)
    world.ks.attest()
    assert busy == ["keyservice-busy"]
    assert len(world.ks.assembled.releases.sessions) == releases.VERIFICATIONS_AT_ONCE
    monkeypatch.setattr(releases, "verify", verify)
    for _ in range(releases.VERIFICATIONS_AT_ONCE + 1):  # each place is given back, also by those that fail
        request, _ = attest_request(SimulatedTee("runtime", clock=world.clock), world.ks.service.challenge())
        with pytest.raises(Refused):
            world.ks.call(calls.ATTEST, request.encode())
    world.ks.attest()
    world.ks.close()


def test_those_who_ask_for_the_root_secret_wait_for_a_place_too() -> None:
    ks = EmbeddedKeyService(bundle_key=SigningKey.generate())
    pending = calls.seal_call(Description.decode(ks.service.description()), calls.HANDOVER, b"nonsense")
    service: Any = ks.service
    places = [service._handing_over.one() for _ in range(HANDOVERS_AT_ONCE)]
    for place in places:
        place.__enter__()
    with pytest.raises(Unavailable) as caught:
        calls.open_reply(pending, ks.service.hand_over(pending.data))
    assert caught.value.code == "keyservice-busy"
    ks.ask(ks.person(), "whoami")  # and nobody else does
    for place in places:
        place.__exit__(None, None, None)
    for _ in range(HANDOVERS_AT_ONCE + 1):  # each place is given back by those that fail
        with pytest.raises(InvalidInput):
            calls.open_reply(pending, ks.service.hand_over(pending.data))
    ks.close()
