"""Storage in memory, with a disk that can be looked at, changed and made to fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from cloister.base.errors import Unavailable
from cloister.keyservice.storage.port import TABLES, Row, StoreFacts
from cloister.keyservice.storage.sealed import unavailable


@final
class MemoryDisk:
    """What survives a restart: tables of records. Whoever owns the disk may do to it what he likes.

    :ivar fail_before: this many writes from now one fails without having happened; ``None`` for never.
    :ivar fail_after: the same, but it happens and fails to say so.
    """

    def __init__(self) -> None:
        self.tables: dict[str, dict[int, bytes]] = {table: {} for table in TABLES}
        self.locked = False
        self.writes = 0
        self.fail_before: int | None = None
        self.fail_after: int | None = None

    def copy(self) -> MemoryDisk:
        """A snapshot, as an attacker would take it."""
        other = MemoryDisk()
        other.tables = {table: dict(rows) for table, rows in self.tables.items()}
        return other


@final
class MemoryRows:
    """``cloister.keyservice.storage.port.Rows`` on a :class:`MemoryDisk`.

    :raises Unavailable: ``store-locked`` while somebody else has the disk open.
    """

    def __init__(self, disk: MemoryDisk) -> None:
        if disk.locked:
            raise Unavailable("store-locked", "another process has the store open")
        disk.locked = True
        self._disk: MemoryDisk | None = disk

    @property
    def _open(self) -> MemoryDisk:
        if self._disk is None:
            raise unavailable("cannot be used", "it was closed")
        return self._disk

    def scan(self, table: str, first: int | None = None) -> Iterator[tuple[int, bytes]]:
        """All records by index."""
        rows = self._open.tables[table].items()
        yield from sorted(row for row in rows if first is None or row[0] >= first)

    def get(self, table: str, index: int) -> bytes | None:
        """One record."""
        return self._open.tables[table].get(index)

    def write(self, put: Sequence[Row], drop: Sequence[tuple[str, int]]) -> None:
        """All or nothing."""
        disk = self._open
        disk.writes += 1
        if _due(disk, "fail_before"):
            raise unavailable("cannot be written", "fault injected before the write")
        for row in put:
            disk.tables[row.table][row.index] = row.record
        for table, index in drop:
            disk.tables[table].pop(index, None)
        if _due(disk, "fail_after"):
            raise unavailable("cannot be written", "fault injected after the write")

    def reopen(self) -> None:
        """Nothing is buffered."""

    def facts(self) -> StoreFacts:
        """What it is."""
        return StoreFacts("memory", 1, sum(len(row) for rows in self._open.tables.values() for row in rows.values()))

    def close(self) -> None:
        """Let the disk go."""
        if self._disk is not None:
            self._disk.locked = False
            self._disk = None


def _due(disk: MemoryDisk, name: str) -> bool:
    left: int | None = getattr(disk, name)
    if left is None:
        return False
    setattr(disk, name, left - 1 if left else None)
    return left == 0
