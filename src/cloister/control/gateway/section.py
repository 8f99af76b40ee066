"""Reads one table of a TOML file, with errors that name the setting, and no setting left unread."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from math import isfinite
from typing import Any

from cloister.base.errors import InvalidInput


def malformed(where: str, what: str, *, hint: str | None = None) -> InvalidInput:
    """The one error of a configuration."""
    return InvalidInput("configuration-malformed", f"{where} {what}", hint=hint)


class Section:
    """One table. Each getter raises ``configuration-malformed`` for what it cannot take."""

    def __init__(self, name: str, table: object) -> None:
        if not isinstance(table, dict):
            raise malformed(name, "is not a table")
        self._name = name
        self._table: dict[str, Any] = table
        self._read: set[str] = set()

    @property
    def name(self) -> str:
        """From the top, with dots."""
        return self._name

    def section(self, name: str) -> Section:
        """A table below; empty when it is not there."""
        return Section(self._path(name), self._take(name, {}))

    def names(self) -> list[str]:
        """Of everything in it."""
        return [*self._table]

    def text(self, name: str, *, default: str) -> str:
        """A string."""
        value = self._take(name, default)
        if not isinstance(value, str):
            raise malformed(self._path(name), "is not text")
        return value

    def choice(self, name: str, known: Sequence[str], *, default: str) -> str:
        """One of a few words."""
        value = self.text(name, default=default)
        if value not in known:
            raise malformed(self._path(name), f"is {value!r}", hint=f"Known are: {', '.join(known)}.")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """An array of strings; empty when it is not there."""
        value = self._take(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise malformed(self._path(name), "is not an array of text")
        return tuple(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """true or false."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise malformed(self._path(name), "is neither true nor false")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number within bounds."""
        return self._number(self._take(name, default), self._path(name), low, high)

    def optional(self, name: str, low: float, high: float) -> float | None:
        """A number within bounds, or nothing."""
        value = self._take(name, None)
        return None if value is None else self._number(value, self._path(name), low, high)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number within bounds."""
        value = self._take(name, default)
        if not isinstance(value, int):
            raise malformed(self._path(name), "is not a whole number")
        return int(self._number(value, self._path(name), low, high))

    def numbers(self, name: str, default: tuple[float, ...], low: float, high: float) -> tuple[float, ...]:
        """A nonempty array of numbers."""
        value = self._take(name, list(default))
        if not isinstance(value, list) or not value:
            raise malformed(self._path(name), "is not an array of numbers")
        return tuple(self._number(item, self._path(name), low, high) for item in value)

    def done(self) -> None:
        """Nothing may be left: a misspelt setting is an error, not a default."""
        for name in self._table:
            if name not in self._read:
                close = get_close_matches(name, self._read, 1)
                raise malformed(
                    self._path(name), "is not a setting", hint=f"Did you mean {close[0]!r}?" if close else None
                )

    def _take(self, name: str, default: object) -> Any:
        self._read.add(name)
        return self._table.get(name, default)

    def _path(self, name: str) -> str:
        return f"{self._name}.{name}" if self._name else name

    @staticmethod
    def _number(value: object, where: str, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise malformed(where, "is not a number")
        if not low <= value <= high:
            raise malformed(where, f"is {value:g}; {low:g} to {high:g} are accepted")
        return float(value)
