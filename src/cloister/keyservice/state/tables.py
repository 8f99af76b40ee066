"""Tables that can take back what was not written durably.

The state is changed before its entries are on disk, so that many entries share one fsync; when the write fails, the
journal restores every table to the last durable entry. No I/O, no locks: one writer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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

    def copied(self) -> dict[K, V]:
        """All rows, in their order, whatever changes later."""
        return self._rows.copy()

    def restore(self, key: K, value: V) -> None:
        """Put a row in without a note: it is durable."""
        self._rows[key] = value

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

    def copied(self) -> list[tuple[K, tuple[V, ...]]]:
        """All sets that are not empty, with their members in their order, whatever changes later."""
        return [(key, tuple(members)) for key, members in self._sets.items() if members]

    def restore(self, key: K, members: Iterable[V]) -> None:
        """Add members without a note: they are durable."""
        self._sets.setdefault(key, {}).update(dict.fromkeys(members))

    def restore_one(self, key: K, member: V) -> None:
        """As :meth:`restore`."""
        self._sets.setdefault(key, {})[member] = None

    def of(self, key: K) -> tuple[V, ...]:
        """The members, for iteration."""
        return tuple(self._sets.get(key, ()))

    def count(self, key: K) -> int:
        """How many members."""
        return len(self._sets.get(key, ()))

    def has(self, key: K, value: V) -> bool:
        """Whether it is a member."""
        return value in self._sets.get(key, ())
