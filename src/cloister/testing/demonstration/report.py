"""What the demonstration found, line by line; a line that does not hold makes the whole fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cloister.base.errors import CloisterError


@dataclass(frozen=True, slots=True)
class Line:
    """One claim that was tried.

    :param holds: whether what happened is what must happen.
    :param code: the stable code of the refusal, where one was expected.
    """

    section: str
    claim: str
    holds: bool
    found: str
    code: str = ""


@dataclass(slots=True)
class Latency:
    """How long requests to one model took, in milliseconds, by path; stages as the runtime measured them."""

    model: str
    cold_ms: float
    warm_ms: float
    hot_ms: float
    raw_ms: float
    stages: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """Everything found so far; ``say`` is told of each line as it is found."""

    say: Callable[[Line], None] = lambda _line: None
    lines: list[Line] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, section: str, claim: str, *, holds: bool, found: str, code: str = "") -> None:
        """Note one line."""
        line = Line(section, claim, holds, found, code)
        self.lines.append(line)
        self.say(line)

    def refused(self, claim: str, expected: set[str], attempt: Callable[[], object]) -> None:
        """Something that must be refused with one of these codes."""
        try:
            attempt()
        except CloisterError as error:
            self.add("refusals", claim, holds=error.code in expected, found=error.message, code=error.code)
        else:
            self.add("refusals", claim, holds=False, found="it was not refused")

    @property
    def holds(self) -> bool:
        """Whether every line holds, and there is one."""
        return bool(self.lines) and all(line.holds for line in self.lines)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "holds": self.holds,
            "facts": self.facts,
            "latency": [
                {
                    "model": item.model,
                    "cold_ms": item.cold_ms,
                    "warm_ms": item.warm_ms,
                    "hot_ms": item.hot_ms,
                    "raw_engine_ms": item.raw_ms,
                    "stages_ms": item.stages,
                }
                for item in self.latencies
            ],
            "lines": [
                {"section": x.section, "claim": x.claim, "holds": x.holds, "code": x.code, "found": x.found}
                for x in self.lines
            ],
        }
