"""What ``cloister verify`` prints: one line a step, warnings, the verdict; one object with ``--json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloister.attest.appraise import AppraisalReport
from cloister.attest.policy import Policy
from cloister.attest.policy_words import warnings
from cloister.attest.steps import Step, Steps, Verdict
from cloister.attest.types import VerifiedEvidence
from cloister.base.errors import CloisterError
from cloister.cli.evidence import claims_json
from cloister.cli.output import Output

ACCEPTED: Final = 0
REFUSED: Final = 1
UNUSABLE: Final = 2


@dataclass(slots=True)
class Findings:
    """What was found, step by step.

    :param tee: by name. :param more: further fields of the JSON object.
    """

    tee: str
    steps: list[Step] = field(default_factory=list)
    verified: VerifiedEvidence | None = None
    rules: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    more: dict[str, object] = field(default_factory=dict)

    def verification(self, recorder: Steps, error: CloisterError | None = None) -> None:
        """The verifier's steps, with the failure among them even where it came before or after its own."""
        self.steps += recorder.report
        if error is not None and not any(step.verdict is Verdict.FAIL for step in recorder.report):
            self.steps.append(failed("verify", error, "attestation.md 2"))

    def not_reached(self, policy: Policy) -> None:
        """The policy's rules, when the evidence did not verify."""
        for rule in policy.rules:
            detail = "the evidence did not verify"
            self.steps.append(Step(f"{rule.name}/*", Verdict.SKIP, "not-reached", detail, "attestation.md 9"))

    def appraisal(self, report: AppraisalReport, policy: Policy) -> None:
        """If a rule accepted, its checks; otherwise those of every rule, and of the nearest the first failure."""
        rules = [entry for entry in report.rules if report.accepted_by in (None, entry.rule)]
        found = [*report.common, *(item for entry in rules for item in entry.findings)]
        self.steps += [finding.step for finding in found]
        if report.accepted_by is None:
            first = report.failures[0].step
            if not report.rules:
                self.steps.append(first)
            self.more.setdefault("nearest", first.name)
            return
        self.rules.append(report.accepted_by)
        self.warnings += [text for rule in policy.rules if rule.name == report.accepted_by for text in warnings(rule)]

    @property
    def accepted(self) -> bool:
        """No step failed, and some rule accepted."""
        return bool(self.rules) and not any(step.verdict is Verdict.FAIL for step in self.steps)

    def show(self, out: Output) -> int:
        """Print it; returns the exit status."""
        nearest = self.more.pop("nearest", None)
        out.result(
            {
                "verdict": "accepted" if self.accepted else "refused",
                "tee": self.tee,
                "claims": {} if self.verified is None else claims_json(self.verified.claims),
                "steps": [
                    {"step": step.name, "verdict": step.verdict.value, "code": step.code, "detail": step.detail}
                    for step in self.steps
                ],
                **self.more,
            },
            "\n".join(_line(step) for step in self.steps),
        )
        for text in self.warnings:
            out.line(f"warning: {text}")
        if self.accepted:
            out.line(f"accepted: {self.tee}, by rule {' and '.join(self.rules)}")
            return ACCEPTED
        failures = [step for step in self.steps if step.verdict is Verdict.FAIL]
        first = next((step for step in failures if step.name == nearest), failures[0])
        out.line(f"refused: {self.tee}, {first.name}: {_plain(first.detail)} [{first.code}]")
        return REFUSED


def failed(name: str, error: CloisterError, clause: str) -> Step:
    """A step that raised."""
    return Step(name, Verdict.FAIL, error.code, error.message, clause)


def passed(name: str, detail: str, clause: str) -> Step:
    """A step that passed."""
    return Step(name, Verdict.PASS, "ok", detail, clause)


def configuration_json(values: Mapping[str, object]) -> dict[str, object]:
    """A configuration's values: bytes as hexadecimal text."""
    return {
        name: value.hex() if isinstance(value, bytes) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def _line(step: Step) -> str:
    detail = _plain(step.detail)
    return f"{step.verdict.value}  {step.name:<32} {step.code}, {step.clause}" + (f": {detail}" if detail else "")


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
