"""Two keys to every door (S4): each missing, expired or contradictory part refuses, with its code and its owner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloister.access.checks import Asked, Check, Party
from cloister.access.decide import KeyRelease, LeaseBounds, decide, explain, shown_to
from cloister.access.records import (
    ConsentRecord,
    Facts,
    GrantRecord,
    Identity,
    Model,
    ModelVersion,
    PreviousKey,
    ServiceKey,
)
from cloister.adapters.tee.simulation import SimulatedAttester
from cloister.attest.anchors import TrustAnchors
from cloister.attest.appraise import appraisal_report, appraise
from cloister.attest.configuration import configure
from cloister.attest.policy import Policy
from cloister.attest.steps import Verdict
from cloister.attest.types import Appraisal, Collateral, VerifiedEvidence
from cloister.attest.verify import verify
from cloister.base.errors import Refused
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.testing.clock import FakeClock
from cloister.testing.people import simulation_policy
from cloister.wire.provisioning import ReleaseRequest
from cloister.wire.statements import REQUEST_KEY, SERVICE_KEY, Validity

NOW = 1_800_000_000.0
GOOD, BAD = b"g" * 48, b"b" * 48
ROOT = SigningKey.from_seed(SecretBytes(b"r" * 32))
CONFIGURATION = configure({"isolation": "shared"})
REPORT = bytes(64)
OWNER_POLICY = simulation_policy(GOOD, co_tenancy=True)
USER_POLICY = simulation_policy(GOOD, isolation=["shared", "strict"])

OWNER = Identity(b"o" * 32, b"O" * 32, b"R" * 32, 3, 0)
USER = Identity(b"u" * 32, b"U" * 32, b"S" * 32, 3, 0)
MODEL = ModelId(OWNER.id, "model")
V1 = ModelVersion(1, b"1" * 32, b"c" * 32, 10, 0)
V2 = ModelVersion(2, b"2" * 32, b"d" * 32, 20, 0)
GRANT = GrantRecord(MODEL, USER.id, OWNER_POLICY.digest, Validity(), 0, 5)
CONSENT = ConsentRecord(USER.id, MODEL, USER_POLICY.digest, None, REQUEST_KEY, b"k" * 32, 30, Validity(), 30)
FACTS = Facts(OWNER, USER, Model(MODEL, (V1, V2)), GRANT, CONSENT)
REQUEST = ReleaseRequest(USER.id, MODEL, REQUEST_KEY, b"k" * 32)


def evidence(measurement: bytes = GOOD) -> VerifiedEvidence:
    attester = SimulatedAttester(
        ROOT, FakeClock(NOW), configuration_digest=CONFIGURATION.digest, measurement=measurement
    )
    return verify(attester.evidence(REPORT), Collateral(), TrustAnchors(simulation_keys=(ROOT.public_key,)), NOW)


def appraisal(policy: Policy, now: float = NOW, verified: VerifiedEvidence | None = None) -> Appraisal:
    return appraise(verified or evidence(), configuration=CONFIGURATION, report_data=REPORT, policy=policy, now=now)


def decided(facts: Facts = FACTS, request: ReleaseRequest = REQUEST, now: float = NOW, **options: Any) -> KeyRelease:
    owner, user = options.pop("owner_policy", OWNER_POLICY), options.pop("user_policy", USER_POLICY)
    arguments: dict[str, Any] = {
        "owner_policy": owner,
        "owner_appraisal": appraisal(owner, now),
        "user_policy": user,
        "user_appraisal": appraisal(user, now),
        "now": now,
        "bounds": LeaseBounds(60, 1000),
    }
    return decide(request, facts, **(arguments | options))


def test_everything_in_order() -> None:
    release = decided()
    assert (release.manifest_digest, release.version, release.model_key_entry, release.key_entry) == (
        V2.manifest_digest,
        2,
        20,
        30,
    )
    assert (release.lease_s, release.lease_requests, release.user_key) == (60, 1000, USER.public_key)
    assert not release.co_tenancy  # only one of both allows it


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"owner": None}, "owner-unknown", "owner"),
    ({"owner": replace(OWNER, disabled=True)}, "owner-disabled", "owner"),
    ({"owner": USER}, "owner-unknown", "owner"),
    ({"user": None}, "user-unknown", "user"),
    ({"user": replace(USER, disabled=True)}, "user-disabled", "user"),
    ({"model": None}, "model-unknown", "owner"),
    ({"model": Model(ModelId(OWNER.id, "other"), (V1,))}, "model-unknown", "owner"),
    ({"model": Model(MODEL, (V1, V2), retired=True)}, "model-retired", "owner"),
    ({"model": Model(MODEL, (replace(V1, retired=True),))}, "version-unknown", "owner"),
    ({"grant": None}, "grant-missing", "owner"),
    ({"grant": replace(GRANT, user=OWNER.id)}, "grant-missing", "owner"),
    ({"grant": replace(GRANT, validity=Validity(0, int(NOW)))}, "grant-not-valid", "owner"),
    ({"grant": replace(GRANT, validity=Validity(int(NOW) + 1))}, "grant-not-valid", "owner"),
    ({"consent": None}, "consent-missing", "user"),
    ({"consent": replace(CONSENT, model=ModelId(OWNER.id, "other"))}, "consent-missing", "user"),
    ({"consent": replace(CONSENT, validity=Validity(0, int(NOW)))}, "consent-not-valid", "user"),
    ({"consent": replace(CONSENT, mode=SERVICE_KEY)}, "mode-not-consented", "user"),
    ({"consent": replace(CONSENT, key_commitment=b"x" * 32)}, "key-not-current", "user"),
    ({"consent": replace(CONSENT, manifest_digest=b"9" * 32)}, "version-unknown", "owner"),
]


@pytest.mark.parametrize(("changed", "code", "whose"), REFUSALS)
def test_each_part_refuses(changed: dict[str, Any], code: str, whose: str) -> None:
    facts = replace(FACTS, **changed)
    with pytest.raises(Refused) as caught:
        decided(facts)
    assert (caught.value.code, caught.value.details["whose"]) == (code, whose)
    checks = explain(Asked(USER.id, MODEL, REQUEST_KEY, b"k" * 32), facts, owner_report=None, user_report=None, now=NOW)
    failed = [check for check in checks if check.verdict is Verdict.FAIL]
    assert (code, whose) in [(check.code, check.whose.value) for check in failed]


def test_a_retired_manifest_that_the_consent_names() -> None:
    facts = replace(
        FACTS,
        model=Model(MODEL, (replace(V1, retired=True), V2)),
        consent=replace(CONSENT, manifest_digest=V1.manifest_digest),
    )
    with pytest.raises(Refused) as caught:
        decided(facts)
    assert caught.value.code == "version-retired"


def test_a_consent_to_one_manifest_gets_that_one() -> None:
    facts = replace(FACTS, consent=replace(CONSENT, manifest_digest=V1.manifest_digest))
    assert decided(facts).version == 1


def test_the_previous_key_for_a_while() -> None:
    previous = PreviousKey(b"p" * 32, 7, int(NOW) + 1)
    facts = replace(FACTS, consent=replace(CONSENT, previous=previous))
    request = replace(REQUEST, key_id=b"p" * 32)
    assert decided(facts, request).key_entry == 7
    with pytest.raises(Refused):
        decided(facts, request, now=NOW + 1)


def test_service_keys_of_the_consents_terms_only() -> None:
    key = ServiceKey(MODEL, None, USER_POLICY.digest, 1, b"s" * 32, 0, int(NOW) + 10, 44)
    consent = replace(CONSENT, mode=SERVICE_KEY, key_commitment=b"")
    request = replace(REQUEST, mode=SERVICE_KEY, key_id=b"s" * 32)
    facts = replace(FACTS, consent=consent, service_keys=(key,))
    assert decided(facts, request).key_entry == 44
    assert decided(facts, request, now=NOW + 129).key_entry == 44  # stale: still opens what was sealed before
    for wrong in (
        replace(key, policy_digest=OWNER_POLICY.digest),
        replace(key, manifest_digest=V1.manifest_digest),
        replace(key, model=ModelId(OWNER.id, "other")),
        replace(key, not_after=int(NOW) - 120),
    ):
        with pytest.raises(Refused) as caught:
            decided(replace(facts, service_keys=(wrong,)), request)
        assert caught.value.code == "key-not-current"


def test_leases_end_with_what_they_rest_on() -> None:
    assert decided(replace(FACTS, grant=replace(GRANT, validity=Validity(0, int(NOW) + 9)))).lease_s == 9
    assert decided(replace(FACTS, consent=replace(CONSENT, validity=Validity(0, int(NOW) + 5)))).lease_s == 5
    short = replace(evidence(), expires_at=NOW + 3)
    release = decided(
        owner_appraisal=appraisal(OWNER_POLICY, verified=short), user_appraisal=appraisal(USER_POLICY, verified=short)
    )
    assert release.lease_s == 3
    with pytest.raises(Refused) as caught:
        decided(replace(FACTS, grant=replace(GRANT, validity=Validity(0, int(NOW) + 1))), now=NOW + 0.5)
    assert caught.value.code == "lease-over"


def test_a_quota_bounds_the_leases_requests() -> None:
    assert decided(replace(FACTS, grant=replace(GRANT, quota=7))).lease_requests == 7
    assert decided(replace(FACTS, grant=replace(GRANT, quota=7000))).lease_requests == 1000


def test_co_tenancy_needs_both() -> None:
    both = simulation_policy(GOOD, co_tenancy=True)
    facts = replace(FACTS, consent=replace(CONSENT, policy_digest=both.digest))
    assert decided(facts, user_policy=both).co_tenancy


@pytest.mark.parametrize("party", ["owner", "user"])
def test_the_appraisal_must_be_under_the_partys_own_policy(party: str) -> None:
    other = simulation_policy(GOOD, isolation=["shared"])
    with pytest.raises(Refused) as caught:
        decided(**{f"{party}_policy": other})
    assert caught.value.code == "policy-other"
    with pytest.raises(Refused) as caught:
        decided(**{f"{party}_appraisal": appraisal(other)})
    assert caught.value.code == "policy-other"


def test_the_appraisals_must_be_of_this_moment_and_of_one_runtime() -> None:
    with pytest.raises(Refused) as caught:
        decided(owner_appraisal=appraisal(OWNER_POLICY), now=NOW + 1)
    assert caught.value.code == "appraisal-stale"
    second = appraise(
        replace(evidence(), claims=replace(evidence().claims, security_version=1)),
        configuration=CONFIGURATION,
        report_data=REPORT,
        policy=USER_POLICY,
        now=NOW,
    )
    with pytest.raises(Refused) as caught:
        decided(user_appraisal=second)
    assert caught.value.code == "appraisal-other-evidence"


def test_releases_are_made_by_the_decision_only() -> None:
    release = decided()
    with pytest.raises(AssertionError):
        replace(release, proof=object())


def all_of(checks: tuple[Check, ...], party: Party) -> list[Check]:
    return [check for check in checks if check.whose is party]


def test_explained_to_each_party() -> None:
    verified = evidence(BAD)

    def report(policy: Policy) -> Any:
        return appraisal_report(verified, configuration=CONFIGURATION, report_data=REPORT, policy=policy, now=NOW)

    facts = replace(FACTS, consent=None)
    checks = explain(
        Asked(USER.id, MODEL), facts, owner_report=report(OWNER_POLICY), user_report=report(USER_POLICY), now=NOW
    )
    for_owner = shown_to(Party.OWNER, checks)
    wrong = next(check for check in for_owner if check.name == "simulated/measurement")
    assert BAD.hex() in wrong.actual
    assert GOOD.hex() in wrong.expected
    assert [check.code for check in all_of(for_owner, Party.USER)] == ["refused-by-user"]
    for_user = shown_to(Party.USER, checks)
    assert [check.code for check in all_of(for_user, Party.OWNER)] == ["refused-by-owner"]
    assert not any(check.expected or check.actual for check in all_of(for_user, Party.OWNER))
    assert "consent-missing" in [check.code for check in for_user]


def test_explained_when_all_is_well() -> None:
    report = appraisal_report(evidence(), configuration=CONFIGURATION, report_data=REPORT, policy=OWNER_POLICY, now=NOW)
    checks = explain(Asked(USER.id, MODEL), FACTS, owner_report=report, user_report=None, now=NOW)
    assert {check.verdict for check in all_of(checks, Party.OWNER)} == {Verdict.PASS}
    assert all_of(checks, Party.USER)[-1].code == "no-runtime-asked"
