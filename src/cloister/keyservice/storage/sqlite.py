"""``Rows`` in one SQLite file: write-ahead log, ``synchronous=FULL``, one process at a time.

A transaction that was cut short by a crash is not there after it: SQLite's write-ahead log is checksummed by frame.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, final

from cloister.base.errors import CloisterError, Tampered, Unavailable
from cloister.keyservice.storage.migrations import NEWEST, Dialect, pending
from cloister.keyservice.storage.port import TABLES, Row, StoreFacts
from cloister.keyservice.storage.sealed import unavailable

_DIALECT: Final = Dialect(integer="INTEGER", blob="BLOB", strict=" STRICT")
# SQLITE_ERROR is what a missing table or column gives: our statements are fixed, so the file is not ours any more
_CORRUPT: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_MISMATCH", "SQLITE_ERROR")


@final
class SqliteRows:
    """Records in ``path``; ``path`` with ``.lock`` after it is held while it is open.

    :raises Unavailable: ``store-locked`` while another process has it; ``store-unavailable``.
    :raises Refused: ``store-newer``: a newer Cloister wrote it.
    :raises Tampered: ``store-corrupt`` when the file is no database, or its schema is not ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = _lock(path.with_name(path.name + ".lock"))
        self._connection: sqlite3.Connection | None = None
        try:
            self._connection = self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=0)
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # ours alone, and no shared-memory file
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # an fsync at every commit
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
            self._migrate(connection)
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            raise _translate("cannot be opened", error) from error
        except CloisterError:
            if connection is not None:
                connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        steps = pending(connection.execute("PRAGMA user_version").fetchone()[0])
        if not steps:
            return
        connection.execute("BEGIN IMMEDIATE")  # closing the connection, or a crash, takes all of it back
        for step in steps:
            for statement in step.sql(_DIALECT):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {step.version}")
        connection.execute("COMMIT")

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def scan(self, table: str, first: int | None = None) -> Iterator[tuple[int, bytes]]:
        """All records by index; see the port."""
        least = -(2**63) if first is None else first
        try:
            query = f"SELECT idx, record FROM {_known(table)} WHERE idx >= ? ORDER BY idx"  # noqa: S608
            rows = self._open.execute(query, (least,))
            while (row := rows.fetchone()) is not None:
                yield int(row[0]), _blob(row[1])
        except sqlite3.Error as error:
            raise _translate("cannot be read", error) from error

    def get(self, table: str, index: int) -> bytes | None:
        """One record; see the port."""
        try:
            query = f"SELECT record FROM {_known(table)} WHERE idx = ?"  # noqa: S608  # a constant of TABLES
            row = self._open.execute(query, (index,)).fetchone()
        except sqlite3.Error as error:
            raise _translate("cannot be read", error) from error
        return _blob(row[0]) if row is not None else None

    def write(self, put: Sequence[Row], drop: Sequence[tuple[str, int]]) -> None:
        """One transaction; see the port."""
        connection = self._open
        try:
            connection.execute("BEGIN IMMEDIATE")
            for row in put:
                statement = f"INSERT OR REPLACE INTO {_known(row.table)} (idx, record) VALUES (?, ?)"  # noqa: S608
                connection.execute(statement, (row.index, row.record))
            for table, index in drop:
                connection.execute(f"DELETE FROM {_known(table)} WHERE idx = ?", (index,))  # noqa: S608
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise _translate("cannot be written", error) from error

    def reopen(self) -> None:
        """Start again from what the disk holds; see the port."""
        self._disconnect()
        self._connection = self._connect()

    def facts(self) -> StoreFacts:
        """File and write-ahead log; see the port."""
        try:
            files = [self._path, self._path.with_name(self._path.name + "-wal")]
            size = sum(file.stat().st_size for file in files if file.exists())
        except OSError:
            return StoreFacts("sqlite", NEWEST)
        return StoreFacts("sqlite", NEWEST, size)

    def close(self) -> None:
        """Close the file and let the lock go."""
        self._disconnect()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # a transaction that cannot be rolled back is rolled back by whoever opens the file next
            finally:
                connection.close()


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keep everybody from opening ``path`` meanwhile; raises as :class:`SqliteRows`."""
    descriptor = _lock(path.with_name(path.name + ".lock"))
    try:
        yield
    finally:
        os.close(descriptor)


def _blob(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise Tampered("store-corrupt", "the store's file holds a record that is none")
    return value


def _known(table: str) -> str:
    if table not in TABLES:
        msg = f"there is no table {table!r}"
        raise AssertionError(msg)
    return table


def _lock(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unavailable("cannot be opened", error.strerror or "unknown cause") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise Unavailable(
            "store-locked",
            f"another process has the store {path.name.removesuffix('.lock')!r} open",
            hint="One KeyService at a time uses a state directory; stop the other one.",
        ) from error
    return descriptor


def _translate(what: str, error: sqlite3.Error) -> CloisterError:
    name: str = getattr(error, "sqlite_errorname", None) or type(error).__name__
    if name.startswith(_CORRUPT):
        return Tampered("store-corrupt", f"the store's file is no sound database ({name})")
    return unavailable(what, name)
