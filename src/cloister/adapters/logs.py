"""Structured events: one JSON object a line on stderr, with named fields only.

A field that is not in :data:`FIELDS` is dropped and its name is noted, so that no body, key or token reaches a log
because somebody passed it along (S10). Values are short; text is cut.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

from cloister.base.clock import Clock

Value = str | int | float | bool | None

FIELDS: Final = frozenset({
    "action", "address", "attempt", "cause", "code", "count", "custodian", "decision", "duration_ms", "endpoint",
    "engine", "epoch", "error", "family", "hint", "instance", "instances", "isolation", "lease_s", "level", "limit",
    "measurement", "method", "mode", "model", "path", "pid", "platform", "policy", "pool", "port", "queue",
    "reason", "replica", "request_id", "result", "retry_after", "role", "route", "sequence", "service", "simulated",
    "size_class", "stage", "state", "status", "step", "tee", "threads", "user", "version", "where",
})  # fmt: skip
_LEVELS: Final = ("debug", "info", "warning", "error")
_MAX_TEXT: Final = 400


class EventLog(Protocol):
    """Port. Real: :class:`JsonLog`. Fake: ``cloister.testing.logs.MemoryLog``."""

    def event(self, name: str, /, *, level: str = "info", **fields: Value) -> None:
        """Record that ``name`` happened."""


class JsonLog:
    """``EventLog`` that writes to a file descriptor; a line is one write, so threads never mix theirs.

    :param level: the least level that is written.
    :param constant: fields on every line, for example ``service`` and ``simulated``.
    """

    def __init__(self, clock: Clock, *, descriptor: int = 2, level: str = "info", **constant: Value) -> None:
        self._clock = clock
        self._descriptor = descriptor
        self._least = _LEVELS.index(level)
        self._constant = constant

    def event(self, name: str, /, *, level: str = "info", **fields: Value) -> None:
        """Record that ``name`` happened; a full or closed descriptor loses the line, never the service."""
        if _LEVELS.index(level) < self._least:
            return
        import json

        record: dict[str, object] = {"time": round(self._clock.now(), 3), "level": level, "event": name}
        record.update(admit({**self._constant, **fields}))
        line = json.dumps(record, separators=(",", ":"), ensure_ascii=True) + "\n"
        try:
            os.write(self._descriptor, line.encode())
        except OSError:
            return


def admit(fields: dict[str, Value]) -> dict[str, object]:
    """Fields as they may be logged: allowed names, short values; ``dropped`` lists the names of the others."""
    admitted: dict[str, object] = {}
    dropped = []
    for name, value in fields.items():
        if name not in FIELDS or not isinstance(value, str | int | float | bool | None):
            dropped.append(name)
        else:
            admitted[name] = value[:_MAX_TEXT] if isinstance(value, str) else value
    if dropped:
        admitted["dropped"] = sorted(dropped)
    return admitted
