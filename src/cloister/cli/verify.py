"""Verify evidence of a TEE and appraise it under a policy: one line a step.

Exit status: 0 accepted, 1 refused, 2 unusable arguments. A step that was skipped never counts as passed: it was left
out by name in the policy, not asked for, or not reached. Without --report-data nothing shows that the evidence is
fresh, or made for you.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cloister.attest.appraise import AppraisalReport, appraisal_report
from cloister.attest.policy import Policy
from cloister.attest.policy_toml import MAX_POLICY_TEXT, parse_policy
from cloister.attest.policy_words import warnings
from cloister.attest.steps import Step, Steps, Verdict
from cloister.attest.types import VerifiedEvidence
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput
from cloister.cli.evidence import Presented, add_evidence_arguments, claims_json, from_hex, read_presented
from cloister.cli.files import read_text
from cloister.cli.output import Output, show_error


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``cloister verify``."""
    add_evidence_arguments(parser)
    parser.add_argument("--policy", required=True, type=Path, metavar="FILE", help="see docs/reference/policy.md")
    parser.add_argument("--report-data", metavar="HEX", help="what the evidence must be bound to: 64 bytes")


def run(args: argparse.Namespace, out: Output) -> int:
    """Verify and appraise."""
    try:
        presented = read_presented(args)
        policy = parse_policy(read_text(args.policy, limit=MAX_POLICY_TEXT, what="policy"))
        expected = None if args.report_data is None else _report_data(args)
    except InvalidInput as error:
        show_error(error, as_json=out.as_json)
        return 2
    recorder = Steps()
    try:
        verified = verify(presented.evidence, presented.collateral, presented.anchors, presented.now, recorder)
    except CloisterError as error:
        steps = (*_verification(recorder, error), *_not_reached(policy))
        return _show(out, presented, policy, steps=steps, verified=None, report=None)
    report = appraisal_report(
        verified,
        configuration=presented.configuration,
        report_data=expected,
        policy=policy,
        now=presented.now,
    )
    steps = (*recorder.report, *_appraisal(report))
    return _show(out, presented, policy, steps=steps, verified=verified, report=report)


def _report_data(args: argparse.Namespace) -> bytes:
    data = from_hex(args.report_data, "--report-data")
    if args.tee == "nitro" and 0 < len(data) <= 1024:
        return data
    if len(data) != 64:
        raise InvalidInput("argument", f"--report-data has {len(data)} bytes; 64 are bound into evidence")
    return data


def _verification(recorder: Steps, error: CloisterError) -> tuple[Step, ...]:
    """The steps, with the failure among them even where it came before or after the verifier's own."""
    steps = recorder.report
    if any(step.verdict is Verdict.FAIL for step in steps):
        return steps
    return (*steps, Step("verify", Verdict.FAIL, error.code, error.message, "attestation.md 2"))


def _not_reached(policy: Policy) -> tuple[Step, ...]:
    return tuple(
        Step(f"{rule.name}/*", Verdict.SKIP, "not-reached", "the evidence did not verify", "attestation.md 9")
        for rule in policy.rules
    )


def _appraisal(report: AppraisalReport) -> tuple[Step, ...]:
    """If a rule accepted, its checks; otherwise those of every rule."""
    rules = [entry for entry in report.rules if report.accepted_by in (None, entry.rule)]
    steps = [finding.step for finding in (*report.common, *(item for rule in rules for item in rule.findings))]
    if not report.rules:
        steps += [finding.step for finding in report.failures if finding.claim == "rules"]
    return tuple(steps)


def _show(
    out: Output,
    presented: Presented,
    policy: Policy,
    *,
    steps: tuple[Step, ...],
    verified: VerifiedEvidence | None,
    report: AppraisalReport | None,
) -> int:
    accepted = report.accepted_by if report else None
    verdict = "refused" if accepted is None else "accepted"
    out.result(
        {
            "verdict": verdict,
            "tee": presented.evidence.tee.value,
            "claims": {} if verified is None else claims_json(verified.claims),
            "steps": [
                {"step": step.name, "verdict": step.verdict.value, "code": step.code, "detail": step.detail}
                for step in steps
            ],
        },
        "\n".join(_line(step) for step in steps),
    )
    for rule in policy.rules:
        if rule.name == accepted:
            for text in warnings(rule):
                out.line(f"warning: {text}")
    if accepted is not None:
        if any(step.code == "not-requested" for step in steps):
            out.line("warning: without --report-data nothing shows that the evidence is fresh, or made for you")
        out.line(f"accepted: {presented.evidence.tee}, by rule {accepted}")
        return 0
    first = report.failures[0].step if report else next(step for step in steps if step.verdict is Verdict.FAIL)
    out.line(f"refused: {presented.evidence.tee}, {first.name}: {first.detail} [{first.code}]")
    return 1


def _line(step: Step) -> str:
    code = f"{step.code}, {step.clause}"
    detail = "".join(character if character.isprintable() else "?" for character in step.detail)
    return f"{step.verdict.value}  {step.name:<32} {code}" + (f": {detail}" if detail else "")
