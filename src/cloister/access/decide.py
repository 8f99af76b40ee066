"""The decision: two keys to every door (claim S4; spec/protocol.md, clause 7.7).

:func:`decide` takes an :class:`~cloister.attest.types.Appraisal` under each party's policy and returns a
:class:`KeyRelease`, which is constructed nowhere else; what hands out keys takes nothing less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from cloister.access.checks import Asked, Check, Party, chosen_version, examine, key_entry
from cloister.access.records import Facts
from cloister.attest.appraise import AppraisalReport
from cloister.attest.policy import Policy
from cloister.attest.steps import Verdict
from cloister.attest.types import Appraisal
from cloister.base.errors import Refused
from cloister.base.ids import ModelId
from cloister.base.limits import LEASE_REQUESTS, LEASE_S
from cloister.wire.provisioning import ReleaseRequest

_MADE_HERE: Final = object()


@final
@dataclass(frozen=True, slots=True)
class KeyRelease:
    """Both parties' rules were satisfied at ``decided_at``; made by :func:`decide` only.

    :param model_key_entry: log entry beside which the model key arrived; ``key_entry`` that of the other key.
    :param user_key: the user's Ed25519 public key.
    :param owner: appraisal under the owner's policy; ``user_appraisal`` under the user's.
    """

    proof: object
    user: bytes
    model: ModelId
    mode: str
    key_id: bytes
    key_entry: int
    manifest_digest: bytes
    version: int
    model_key_entry: int
    user_key: bytes
    lease_s: int
    lease_requests: int
    co_tenancy: bool
    owner_appraisal: Appraisal
    user_appraisal: Appraisal
    decided_at: float

    def __post_init__(self) -> None:
        """A release that no decision made is a programming error."""
        if self.proof is not _MADE_HERE:
            msg = "a KeyRelease is made by decide() only"
            raise AssertionError(msg)


@dataclass(frozen=True, slots=True)
class LeaseBounds:
    """The KeyService's own bounds on a lease, part of its measured configuration (S5)."""

    seconds: int = LEASE_S
    requests: int = LEASE_REQUESTS


def decide(
    request: ReleaseRequest,
    facts: Facts,
    *,
    owner_policy: Policy,
    owner_appraisal: Appraisal,
    user_policy: Policy,
    user_appraisal: Appraisal,
    now: float,
    bounds: LeaseBounds,
) -> KeyRelease:
    """Release, or say which rule refuses.

    :param owner_appraisal: the runtime's evidence appraised at ``now`` under ``owner_policy``; the user's likewise.
    :param now: the KeyService's time, Unix seconds.
    :raises Refused: the code of the first check that did not pass; ``policy-other``, ``appraisal-stale``,
        ``appraisal-other-evidence``, ``lease-over``.
    """
    asked = Asked(request.user, request.model, request.mode, request.key_id)
    for check in examine(asked, facts, now):
        if check.verdict is not Verdict.PASS:
            raise _refusal(check)
    grant, consent, user, version = facts.grant, facts.consent, facts.user, chosen_version(facts)
    entry = key_entry(facts, request.key_id, now)
    if grant is None or consent is None or user is None or version is None or entry is None:
        msg = "every check passed, so everything is there"
        raise AssertionError(msg)
    _same_policy(Party.OWNER, grant.policy_digest, owner_policy, owner_appraisal, now)
    _same_policy(Party.USER, consent.policy_digest, user_policy, user_appraisal, now)
    if (owner_appraisal.claims, owner_appraisal.configuration) != (user_appraisal.claims, user_appraisal.configuration):
        raise Refused("appraisal-other-evidence", "the two policies were held against different evidence")
    ends = (
        now + bounds.seconds,
        grant.validity.not_after,
        consent.validity.not_after,
        owner_appraisal.expires_at,
        user_appraisal.expires_at,
    )
    lease = int(min(ends) - now)
    if lease < 1:
        raise Refused("lease-over", "grant, consent or evidence ends within a second")
    return KeyRelease(
        proof=_MADE_HERE,
        user=request.user,
        model=request.model,
        mode=request.mode,
        key_id=request.key_id,
        key_entry=entry,
        manifest_digest=version.manifest_digest,
        version=version.version,
        model_key_entry=version.key_entry,
        user_key=user.public_key,
        lease_s=lease,
        lease_requests=min(bounds.requests, grant.quota or bounds.requests),
        co_tenancy=owner_policy.co_tenancy and user_policy.co_tenancy,
        owner_appraisal=owner_appraisal,
        user_appraisal=user_appraisal,
        decided_at=now,
    )


def _same_policy(party: Party, stated: bytes, policy: Policy, appraisal: Appraisal, now: float) -> None:
    if not stated == policy.digest == appraisal.policy_digest:
        raise Refused("policy-other", f"the evidence was appraised under another policy than the {party.value}'s")
    if appraisal.appraised_at != now or appraisal.expires_at < now:
        raise Refused("appraisal-stale", f"the {party.value}'s appraisal is of another moment")


def _refusal(check: Check) -> Refused:
    return Refused(
        check.code,
        f"{check.whose.value}: {check.name} is {check.actual or 'not there'}",
        details={"whose": check.whose.value, "rule": check.name, "expected": check.expected, "actual": check.actual},
    )


def explain(
    asked: Asked,
    facts: Facts,
    *,
    owner_report: AppraisalReport | None,
    user_report: AppraisalReport | None,
    now: float,
) -> tuple[Check, ...]:
    """Every check for both parties, the owner's first; those on the evidence are SKIP where there is no report."""
    facts_checks = examine(asked, facts, now)
    return tuple(
        check
        for party, report in ((Party.OWNER, owner_report), (Party.USER, user_report))
        for check in (*(c for c in facts_checks if c.whose is party), *_appraised(party, report))
    )


def _appraised(party: Party, report: AppraisalReport | None) -> tuple[Check, ...]:
    if report is None:
        return (Check("runtime", party, Verdict.SKIP, "no-runtime-asked"),)
    if report.accepted_by is not None:
        return (Check("runtime", party, Verdict.PASS, "ok", "a rule that accepts", f"rule {report.accepted_by!r}"),)
    return tuple(
        Check(
            f"{finding.rule}/{finding.claim}" if finding.rule else finding.claim,
            party,
            Verdict.FAIL,
            finding.code,
            finding.expected,
            finding.actual,
        )
        for finding in report.failures
    )


def shown_to(party: Party, checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """What one party may see: his own checks whole, the other's as one line that says whether they passed (S10)."""
    own = tuple(check for check in checks if check.whose is party)
    others = [check for check in checks if check.whose is not party]
    other = Party.USER if party is Party.OWNER else Party.OWNER
    verdicts = {check.verdict for check in others}
    verdict = next((v for v in (Verdict.FAIL, Verdict.SKIP) if v in verdicts), Verdict.PASS)
    code = {Verdict.PASS: "ok", Verdict.SKIP: "not-reached", Verdict.FAIL: f"refused-by-{other.value}"}[verdict]
    return (*own, Check(f"{other.value}-rules", other, verdict, code))
