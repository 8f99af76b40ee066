"""Tables that can take back what was not written durably.

The state is changed before its entries are on disk, so that many entries share one fsync; when the write fails, the
journal restores every table to the last durable entry. No I/O, no locks: one writer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Journal:
    """What must be undone, newest last."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def note(self, undo: Callable[[], None]) -> None:
        """Remember how to take back one change."""
        self._undo.append(undo)

    def keep(self) -> None:
        """Everything so far is durable."""
        self._undo.clear()

    def mark(self) -> int:
        """A point to go back to."""
        return len(self._undo)

    def rollback(self, mark: int = 0) -> None:
        """Take back everything since ``mark``."""
        while len(self._undo) > mark:
            self._undo.pop()()


class Table(Generic[K, V]):
    """A dictionary under a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._rows: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """The row, if there is one."""
        return self._rows.get(key)

    def put(self, key: K, value: V) -> None:
        """Insert or replace."""
        rows = self._rows
        if key in rows:
            old = rows[key]
            self._journal.note(lambda: rows.__setitem__(key, old))
        else:
            self._journal.note(lambda: rows.__delitem__(key))
        rows[key] = value

    def drop(self, key: K) -> None:
        """Remove; a key that is not there is none already."""
        rows = self._rows
        if key in rows:
            old = rows.pop(key)
            self._journal.note(lambda: rows.__setitem__(key, old))

    def items(self) -> Iterator[tuple[K, V]]:
        """All rows."""
        return iter(self._rows.items())

    def __contains__(self, key: K) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)


class Index(Generic[K, V]):
    """Key to a set of values, under a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._sets: dict[K, dict[V, None]] = {}

    def add(self, key: K, value: V) -> None:
        """Add one; again is nothing."""
        members = self._sets.setdefault(key, {})
        if value not in members:
            members[value] = None
            self._journal.note(lambda: members.pop(value, None))

    def discard(self, key: K, value: V) -> None:
        """Remove one; a value that is not there is none already."""
        members = self._sets.get(key)
        if members is not None and value in members:
            del members[value]
            self._journal.note(lambda: members.__setitem__(value, None))

    def of(self, key: K) -> tuple[V, ...]:
        """The members, for iteration."""
        return tuple(self._sets.get(key, ()))

    def count(self, key: K) -> int:
        """How many members."""
        return len(self._sets.get(key, ()))

    def has(self, key: K, value: V) -> bool:
        """Whether it is a member."""
        return value in self._sets.get(key, ())


class Numbers(Generic[K]):
    """Key to an ascending list of integers, under a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lists: dict[K, list[int]] = {}

    def append(self, key: K, number: int) -> None:
        """Add a number above all earlier ones."""
        numbers = self._lists.setdefault(key, [])
        numbers.append(number)
        self._journal.note(lambda: numbers.__delitem__(-1))

    def newest(self, key: K, limit: int) -> list[int]:
        """The last ``limit`` numbers, ascending."""
        return self._lists.get(key, [])[-limit:]

    def after(self, key: K, least: int, limit: int) -> list[int]:
        """At most ``limit`` numbers from ``least`` on."""
        from bisect import bisect_left

        numbers = self._lists.get(key, [])
        start = bisect_left(numbers, least)
        return numbers[start : start + limit]
