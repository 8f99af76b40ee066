"""A log that remembers."""

from __future__ import annotations

from cloister.adapters.logs import Value, admit


class MemoryLog:
    """``cloister.adapters.logs.EventLog`` for tests: ``events`` holds (name, level, admitted fields)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, object]]] = []

    def event(self, name: str, /, *, level: str = "info", **fields: Value) -> None:
        """Remember that ``name`` happened."""
        self.events.append((name, level, admit(fields)))
