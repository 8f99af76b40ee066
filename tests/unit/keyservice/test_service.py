"""The KeyService from sealed call to sealed reply: statements, queries, sessions, releases, service keys."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import REQUEST_FRESHNESS_S
from cloister.base.secret import SecretBytes
from cloister.crypto.hpke import HpkePrivateKey
from cloister.log.entry import Entry, ReleaseRecord
from cloister.log.merkle import verify_consistency, verify_inclusion
from cloister.log.receipt import check_statement_receipt
from cloister.testing.embedded import EmbeddedKeyService, RuntimeSession
from cloister.testing.people import Person
from cloister.testing.tee import SimulatedTee
from cloister.wire import calls, cbor
from cloister.wire.calls import Description, LogHead, verify_status
from cloister.wire.log_keys import LogKeys
from cloister.wire.provisioning import Release, ReleaseRequest, ServiceKeyEndorsement
from cloister.wire.statements import (
    ANY_VERSION,
    REQUEST_KEY,
    SERVICE_KEY,
    Consent,
    DefinePolicy,
    Delegate,
    DisableIdentity,
    Grant,
    PublishModel,
    RetireModel,
    RevokeGrant,
    RotateModelKey,
    RotateRequestKey,
    Validity,
    key_commitment,
)

MODEL_KEY = SecretBytes(b"M" * 32)
REQUEST = SecretBytes(b"Q" * 32)
MANIFEST = b"1" * 32


class World:
    """An owner with a model, a user, a runtime that satisfies both."""

    def __init__(self, **settings: Any) -> None:
        self.ks = EmbeddedKeyService(**settings)
        self.clock = self.ks.clock
        self.owner = self.ks.person()
        self.user = self.ks.person()
        self.model = ModelId(self.owner.id, "model")
        self.policy = self.ks.runtime_tee.policy()
        for person in (self.owner, self.user):
            self.ks.say(person.statement(DefinePolicy(self.policy.encode())))
        body = PublishModel("model", 1, MANIFEST, key_commitment(MODEL_KEY))
        self.ks.say(self.owner.statement(body), MODEL_KEY)

    def grant(self, validity: Validity | None = None, quota: int = 0) -> None:
        body = Grant("model", self.user.id, self.policy.digest, validity or Validity(), quota)
        self.ks.say(self.owner.statement(body))

    def consent(self, key: SecretBytes | None = REQUEST, manifest: bytes | None = None) -> None:
        mode, name = (REQUEST_KEY, key_commitment(key)) if key else (SERVICE_KEY, b"")
        body = Consent(self.model, self.policy.digest, manifest, mode, name, Validity())
        self.ks.say(self.user.statement(body), *([key] if key else []))

    def request(self, key: SecretBytes = REQUEST) -> ReleaseRequest:
        return ReleaseRequest(self.user.id, self.model, REQUEST_KEY, key_commitment(key))

    def release(self, session: RuntimeSession | None = None, request: ReleaseRequest | None = None) -> Release:
        return (session or self.ks.attest()).release(request or self.request())

    def service_keys(self) -> list[dict[str, Any]]:
        about = {"model": str(self.model), "policy": self.policy.digest, "versions": ANY_VERSION}
        keys: list[dict[str, Any]] = self.ks.ask(self.user, "service-key", **about)["keys"]
        return keys


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.ks.close()


def codes(world: World, person: Person) -> set[str]:
    """Codes of the checks of the last denial, as ``person`` sees them."""
    denial = world.ks.ask(person, "why", model=str(world.model), user=world.user.id)["denial"]
    return {check["code"] for check in denial["checks"] if check["verdict"] == "FAIL"}


# --- statements ---


def test_an_acknowledgement_proves_that_the_statement_is_in_the_log(world: World) -> None:
    statement = world.owner.statement(DefinePolicy(world.policy.encode()))
    result = world.ks.say(statement)
    receipt = check_statement_receipt(result, statement, LogKeys(world.ks.log_key))
    assert receipt.keyservice == world.ks.id
    assert result["sequence"] == world.owner.sequence
    assert result["entry"] == receipt.index == receipt.head.size - 1


def test_a_denied_statement_is_told_why_and_nothing_is_wedged(world: World) -> None:
    with pytest.raises(Refused) as caught:
        world.ks.say(world.user.statement(RotateRequestKey(world.model, key_commitment(REQUEST))), REQUEST)
    assert caught.value.code == "consent-missing"
    world.consent()
    world.grant()
    assert world.release().model_key == MODEL_KEY


def test_keys_must_fit_the_statement(world: World) -> None:
    body = RotateModelKey("model", 1, b"2" * 32, key_commitment(REQUEST))
    with pytest.raises(InvalidInput) as caught:
        world.ks.say(world.owner.statement(body), MODEL_KEY)
    assert caught.value.code == "keys-mismatch"
    with pytest.raises(InvalidInput):
        world.ks.call(calls.QUERY, world.owner.query("whoami"), (MODEL_KEY,))


def test_state_survives_a_restart(world: World) -> None:
    world.grant()
    world.consent()
    before = LogHead.read(world.ks.ask(world.user, "keyservice")["head"])
    world.ks.restart()
    after = LogHead.read(world.ks.ask(world.user, "keyservice")["head"])
    assert (before.size, before.root) == (after.size, after.root)
    release = world.release()
    assert (release.model_key, release.key) == (MODEL_KEY, REQUEST)


# --- the log from outside ---


def test_status_and_consistency(world: World) -> None:
    description = Description.decode(world.ks.service.description())
    nonce = secrets.token_bytes(32)
    first = verify_status(world.ks.service.status(nonce), description, nonce)
    world.grant()
    world.consent()
    second = verify_status(world.ks.service.status(nonce), description, nonce)
    asked = cbor.encode({"first": first.size, "second": second.size})
    answer = cbor.decode(world.ks.service.consistency(asked), limit=4096, what="proof")
    verify_consistency(first.size, first.root, second.size, second.root, answer["proof"])


@pytest.mark.parametrize("data", [b"", b"x" * 31, b"x" * 33])
def test_a_status_needs_a_whole_nonce(world: World, data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        world.ks.service.status(data)
    assert caught.value.code == "call-refused"


@pytest.mark.parametrize("data", [b"", b"\xa0", cbor.encode({"first": 9, "second": 1}), b"\xff" * 64])
def test_consistency_of_nonsense(world: World, data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        world.ks.service.consistency(data)
    assert caught.value.code == "call-refused"


# --- releases ---


def test_a_release_is_what_was_published_and_consented_to(world: World) -> None:
    world.grant(quota=9)
    world.consent()
    release = world.release()
    assert (release.manifest_digest, release.version) == (MANIFEST, 1)
    assert (release.model_key, release.key, release.user_key) == (MODEL_KEY, REQUEST, world.user.key.public_key)
    assert (release.lease_s, release.lease_requests, release.co_tenancy) == (60, 9, False)
    assert release.owner_policy == release.user_policy == world.policy.digest
    assert release.head.size == 9  # genesis, 2 identities, 2 policies, model, grant, consent, and the release itself


def test_every_release_is_in_the_log_for_both(world: World) -> None:
    world.grant()
    world.consent()
    release = world.release()
    for person in (world.owner, world.user):
        events = world.ks.ask(person, "events")
        head = LogHead.read(events["head"])
        last = events["items"][-1]
        entry = Entry.decode(last["entry"])
        record = ReleaseRecord.decode(entry.body)
        assert (entry.kind, record.user, record.model) == ("release", world.user.id, world.model)
        assert record.measurements == {"measurement": world.ks.runtime_tee.measurement}
        assert record.owner_rule == record.user_rule == "simulated"
        verify_inclusion(entry.leaf(), last["index"], head.size, last["inclusion"], head.root)
        assert last["index"] == release.head.size - 1


def test_one_session_serves_many_releases_and_each_is_decided_anew(world: World) -> None:
    world.grant()
    world.consent()
    session = world.ks.attest()
    for _ in range(3):
        assert world.release(session).model_key == MODEL_KEY
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    with pytest.raises(Refused) as caught:
        world.release(session)
    assert caught.value.code == "release-refused"
    assert not caught.value.details
    world.grant()
    assert world.release(session).model_key == MODEL_KEY


def test_a_session_ends(world: World) -> None:
    world.grant()
    world.consent()
    session = world.ks.attest()
    world.clock.advance(600)  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput) as caught:
        world.release(session)
    assert caught.value.code == "call-refused"
    assert world.release().model_key == MODEL_KEY


def test_a_rotated_request_key_is_released_for_a_while(world: World) -> None:
    world.grant()
    world.consent()
    new = SecretBytes(b"N" * 32)
    body = RotateRequestKey(world.model, key_commitment(new))
    world.ks.say(world.user.statement(body), new)
    assert world.release().key == REQUEST
    assert world.release(request=world.request(new)).key == new
    world.clock.advance(REQUEST_FRESHNESS_S)  # type: ignore[attr-defined]
    with pytest.raises(Refused):
        world.release()
    world.ks.service.maintain()
    assert len(world.ks.disk.tables["secrets"]) == 2  # the model's and the new one: the old one was destroyed
    world.ks.restart()
    assert world.release(request=world.request(new)).key == new


def test_a_rotated_model_key_replaces_the_old_one(world: World) -> None:
    world.grant()
    world.consent()
    new = SecretBytes(b"N" * 32)
    body = RotateModelKey("model", 1, b"2" * 32, key_commitment(new))
    world.ks.say(world.owner.statement(body), new)
    release = world.release()
    assert (release.manifest_digest, release.version, release.model_key) == (b"2" * 32, 1, new)
    world.ks.say(world.owner.statement(RetireModel("model", b"")))
    with pytest.raises(Refused):
        world.release()
    assert codes(world, world.owner) == {"model-retired", "version-unknown"}


def test_a_runtime_with_another_measurement_is_refused_and_both_learn_their_part(world: World) -> None:
    world.grant()
    strict = SimulatedTee("runtime", values={"isolation": "strict"}, key=world.ks.runtime_tee.key, clock=world.clock)
    world.ks.say(world.user.statement(DefinePolicy(strict.policy().encode())))
    body = Consent(world.model, strict.policy().digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
    world.ks.say(world.user.statement(body), REQUEST)
    with pytest.raises(Refused) as caught:
        world.release()
    assert caught.value.code == "release-refused"
    assert codes(world, world.owner) == {"refused-by-user"}
    assert codes(world, world.user) == {"configuration-not-allowed"}
    about = {"model": str(world.model), "user": world.user.id}
    denial = world.ks.ask(world.user, "why", **about)["denial"]
    failed = next(check for check in denial["checks"] if check["code"] == "configuration-not-allowed")
    assert failed["name"] == "simulated/configuration"
    assert strict.configuration.digest.hex() in failed["expected"]
    assert world.ks.runtime_tee.configuration.digest.hex() in failed["actual"]
    others = [check for check in denial["checks"] if check["whose"] == "owner"]
    assert [(check["code"], check["expected"], check["actual"]) for check in others] == [("ok", "", "")]


@pytest.mark.parametrize("missing", ["grant", "consent"])
def test_both_keys_are_needed(world: World, missing: str) -> None:
    if missing == "grant":
        world.consent()
    else:
        world.grant()
    with pytest.raises(Refused):
        world.release()
    assert f"{missing}-missing" in codes(world, world.owner if missing == "grant" else world.user)


def test_nobody_else_is_told_why(world: World) -> None:
    stranger = world.ks.person()
    with pytest.raises(Refused) as caught:
        world.ks.ask(stranger, "why", model=str(world.model), user=world.user.id)
    assert caught.value.code == "not-concerned"


# --- service keys ---


def test_a_service_key_by_epochs(world: World) -> None:
    world.grant()
    world.consent(key=None)
    (key,) = world.service_keys()
    endorsement = ServiceKeyEndorsement.verify(key["endorsement"], world.ks.log_key)
    assert (endorsement.model, endorsement.manifest_digest) == (world.model, None)
    assert (endorsement.policy_digest, endorsement.epoch) == (world.policy.digest, 1)
    assert key["key"] == endorsement.key_id
    assert key["phase"] == "active"
    assert world.service_keys()[0]["key"] == key["key"]
    request = ReleaseRequest(world.user.id, world.model, SERVICE_KEY, key["key"])
    private = HpkePrivateKey.from_secret(world.release(request=request).key)
    assert private.public_key == endorsement.public_key

    world.clock.advance(20 * 3600)  # type: ignore[attr-defined]
    first, second = world.service_keys()
    assert (first["phase"], second["phase"]) == ("active", "pending")
    pending = ReleaseRequest(world.user.id, world.model, SERVICE_KEY, second["key"])
    assert len(world.release(request=pending).key) == 96  # runtimes get ready before it is used
    world.clock.advance(4 * 3600)  # type: ignore[attr-defined]
    assert [item["phase"] for item in world.service_keys()] == ["active", "active"]
    world.clock.advance(60)  # type: ignore[attr-defined]
    assert [item["phase"] for item in world.service_keys()] == ["stale", "active"]
    assert len(world.release(request=request).key) == 96
    world.clock.advance(REQUEST_FRESHNESS_S)  # type: ignore[attr-defined]
    with pytest.raises(Refused):
        world.release(request=request)
    world.ks.service.maintain()
    world.ks.restart()
    assert [item["key"] for item in world.service_keys()] == [second["key"]]
    assert len(world.release(request=pending).key) == 96


def test_a_service_key_needs_that_very_consent(world: World) -> None:
    with pytest.raises(Refused) as caught:
        world.service_keys()
    assert caught.value.code == "consent-missing"
    world.consent()
    with pytest.raises(Refused) as caught:
        world.service_keys()
    assert caught.value.code == "consent-other"


def test_users_on_the_same_terms_share_a_service_key(world: World) -> None:
    world.consent(key=None)
    (mine,) = world.service_keys()
    other = world.ks.person()
    world.ks.say(other.statement(DefinePolicy(world.policy.encode())))
    body = Consent(world.model, world.policy.digest, None, SERVICE_KEY, b"", Validity())
    world.ks.say(other.statement(body))
    about = {"model": str(world.model), "policy": world.policy.digest, "versions": ANY_VERSION}
    (theirs,) = world.ks.ask(other, "service-key", **about)["keys"]
    assert mine["key"] == theirs["key"]
    world.grant()
    request = ReleaseRequest(other.id, world.model, SERVICE_KEY, mine["key"])
    with pytest.raises(Refused):  # the key is shared, the grant is not
        world.release(request=request)


# --- queries ---


def test_whoami_and_delegates(world: World) -> None:
    world.ks.say(world.owner.statement(Delegate(world.user.id, 2**40)))
    me = world.ks.ask(world.owner, "whoami")
    assert (me["id"], me["sequence"]) == (world.owner.id, world.owner.sequence)
    assert me["delegates"] == [{"id": world.user.id, "until": 2**40}]
    assert world.ks.ask(world.user, "whoami")["delegated_by"] == [{"id": world.owner.id, "until": 2**40}]
    theirs = world.ks.ask(world.user, "whoami", subject=world.owner.id)
    assert theirs["id"] == world.owner.id
    with pytest.raises(Refused) as caught:
        world.ks.ask(world.owner, "whoami", subject=world.user.id)
    assert caught.value.code == "not-delegated"


def test_models_mine_and_granted(world: World) -> None:
    assert world.ks.ask(world.user, "models")["items"] == []
    world.grant()
    (mine,) = world.ks.ask(world.owner, "models")["items"]
    (granted,) = world.ks.ask(world.user, "models")["items"]
    assert (mine.pop("relation"), granted.pop("relation")) == ("owner", "granted")
    assert mine == granted
    assert mine["versions"][0]["manifest"] == MANIFEST


def test_access_shows_grants_and_consents_to_both(world: World) -> None:
    world.consent()
    assert world.ks.ask(world.owner, "access")["items"] == []  # what strangers say of a model concerns nobody
    world.grant()
    for person in (world.owner, world.user):
        items = world.ks.ask(person, "access")["items"]
        assert [(item["kind"], item["user"]) for item in items] == [
            ("consent", world.user.id),
            ("grant", world.user.id),
        ]


def test_lists_come_in_pages(world: World) -> None:
    """With as many versions as are shown: a page must stay below what a reader of CBOR accepts."""
    secret = 0
    for number in range(40):
        for version in range(1, 10):
            secret += 1
            key = SecretBytes(secret.to_bytes(32, "big"))
            body = PublishModel(f"m{number:03}", version, key_commitment(key), key_commitment(key))
            world.ks.say(world.owner.statement(body), key)
    first = world.ks.ask(world.owner, "models")
    second = world.ks.ask(world.owner, "models", after=first["next"])
    assert (len(first["items"]), len(second["items"]), second["next"]) == (32, 9, "")
    assert [version["version"] for version in first["items"][0]["versions"]] == list(range(2, 10))
    assert len({item["model"] for item in first["items"] + second["items"]}) == 41
    seen, after = [], 0
    while after >= 0:
        page = world.ks.ask(world.owner, "events", after=after)
        seen += [item["index"] for item in page["items"]]
        after = page["next"]
    assert len(seen) == len(set(seen)) == 363  # 360 versions, the first model, the identity, the policy


def test_policies_are_shown_to_whoever_defined_them(world: World) -> None:
    assert world.ks.ask(world.owner, "policy", digest=world.policy.digest)["policy"] == world.policy.encode()
    with pytest.raises(Refused) as caught:
        world.ks.ask(world.ks.person(), "policy", digest=world.policy.digest)
    assert caught.value.code == "policy-unknown"


def test_the_dry_run_before_any_runtime_asked(world: World) -> None:
    world.grant(Validity(0, 5))
    answer = world.ks.ask(world.owner, "why", model=str(world.model), user=world.user.id)
    failed = {check["code"]: check for check in answer["checks"] if check["verdict"] == "FAIL"}
    assert set(failed) == {"grant-not-valid", "refused-by-user"}
    assert failed["grant-not-valid"]["expected"] == "from 0 until 5"
    assert answer["denial"] == {}


@pytest.mark.parametrize(
    ("kind", "about", "code"),
    [
        ("nonsense", {}, "query-unknown"),
        ("whoami", {"more": 1}, "field-unknown"),
        ("why", {}, "field-missing"),
        ("policy", {"digest": b"x"}, "field-range"),
        ("service-key", {"model": "x", "policy": bytes(32)}, "id-malformed"),
        ("events", {"after": -1}, "field-range"),
        ("models", {"after": 1}, "field-type"),
    ],
)
def test_malformed_queries(world: World, kind: str, about: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        world.ks.ask(world.user, kind, **about)
    assert caught.value.code == code


def test_queries_are_fresh_signed_and_answered_once(world: World) -> None:
    query = world.user.query("whoami")
    world.ks.call(calls.QUERY, query)
    for wrong, code in (
        (query, "query-replayed"),
        (world.user.query("whoami", issued_at=0), "query-expired"),
        (world.user.query("whoami", keyservice=bytes(32)), "query-other-keyservice"),
        (world.user.query("whoami", issuer=world.owner.id), "signature-invalid"),
        (Person(world.ks.id, world.clock).query("whoami"), "identity-unknown"),
        (world.user.statement(DisableIdentity()), "field-missing"),
    ):
        with pytest.raises(CloisterError) as caught:
            world.ks.call(calls.QUERY, wrong)
        assert caught.value.code == code
    world.ks.say(world.user.statement(DisableIdentity()))
    with pytest.raises(Refused) as refused:
        world.ks.ask(world.user, "whoami")
    assert refused.value.code == "identity-disabled"


# --- epochs ---


def test_epochs_overlap(world: World) -> None:
    old = Description.decode(world.ks.service.description())
    pending = calls.seal_call(old, calls.QUERY, world.user.query("whoami"))
    late = calls.seal_call(old, calls.QUERY, world.user.query("whoami"))
    world.clock.advance(3600)  # type: ignore[attr-defined]
    world.ks.service.maintain()
    new = Description.decode(world.ks.service.description())
    assert new.epoch != old.epoch
    with pytest.raises(Refused):  # the query is old by now, but the call was opened
        calls.open_reply(pending, world.ks.service.call(pending.data))
    world.clock.advance(300)  # type: ignore[attr-defined]
    with pytest.raises(Unavailable) as caught:
        world.ks.service.call(late.data)
    assert caught.value.code == "call-epoch-gone"


def test_the_operator_learns_nothing_from_logs_and_metrics(world: World) -> None:
    """Neither secrets and names, nor what was said, nor whether it was granted or refused and why (S10)."""
    with pytest.raises(Refused):
        world.release()
    world.grant()
    world.consent()
    world.release()
    world.ks.say(world.user.statement(RotateRequestKey(world.model, key_commitment(MODEL_KEY))), MODEL_KEY)
    world.clock.advance(REQUEST_FRESHNESS_S)  # type: ignore[attr-defined]
    world.ks.service.maintain()
    world.ks.disk.fail_before = 0
    with pytest.raises(Unavailable):
        world.release(request=world.request(MODEL_KEY))
    metrics = world.ks.assembled.telemetry.registry.exposition().decode()
    assert 'kind="release",outcome="answered"} 2' in metrics
    assert 'kind="release",outcome="store-unavailable"} 1' in metrics
    text = metrics + repr(world.ks.events.events)  # type: ignore[attr-defined]
    for secret in (MODEL_KEY.reveal(), REQUEST.reveal(), world.user.id, world.owner.id, world.policy.digest):
        assert secret.hex() not in text
        assert repr(secret) not in text
    for word in ("refused", "missing", "grant", "consent", "revoke", "rotate", "model"):
        lines = [line for line in text.lower().splitlines() if word in line and "unauthenticated" not in line]
        assert not lines, lines
