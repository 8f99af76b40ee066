"""Stores that older versions wrote are brought to the newest schema, whole or not at all; newer ones are left alone."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.base.errors import CloisterError, Refused, Tampered
from cloister.base.secret import SecretBytes
from cloister.keyservice.storage.migrations import MIGRATIONS, NEWEST, Dialect, pending
from cloister.keyservice.storage.port import BLOCKS, ENTRIES, HEAD, SECRETS, SNAPSHOTS, TABLES, NewEntry, Row
from cloister.keyservice.storage.sealed import SealedStore
from cloister.keyservice.storage.sqlite import SqliteRows
from cloister.testing.rows import MemoryDisk, MemoryRows

KEY, ID = SecretBytes(b"k" * 32), b"i" * 32

# What version 1 did, as it stood there.
VERSION_1 = """
CREATE TABLE entries (idx INTEGER PRIMARY KEY, record BLOB NOT NULL) STRICT;
CREATE TABLE secrets (idx INTEGER PRIMARY KEY, record BLOB NOT NULL) STRICT;
CREATE TABLE head (idx INTEGER PRIMARY KEY, record BLOB NOT NULL) STRICT;
PRAGMA user_version = 1;
"""


def version_1(path: Path) -> None:
    """A store of two entries and a secret, as version 1 left it."""
    disk = MemoryDisk()
    store = SealedStore(MemoryRows(disk), KEY, ID)
    assert list(store.load()) == []
    store.append([NewEntry(b"one", SecretBytes(b"1" * 32)), NewEntry(b"two")])
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(VERSION_1)
    with connection:
        for table in (ENTRIES, SECRETS, HEAD):
            connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", disk.tables[table].items())
    connection.close()


def content(path: Path) -> tuple[int, dict[str, list[tuple[int, bytes]]]]:
    """Schema version, and what is in each table."""
    connection = sqlite3.connect(path)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return version, {name: list(connection.execute(f"SELECT idx, record FROM {name}")) for name in names}
    finally:
        connection.close()


def check_it_serves(path: Path) -> None:
    rows = SqliteRows(path)
    store = SealedStore(rows, KEY, ID)
    try:
        assert list(store.load()) == [b"one", b"two"]
        assert dict(store.secrets()) == {0: SecretBytes(b"1" * 32)}
        store.append([NewEntry(b"three")])
        assert rows.get(BLOCKS, 0) is None
        rows.write([Row(BLOCKS, 0, b"block"), Row(SNAPSHOTS, 7, b"snapshot")], [])
        assert [list(rows.scan(table)) for table in (BLOCKS, SNAPSHOTS)] == [[(0, b"block")], [(7, b"snapshot")]]
    finally:
        store.close()


def test_the_steps_are_in_order_and_make_every_table() -> None:
    assert [step.version for step in MIGRATIONS] == list(range(1, NEWEST + 1))
    sql = " ".join(text for step in MIGRATIONS for text in step.sql(Dialect("BIGINT", "BYTEA", inside='"a".')))
    assert "{" not in sql
    for table in TABLES:
        assert f'CREATE TABLE "a".{table} (idx BIGINT PRIMARY KEY, record BYTEA NOT NULL)' in sql


def test_only_what_is_missing_is_done() -> None:
    assert pending(0) == MIGRATIONS
    assert pending(1) == MIGRATIONS[1:]
    assert pending(NEWEST) == ()


def test_a_store_of_version_1_is_brought_to_the_newest_and_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    version_1(path)
    before = content(path)[1]
    SqliteRows(path).close()
    version, after = content(path)
    assert version == NEWEST
    assert after == {**before, BLOCKS: [], SNAPSHOTS: []}
    check_it_serves(path)


DYING = """
import os, sqlite3, sys
from pathlib import Path
left = int(sys.argv[2])

class Dying(sqlite3.Connection):
    def execute(self, *args):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return super().execute(*args)

connect = sqlite3.connect
sqlite3.connect = lambda *args, **more: connect(*args, factory=Dying, **more)
from cloister.keyservice.storage.sqlite import SqliteRows
SqliteRows(Path(sys.argv[1])).close()
"""


def test_a_crash_at_any_statement_leaves_the_old_schema_or_the_new_one(tmp_path: Path) -> None:
    found = []
    for number in range(100):
        path = tmp_path / f"{number}.sqlite"
        version_1(path)
        before = content(path)
        status = subprocess.run([sys.executable, "-c", DYING, str(path), str(number)], check=False).returncode
        assert status in (0, 9)
        after = content(path)
        found.append(after[0])
        assert after == before or after == (NEWEST, {**before[1], BLOCKS: [], SNAPSHOTS: []})
        check_it_serves(path)
        if status == 0:
            break
    assert found[0] == 1
    assert found[-1] == NEWEST
    assert found.count(1) > 6, "it should have died between the statements of the migration too"


@pytest.mark.parametrize("version", [NEWEST + 1, 1_000_000])
def test_a_store_of_a_newer_version_is_refused_and_not_touched(tmp_path: Path, version: int) -> None:
    path = tmp_path / "store.sqlite"
    version_1(path)
    SqliteRows(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(Refused) as caught:
        SqliteRows(path)
    assert caught.value.code == "store-newer"
    assert f"version {version}" in caught.value.message
    assert f"versions 1 to {NEWEST}" in caught.value.message
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [0, 1, -1])
def test_whoever_turns_the_number_back_makes_nothing_anew(tmp_path: Path, version: int) -> None:
    """Else an emptied table could come of it."""
    path = tmp_path / "store.sqlite"
    version_1(path)
    SqliteRows(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    before = content(path)
    with pytest.raises(Tampered) as caught:
        SqliteRows(path)
    assert caught.value.code == "store-corrupt"
    assert content(path) == before


def test_a_migration_that_finds_no_room_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite"
    version_1(path)
    before = content(path)
    connect = sqlite3.connect

    class Full(sqlite3.Connection):
        def execute(self, *args: str) -> sqlite3.Cursor:  # type: ignore[override]
            if args[0].startswith("BEGIN"):
                pages = super().execute("PRAGMA page_count").fetchone()[0]
                super().execute(f"PRAGMA max_page_count = {pages}")
            return super().execute(*args)

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: connect(*args, factory=Full, **more))
    with pytest.raises(CloisterError) as caught:
        SqliteRows(path)
    assert caught.value.code == "store-unavailable"
    monkeypatch.undo()
    assert content(path) == before
    check_it_serves(path)
