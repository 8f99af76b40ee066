"""The steps of a verification, recorded as they happen: PASS, FAIL or SKIP, each with a code and a clause.

A verifier declares its steps in order and runs each inside ``with steps.step(name)``. The first exception fails that
step and propagates; steps never reached are SKIP, and a skip never counts as a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from cloister.base.errors import CloisterError


class Verdict(StrEnum):
    """Of one step."""

    PASS = "PASS"  # noqa: S105  # a verdict
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a verification report.

    :param code: the stable error code of a failure; ``ok`` if passed; ``not-reached`` or the reason if skipped.
    :param clause: where the specification demands it, for example ``attestation.md 5.3``.
    """

    name: str
    verdict: Verdict
    code: str
    detail: str
    clause: str


class Steps:
    """Recorder for one verification. ``plan`` holds (name, clause) in order; a step not in the plan is a bug."""

    def __init__(self, plan: Sequence[tuple[str, str]] = ()) -> None:
        self._plan: list[tuple[str, str]] = []
        self._done: dict[str, Step] = {}
        self.extend(plan)

    def extend(self, plan: Sequence[tuple[str, str]]) -> None:
        """Add the steps of a verifier to the plan."""
        self._plan.extend(entry for entry in plan if entry not in self._plan)

    @contextmanager
    def step(self, name: str, detail: str = "") -> Iterator[None]:
        """Run one planned step."""
        clause = dict(self._plan)[name]
        try:
            yield
        except CloisterError as error:
            self._done[name] = Step(name, Verdict.FAIL, error.code, error.message, clause)
            raise
        self._done[name] = Step(name, Verdict.PASS, "ok", detail, clause)

    def skip(self, name: str, code: str, detail: str) -> None:
        """Say that a planned step could not be made and why; its absence stands in the claims, for the policy."""
        clause = dict(self._plan)[name]
        self._done[name] = Step(name, Verdict.SKIP, code, detail, clause)

    @property
    def report(self) -> tuple[Step, ...]:
        """All planned steps in order; what was not reached is SKIP."""
        return tuple(
            self._done.get(name, Step(name, Verdict.SKIP, "not-reached", "an earlier step failed", clause))
            for name, clause in self._plan
        )
