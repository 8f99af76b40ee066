"""Where a KeyService keeps its records: a SQLite file in its state directory, or a namespace in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.keyservice.storage.port import Rows
from cloister.keyservice.storage.sqlite import SqliteRows

STORE_FILE: Final = "store.sqlite"


@dataclass(frozen=True, slots=True)
class StorePlace:
    """One place, not opened yet.

    :param name: for messages. :param exists: whether a KeyService keeps its records there already.
    :param open: the records, and what a replica that keeps them is counted by (clause 13.17), where that lies with
        them; empty where it is a file beside them.
    """

    name: str
    exists: Callable[[], bool]
    open: Callable[[], tuple[Rows, bytes]]

    def rows(self) -> Rows:
        """The records alone."""
        return self.open()[0]


def store_place(state: Path, url: str | None = None) -> StorePlace:
    """What ``--store`` names; the file in the state directory by default.

    :raises InvalidInput: ``store-url``.
    """
    if url is None:
        path = state / STORE_FILE
        return StorePlace(str(path), path.exists, lambda: (SqliteRows(path), b""))
    from cloister.keyservice.storage.postgres.rows import PostgresRows, exists
    from cloister.keyservice.storage.postgres.url import parse_url

    where = parse_url(url)

    def opened() -> tuple[Rows, bytes]:
        rows = PostgresRows(where)
        return rows, rows.name

    return StorePlace(where.name, lambda: exists(where), opened)
