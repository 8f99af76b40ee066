"""Explained denial (protocol.md 7.9, attestation.md 9.5): the real KeyService, and a runtime's own session with it.

Whoever set the rule reads claim, rule and both values; the other party only whose rule it was; the runtime one code,
whatever the reason.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from cloister.adapters.keyservice import KeyServiceLink, VolatileHeads
from cloister.attest.types import TeeType
from cloister.base.errors import Refused
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.runtime.keys import RuntimeSession
from cloister.runtime.stages import Timings
from cloister.testing.clock import FakeClock
from cloister.testing.collateral import NoCollateral
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person
from cloister.testing.tee import SimulatedTee
from cloister.wire.provisioning import ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Consent,
    DefinePolicy,
    Grant,
    PublishModel,
    RevokeGrant,
    Validity,
    key_commitment,
)

MODEL_KEY = SecretBytes(b"M" * 32)
ROOT = SigningKey.generate()
STRICTER = {"isolation": ["strict"]}


class World:
    """An owner, a user, a model, and a runtime that shares its process among users."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        digest = [bytes(32)]
        self.ks = EmbeddedKeyService(clock=self.clock, bundle_digest=lambda: digest[0])
        self.tee = SimulatedTee("runtime", {"isolation": "shared"}, self.ks.runtime_tee.key, self.clock)
        trusted = self.ks.tee.bundle(ROOT)
        digest[0] = trusted.digest
        self.ks.restart()
        link = KeyServiceLink(
            self.ks, bundle=lambda: trusted, collateral=NoCollateral(), clock=self.clock, heads=VolatileHeads()
        )
        self.session = RuntimeSession(link, self.tee.attester(), self.tee.configuration, clock=self.clock)
        self.request_key = SecretBytes(secrets.token_bytes(32))
        self.owner, self.user = self.ks.person(), self.ks.person()
        self.model = ModelId(self.owner.id, "model")
        body = PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))
        self.ks.say(self.owner.statement(body), MODEL_KEY)

    def permit(self, *, owner: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> None:
        """Grant and consent, each under the policy that fits, with fields changed."""
        for person, changed in ((self.owner, owner), (self.user, user)):
            rule = self.tee.rule()
            changed_rule = type(rule).of("mine", TeeType.SIMULATION, rule.plain() | (changed or {}))
            policy = type(self.tee.policy())((changed_rule,))
            self.ks.say(person.statement(DefinePolicy(policy.encode())))
            if person is self.owner:
                self.ks.say(person.statement(Grant("model", self.user.id, policy.digest, Validity(), 0)))
            else:
                self.request_key = SecretBytes(secrets.token_bytes(32))
                commitment = key_commitment(self.request_key)
                body = Consent(self.model, policy.digest, None, REQUEST_KEY, commitment, Validity())
                self.ks.say(person.statement(body), self.request_key)

    def ask(self) -> Refused:
        """What the runtime is told."""
        request = ReleaseRequest(self.user.id, self.model, REQUEST_KEY, key_commitment(self.request_key))
        with pytest.raises(Refused) as caught:
            self.session.release(request, Timings())
        return caught.value

    def why(self, person: Person) -> list[dict[str, str]]:
        """The checks of the last denial that failed, as this party sees them."""
        answer = self.ks.ask(person, "why", model=str(self.model), user=self.user.id)
        return [check for check in answer["denial"]["checks"] if check["verdict"] == "FAIL"]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.ks.close()


@pytest.mark.parametrize("whose", ["owner", "user"])
def test_whoever_set_the_rule_reads_claim_rule_and_both_values(world: World, whose: str) -> None:
    world.permit(**{whose: STRICTER})
    world.ask()
    setter, other = (world.owner, world.user) if whose == "owner" else (world.user, world.owner)
    (mine,) = world.why(setter)
    assert (mine["name"], mine["whose"], mine["code"]) == ("mine/isolation", whose, "isolation-not-allowed")
    assert (mine["expected"], mine["actual"]) == ("one of strict", "shared")
    (theirs,) = world.why(other)
    assert (theirs["whose"], theirs["code"]) == (whose, f"refused-by-{whose}")
    assert (theirs["expected"], theirs["actual"]) == ("", "")
    everything = repr(world.ks.ask(other, "why", model=str(world.model), user=world.user.id)["denial"]["checks"])
    assert "isolation-not-allowed" not in everything
    assert "strict" not in everything


def test_both_may_have_refused(world: World) -> None:
    world.permit(owner=STRICTER, user={"measurement": [b"x" * 48]})
    world.ask()
    assert {(check["whose"], check["code"]) for check in world.why(world.owner)} == {
        ("owner", "isolation-not-allowed"),
        ("user", "refused-by-user"),
    }
    assert {(check["whose"], check["code"]) for check in world.why(world.user)} == {
        ("user", "measurement-not-allowed"),
        ("owner", "refused-by-owner"),
    }


def test_the_runtime_is_told_one_thing_whatever_the_reason(world: World) -> None:
    """Also byte for byte: the sealed replies have one length."""
    told, lengths = [], set()
    exchange = world.session._link._transport.post

    def noting(path: str, body: bytes, *, limit: int) -> bytes:
        reply = exchange(path, body, limit=limit)
        if path == "/v1/session":
            lengths.add(len(reply))
        return reply

    world.session._link._transport.post = noting
    told.append(world.ask())  # neither grant nor consent
    for owner, user in ((STRICTER, None), (None, STRICTER), (STRICTER, {"measurement": [b"x" * 48]})):
        world.permit(owner=owner, user=user)
        told.append(world.ask())
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    told.append(world.ask())
    assert {(error.code, error.message, error.hint, tuple(error.details)) for error in told} == {
        (
            "release-refused",
            "owner or user does not let this runtime have these keys",
            "Each of them sees which rule refuses with `cloister access why`.",
            (),
        )
    }
    assert len(told) == 5
    assert len(lengths) == 1
