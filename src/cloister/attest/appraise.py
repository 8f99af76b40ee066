"""Compare verified claims with a policy (spec/attestation.md, section 9).

:func:`appraise` returns an :class:`~cloister.attest.types.Appraisal` or raises; :func:`appraisal_report` runs every
check of every rule and says how each came out, for dry runs and explained denial. Both run the same checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cloister.attest import claim_names
from cloister.attest.policy import Policy, Rule
from cloister.attest.policy_fields import FIELDS
from cloister.attest.policy_kinds import LeftOut, Outcome, Subject, show
from cloister.attest.policy_words import warnings
from cloister.attest.steps import Step, Verdict
from cloister.attest.types import PROOF_OF_APPRAISAL, Appraisal, Configuration, TeeType, VerifiedEvidence
from cloister.base.errors import InvalidInput, Refused
from cloister.crypto.digest import same

REPORT_DATA_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class Finding:
    """One check, done or left out.

    :param rule: which rule's; empty for the checks that hold under every policy.
    :param claim: the field of the rule, or what was checked.
    :param code: the stable code of its failure; ``left-out`` or ``not-requested`` for what was skipped.
    """

    rule: str
    claim: str
    code: str
    verdict: Verdict
    expected: str
    actual: str
    clause: str

    @property
    def step(self) -> Step:
        """As one line of a report."""
        name = f"{self.rule}/{self.claim}" if self.rule else self.claim
        match self.verdict:
            case Verdict.PASS:
                return Step(name, self.verdict, "ok", self.actual, self.clause)
            case Verdict.SKIP:
                return Step(name, self.verdict, self.code, self.expected, self.clause)
            case Verdict.FAIL:
                return Step(name, self.verdict, self.code, f"is {self.actual}, expected {self.expected}", self.clause)

    def refusal(self) -> Refused:
        """The error of this failure, with both values for whoever set the rule (clause 9.5)."""
        where = f"rule {self.rule!r}" if self.rule else "every policy"
        return Refused(
            self.code,
            f"{self.claim} is {self.actual}; {where} expects {self.expected}",
            details={"claim": self.claim, "rule": self.rule, "expected": self.expected, "actual": self.actual},
        )


@dataclass(frozen=True, slots=True)
class RuleReport:
    """Every check of one rule, in the order of the schema."""

    rule: str
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The checks that failed."""
        return tuple(finding for finding in self.findings if finding.verdict is Verdict.FAIL)


@dataclass(frozen=True, slots=True)
class AppraisalReport:
    """How verified evidence stands to a policy.

    :param common: the checks that hold under every policy.
    :param rules: each rule of the policy, in its order.
    """

    common: tuple[Finding, ...]
    rules: tuple[RuleReport, ...]

    @property
    def accepted_by(self) -> str | None:
        """The first rule that accepts, if the common checks passed too."""
        if any(finding.verdict is Verdict.FAIL for finding in self.common):
            return None
        return next((report.rule for report in self.rules if not report.failures), None)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """Why it was refused: the common failures, then those of the rule that came nearest; empty if accepted."""
        if self.accepted_by is not None:
            return ()
        common = tuple(finding for finding in self.common if finding.verdict is Verdict.FAIL)
        # A rule for another TEE fails one check only, and is no near miss.
        nearest = min(self.rules, key=lambda report: (_other_tee(report), len(report.failures)), default=None)
        if nearest is None:
            return (*common, _finding("", "rules", "policy-empty", Outcome(False, "a rule", "none"), "7.1"))
        return (*common, *nearest.failures)

    @property
    def steps(self) -> tuple[Step, ...]:
        """Everything, one line a check."""
        findings = [*self.common, *(finding for report in self.rules for finding in report.findings)]
        return tuple(finding.step for finding in findings)


def _other_tee(report: RuleReport) -> bool:
    return any(finding.claim == "tee" for finding in report.failures)


def _finding(rule: str, claim: str, code: str, outcome: Outcome, clause: str) -> Finding:
    verdict = Verdict.PASS if outcome.passed else Verdict.FAIL
    return Finding(rule, claim, code, verdict, outcome.expected, outcome.actual, f"attestation.md {clause}")


def appraise(
    verified: VerifiedEvidence,
    *,
    configuration: Configuration,
    report_data: bytes,
    policy: Policy,
    now: float,
) -> Appraisal:
    """Accept or refuse.

    :param configuration: of the service; its digest must be part of ``report_data`` (the caller computes both).
    :param report_data: what the evidence must be bound to: 64 bytes.
    :param now: Unix seconds.
    :raises InvalidInput: ``report-data-length``: an expectation that could match nothing, or anything.
    :raises Refused: with the code of the first check that failed, and ``details`` claim, rule, expected, actual; of
        several rules the one that came nearest is named.
    """
    _check_expected(report_data, verified.claims.tee)
    report = _report(verified, configuration, report_data, policy, now)
    failures = report.failures
    accepted = report.accepted_by
    if failures or accepted is None:
        raise failures[0].refusal()
    rule = next(rule for rule in policy.rules if rule.name == accepted)
    return Appraisal(
        claims=verified.claims,
        configuration=configuration,
        policy_digest=policy.digest,
        rule=accepted,
        appraised_at=now,
        expires_at=verified.expires_at,
        warnings=tuple(warnings(rule)),
        proof=PROOF_OF_APPRAISAL,
    )


def appraisal_report(
    verified: VerifiedEvidence,
    *,
    configuration: Configuration | None,
    report_data: bytes | None,
    policy: Policy,
    now: float,
) -> AppraisalReport:
    """Run every check and say how each came out; gives nothing that a key is released for.

    :param configuration: without one, every check that needs it fails.
    :param report_data: without it that check is reported as skipped.
    :raises InvalidInput: ``report-data-length``.
    """
    if report_data is not None:
        _check_expected(report_data, verified.claims.tee)
    return _report(verified, configuration, report_data, policy, now)


def _check_expected(report_data: bytes, tee: TeeType) -> None:
    """An empty expectation would match a document without user data (NEGATIVE: empty nonce)."""
    good = 0 < len(report_data) <= 1024 if tee is TeeType.NITRO else len(report_data) == REPORT_DATA_LENGTH
    if not good:
        raise InvalidInput(
            "report-data-length", f"report data has {REPORT_DATA_LENGTH} bytes, the expected one {len(report_data)}"
        )


def _report(
    verified: VerifiedEvidence,
    configuration: Configuration | None,
    report_data: bytes | None,
    policy: Policy,
    now: float,
) -> AppraisalReport:
    common = tuple(_common(verified, configuration, report_data, now))
    rules = tuple(RuleReport(rule.name, tuple(_rule(rule, verified, configuration, now))) for rule in policy.rules)
    return AppraisalReport(common, rules)


def _common(
    verified: VerifiedEvidence, configuration: Configuration | None, report_data: bytes | None, now: float
) -> Iterator[Finding]:
    claims = verified.claims
    inside = verified.verified_at <= now <= verified.expires_at
    window = f"within {verified.verified_at:.0f}..{verified.expires_at:.0f}"
    yield _finding("", "expiry", "evidence-expired", Outcome(inside, window, f"{now:.0f}"), "9.1")
    count = len(verified.parts)
    yield _finding("", "parts", "evidence-parts-unexpected", Outcome(count == 0, "none", str(count)), "2.10")
    if report_data is None:
        yield Finding(
            "", "report-data", "not-requested", Verdict.SKIP, "no value to compare with", "", "attestation.md 9.3"
        )
    else:
        equal = Outcome(same(claims.report_data, report_data), show(report_data), show(claims.report_data))
        yield _finding("", "report-data", "report-data-mismatch", equal, "9.3")
    attested = claims.specific.get(claim_names.SIMULATION_CONFIGURATION)
    if claims.tee is TeeType.SIMULATION and configuration is not None:
        equal = Outcome(attested == configuration.digest, show(configuration.digest), show(attested))
        yield _finding("", "configuration-digest", "configuration-mismatch", equal, "9.4")


def _rule(rule: Rule, verified: VerifiedEvidence, configuration: Configuration | None, now: float) -> Iterator[Finding]:
    tee = verified.claims.tee
    yield _finding(rule.name, "tee", "tee-not-allowed", Outcome(tee is rule.tee, rule.tee.value, tee.value), "7.1")
    if tee is not rule.tee:
        return
    subject = Subject(verified.claims, configuration, now, rule.values.keys())
    for field in FIELDS[rule.tee]:
        value = rule.values.get(field.name)
        if value is None:
            continue
        if isinstance(value, LeftOut):
            yield Finding(rule.name, field.name, "left-out", Verdict.SKIP, value.name, "", "attestation.md 7.2")
        else:
            clause = "7.6" if field.name == "insecure_debug" else "9.2"
            yield _finding(rule.name, field.name, field.code, field.kind.check(value, field, subject), clause)
