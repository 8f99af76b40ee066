"""The contract of ``KeyStore``, for SQLite, PostgreSQL and memory: durable, atomic, and bound to its place."""

from __future__ import annotations

import resource
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.base.errors import InvalidInput, Tampered, Unavailable
from cloister.base.secret import SecretBytes
from cloister.keyservice.storage.port import (
    BLOCKS,
    ENTRIES,
    HEAD,
    SECRETS,
    SNAPSHOTS,
    TABLES,
    NewEntry,
    Row,
    Rows,
    Start,
)
from cloister.keyservice.storage.postgres.rows import PostgresRows
from cloister.keyservice.storage.postgres.url import parse_url
from cloister.keyservice.storage.sealed import SealedStore
from cloister.keyservice.storage.sqlite import SqliteRows
from cloister.testing.postgres import PostgresServer
from cloister.testing.rows import MemoryDisk, MemoryRows

KEY = SecretBytes(b"k" * 32)
ID = b"i" * 32
Tables = dict[str, dict[int, bytes]]


class Disk:
    """A disk that can be opened again, and changed by whoever owns it."""

    def __init__(self) -> None:
        self._opened: list[Rows] = []

    def rows(self) -> Rows:
        self._opened.append(self._rows())
        return self._opened[-1]

    def _rows(self) -> Rows:
        raise NotImplementedError

    def open(self, key: SecretBytes = KEY, store_id: bytes = ID) -> SealedStore:
        return SealedStore(self.rows(), key, store_id)

    def loaded(self) -> tuple[SealedStore, list[bytes]]:
        store = self.open()
        return store, list(store.load())

    def close(self) -> None:
        while self._opened:
            self._opened.pop().close()

    def destroy(self) -> None:
        """Leave nothing behind."""

    def tables(self) -> Tables:
        """What lies on the disk."""
        raise NotImplementedError

    def replace(self, tables: Tables) -> None:
        """The attacker writes."""
        raise NotImplementedError


class Memory(Disk):
    def __init__(self) -> None:
        super().__init__()
        self._memory = MemoryDisk()

    def _rows(self) -> Rows:
        return MemoryRows(self._memory)

    def tables(self) -> Tables:
        return {table: dict(rows) for table, rows in self._memory.tables.items()}

    def replace(self, tables: Tables) -> None:
        self._memory.tables = {table: dict(rows) for table, rows in tables.items()}


class Sqlite(Disk):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def _rows(self) -> Rows:
        return SqliteRows(self._path)

    def tables(self) -> Tables:
        connection = sqlite3.connect(self._path)
        try:
            return {table: dict(connection.execute(f"SELECT idx, record FROM {table}")) for table in TABLES}
        finally:
            connection.close()

    def replace(self, tables: Tables) -> None:
        connection = sqlite3.connect(self._path)
        try:
            with connection:
                for table, rows in tables.items():
                    connection.execute(f"DELETE FROM {table}")
                    connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows.items())
        finally:
            connection.close()


class Postgres(Disk):
    def __init__(self, server: PostgresServer) -> None:
        super().__init__()
        self._server = server
        self._schema = f"t{secrets.token_hex(6)}"

    def _rows(self) -> Rows:
        return PostgresRows(parse_url(self._server.url(self._schema)), patience_s=0.5)

    def tables(self) -> Tables:
        found = {}
        for table in TABLES:
            rows = self._server.sql(f"SELECT idx, record FROM {self._schema}.{table}")
            found[table] = {index: bytes(record) for index, record in rows}
        return found

    def replace(self, tables: Tables) -> None:
        for table, rows in tables.items():
            self._server.sql(f"DELETE FROM {self._schema}.{table}")
            self._server.sql(
                f"INSERT INTO {self._schema}.{table} SELECT * FROM unnest(CAST(:p0 AS bigint[]), CAST(:p1 AS bytea[]))",
                parameters=[list(rows), list(rows.values())],
            )

    def destroy(self) -> None:
        self._server.sql(f"DROP SCHEMA IF EXISTS {self._schema} CASCADE")


@pytest.fixture(params=["sqlite", "memory", "postgres"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    disk: Disk
    if request.param == "postgres":
        disk = Postgres(request.getfixturevalue("postgres"))
    else:
        disk = Sqlite(tmp_path / "store.sqlite") if request.param == "sqlite" else Memory()
    yield disk
    disk.close()
    disk.destroy()


def fill(disk: Disk, count: int = 6) -> None:
    store, _ = disk.loaded()
    for number in range(count):
        secret = SecretBytes(bytes([number]) * 32) if number % 2 == 0 else None
        store.append([NewEntry(b"entry %d" % number, secret)])
    disk.close()


def test_what_was_appended_is_there_after_a_restart(disk: Disk) -> None:
    store, entries = disk.loaded()
    assert entries == []
    store.append([NewEntry(b"a", SecretBytes(b"1" * 32)), NewEntry(b"b")])
    store.append([NewEntry(b"c", SecretBytes(b"3" * 32))])
    assert [store.read(index) for index in range(3)] == [b"a", b"b", b"c"]
    disk.close()
    store, entries = disk.loaded()
    assert entries == [b"a", b"b", b"c"]
    assert dict(store.secrets()) == {0: SecretBytes(b"1" * 32), 2: SecretBytes(b"3" * 32)}
    store.append([NewEntry(b"d")])
    assert store.read(3) == b"d"


def test_dropped_secrets_are_gone(disk: Disk) -> None:
    fill(disk)
    store, _ = disk.loaded()
    store.append([NewEntry(b"x")], dropped=[0, 4])
    store.append([], dropped=[2])
    assert dict(store.secrets()) == {}
    disk.close()
    store, entries = disk.loaded()
    assert len(entries) == 7
    assert dict(store.secrets()) == {}
    disk.close()
    assert disk.tables()[SECRETS] == {}


def test_another_key_takes_over_with_all_that_lives(disk: Disk) -> None:
    """Entries stay as they were written; head, proof and secrets are under the new key, and what is derived is gone."""
    fill(disk)
    store, before = disk.loaded()
    store.append([], proof=b"proof")
    store.snapshots.finish(
        store.snapshots.put_part(store.snapshots.begin(bytes(32), 6, store.link(6), bytes(32)), b"x")
    )
    lived, old = dict(store.secrets()), disk.tables() if isinstance(disk, Memory) else None
    other = SecretBytes(b"o" * 32)
    store.rekey(other, NewEntry(b"the rotation"))
    disk.close()
    tables = disk.tables()
    assert not tables[SNAPSHOTS]
    assert not tables[BLOCKS]
    if old is not None:
        assert {index: tables[ENTRIES][index] for index in range(6)} == old[ENTRIES]
        assert not set(tables[SECRETS].values()) & set(old[SECRETS].values())
    again = SealedStore(disk.rows(), other, ID, ((6, KEY),))
    assert again.belongs()
    assert list(again.load()) == [*before, b"the rotation"]
    assert dict(again.secrets()) == lived
    assert again.proof() == b"proof"
    again.append([NewEntry(b"after it", SecretBytes(b"7" * 32))])
    assert [again.read(index) for index in (0, 6, 7)] == [b"entry 0", b"the rotation", b"after it"]
    disk.close()
    behind = SealedStore(disk.rows(), KEY, ID)
    assert not behind.belongs()
    with pytest.raises(Tampered, match="store-record"):
        list(behind.load())
    disk.close()
    for earlier in ((), ((5, KEY),), ((7, KEY),), ((6, other),)):
        wrong = SealedStore(disk.rows(), other, ID, earlier)
        with pytest.raises(Tampered, match=r"store-record|store-generation"):
            list(wrong.load())
        disk.close()


def test_nothing_lies_there_in_the_clear(disk: Disk) -> None:
    fill(disk)
    for rows in disk.tables().values():
        for record in rows.values():
            assert b"entry" not in record
            assert bytes([2]) * 32 not in record


def test_what_is_not_there_is_refused(disk: Disk) -> None:
    fill(disk)
    store, _ = disk.loaded()
    for index in (-1, 6):
        with pytest.raises(InvalidInput):
            store.read(index)


def test_a_second_process_is_refused(disk: Disk) -> None:
    disk.rows()
    with pytest.raises(Unavailable) as caught:
        disk.rows()
    assert caught.value.code == "store-locked"


def _swap(table: str, a: int, b: int) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        rows = tables[table]
        rows[a], rows[b] = rows[b], rows[a]

    return change


def _copy(table: str, a: int, b: int) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        tables[table][b] = tables[table][a]

    return change


def _remove(table: str, index: int) -> Callable[[Tables], None]:
    return lambda tables: tables[table].__delitem__(index)


def _flip(table: str, index: int, at: int) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        record = bytearray(tables[table][index])
        record[at] ^= 1
        tables[table][index] = bytes(record)

    return change


def _cross(tables: Tables) -> None:
    tables[SECRETS][1] = tables[ENTRIES][1]


def _negative(tables: Tables) -> None:
    tables[ENTRIES][-1] = tables[ENTRIES][0]


def _cut(index: int) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        tables[ENTRIES][index] = tables[ENTRIES][index][:20]

    return change


def _all_entries(tables: Tables) -> None:
    tables[ENTRIES].clear()


ATTACKS: list[tuple[str, Callable[[Tables], None], str]] = [
    ("entries swapped", _swap(ENTRIES, 1, 3), "store-record"),
    ("entry copied over another", _copy(ENTRIES, 1, 2), "store-record"),
    ("entry copied to the end", _copy(ENTRIES, 5, 6), "store-record"),
    ("entry put before the first", _negative, "store-missing"),
    ("first entry removed", _remove(ENTRIES, 0), "store-missing"),
    ("middle entry removed", _remove(ENTRIES, 3), "store-missing"),
    ("tail cut", _remove(ENTRIES, 5), "store-truncated"),
    ("all entries removed", _all_entries, "store-truncated"),
    ("head removed", _remove(HEAD, 0), "store-head"),
    ("bit of a salt", _flip(ENTRIES, 2, 0), "store-record"),
    ("bit of a ciphertext", _flip(ENTRIES, 2, 40), "store-record"),
    ("bit of a tag", _flip(ENTRIES, 2, -1), "store-record"),
    ("bit of the head", _flip(HEAD, 0, 40), "store-record"),
    ("record cut", _cut(4), "store-record"),
    ("secrets swapped", _swap(SECRETS, 0, 2), "store-record"),
    ("secret copied to another entry", _copy(SECRETS, 0, 1), "store-record"),
    ("secret beyond the end", _copy(SECRETS, 0, 9), "store-record"),
    ("entry put in place of a secret", _cross, "store-record"),
    ("bit of a secret", _flip(SECRETS, 2, 40), "store-record"),
]


@pytest.mark.parametrize(("change", "code"), [attack[1:] for attack in ATTACKS], ids=[attack[0] for attack in ATTACKS])
def test_who_changes_the_disk_is_noticed(disk: Disk, change: Callable[[Tables], None], code: str) -> None:
    fill(disk)
    tables = disk.tables()
    change(tables)
    disk.replace(tables)
    with pytest.raises(Tampered) as caught:
        disk.loaded()[0].secrets()
    assert caught.value.code == code


def test_an_older_head_over_newer_entries_is_noticed(disk: Disk) -> None:
    fill(disk, 3)
    old = disk.tables()
    store, _ = disk.loaded()
    store.append([NewEntry(b"more")])
    disk.close()
    tables = disk.tables()
    tables[HEAD] = old[HEAD]
    disk.replace(tables)
    with pytest.raises(Tampered) as caught:
        disk.loaded()
    assert caught.value.code == "store-head"


def test_records_of_another_history_are_noticed(disk: Disk) -> None:
    """The attacker restores a snapshot, lets it grow, and mixes both histories."""
    fill(disk, 3)
    old = disk.tables()
    store, _ = disk.loaded()
    store.append([NewEntry(b"first future", SecretBytes(b"f" * 32))])
    disk.close()
    first = disk.tables()
    disk.replace(old)
    store, _ = disk.loaded()
    store.append([NewEntry(b"other future", SecretBytes(b"o" * 32))])
    disk.close()
    second = disk.tables()
    for table in (ENTRIES, SECRETS, HEAD):
        mixed = {name: dict(rows) for name, rows in second.items()}
        mixed[table] = first[table]
        disk.replace(mixed)
        with pytest.raises(Tampered):
            disk.loaded()[0].secrets()
        disk.close()


def test_a_secret_brought_back_is_of_its_entry_only(disk: Disk) -> None:
    fill(disk, 3)
    old = disk.tables()
    store, _ = disk.loaded()
    store.append([], dropped=[0])
    disk.close()
    tables = disk.tables()
    tables[SECRETS] = old[SECRETS]
    disk.replace(tables)
    store, _ = disk.loaded()
    assert set(store.secrets()) == {0, 2}  # authentic; that its time is over, the state knows


@pytest.mark.parametrize(("key", "store_id"), [(b"x" * 32, ID), (b"k" * 32, b"x" * 32)])
def test_another_keyservices_store_does_not_open(disk: Disk, key: bytes, store_id: bytes) -> None:
    fill(disk, 1)
    with pytest.raises(Tampered) as caught:
        list(disk.open(SecretBytes(key), store_id).load())
    assert caught.value.code == "store-record"


# --- blocks and snapshots ---


def blocks(disk: Disk, count: int = 11) -> tuple[SealedStore, list[bytes]]:
    """Eleven entries in blocks of four, two of which were written down; what all hash to."""
    store = SealedStore(disk.rows(), KEY, ID, block_entries=4)
    assert list(store.load()) == []
    for number in range(count):
        store.append([NewEntry(b"entry %d" % number, SecretBytes(bytes([number]) * 32))])
    links = [store.link(size) for size in range(count + 1)]
    for number in range(2):
        store.give_up(number, b"nodes %d" % number, {b"party": b"%d" % number})
    return store, links


def lie_there(store: SealedStore, table: str) -> list[int]:
    return [index for index, _ in store._rows.scan(table)]


def test_what_was_given_up_is_fetched(disk: Disk) -> None:
    store, links = blocks(disk)
    assert [store.link(size) for size in range(12)] == links
    assert [store.read(index) for index in range(11)] == [b"entry %d" % index for index in range(11)]
    assert len(store.secrets()) == 11
    assert (store.block(1).nodes, store.block(1).concerned) == (b"nodes 1", {b"party": b"1"})
    assert len(store.sealed(0, 99)) == 11
    for wrong in (0, 1, 2):  # written, written, not complete
        with pytest.raises(AssertionError):
            store.give_up(wrong, b"", {})


@pytest.mark.parametrize("size", [8, 10, 11])
def test_a_store_is_loaded_from_where_a_snapshot_ends(disk: Disk, size: int) -> None:
    store, links = blocks(disk)
    start = store.start(size)
    disk.close()
    store = SealedStore(disk.rows(), KEY, ID, block_entries=4)
    assert list(store.load(start)) == [b"entry %d" % index for index in range(size, 11)]
    assert [store.link(at) for at in range(12)] == links
    assert len(store.secrets()) == 11
    store.append([NewEntry(b"more")])
    assert store.read(11) == b"more"


def test_a_start_of_another_history_is_noticed(disk: Disk) -> None:
    store, _ = blocks(disk)
    good = store.start(10)
    disk.close()
    for start in (Start(good.ends[:32], good.links), Start(good.ends, bytes(64)), Start(bytes(64), good.links)):
        store = SealedStore(disk.rows(), KEY, ID, block_entries=4)
        with pytest.raises(Tampered):
            read_all(store, start)
        disk.close()


def read_all(store: SealedStore, start: Start) -> None:
    list(store.load(start))
    store.secrets()


@pytest.mark.parametrize("size", [3, 4, 8, 9])
def test_a_cut_takes_blocks_and_snapshot_with_it(disk: Disk, size: int) -> None:
    store, links = blocks(disk)
    saved = store.snapshots.begin(b"v" * 32, 9, links[9], b"r" * 32)
    store.snapshots.finish(store.snapshots.put_part(saved, b"part"))
    store.cut(size, b"")
    assert lie_there(store, BLOCKS) == list(range(size // 4))
    assert (store.snapshots.saved() is None) == (size < 9)
    assert [store.link(at) for at in range(size + 1)] == links[: size + 1]
    store.append([NewEntry(b"other")])
    disk.close()
    store = SealedStore(disk.rows(), KEY, ID, block_entries=4)
    assert list(store.load())[size:] == [b"other"]


def test_a_snapshot_is_replaced_whole(disk: Disk) -> None:
    store, links = blocks(disk)
    snapshots = store.snapshots
    assert snapshots.saved() is None
    for number in range(3):
        saved = snapshots.begin(b"v" * 32, 9 + number % 2, links[9 + number % 2], b"r" * 32)
        before = snapshots.saved()
        for part in range(3 - number):
            saved = snapshots.put_part(saved, b"part %d %d" % (number, part))
        assert snapshots.saved() == before
        snapshots.finish(saved)
        assert snapshots.saved() == saved
        assert list(snapshots.parts(saved)) == [b"part %d %d" % (number, part) for part in range(3 - number)]
        assert len(lie_there(store, SNAPSHOTS)) == 1 + 3 - number
    snapshots.put_part(snapshots.put_part(snapshots.begin(b"v" * 32, 9, links[9], b"r" * 32), b"never"), b"finished")
    assert len(lie_there(store, SNAPSHOTS)) == 2 + 2
    saved = snapshots.begin(b"v" * 32, 9, links[9], b"r" * 32)
    assert len(lie_there(store, SNAPSHOTS)) == 2
    snapshots.finish(saved)
    assert len(lie_there(store, SNAPSHOTS)) == 1
    assert list(snapshots.parts(saved)) == []
    further = snapshots.put_part(snapshots.begin(b"v" * 32, 9, links[9], b"r" * 32), b"part")
    store._rows.write([Row(SNAPSHOTS, 0, b"somebody else wrote this" * 9)], [])
    snapshots.finish(further)
    assert snapshots.saved() == further
    snapshots.discard()
    assert snapshots.saved() is None
    assert lie_there(store, SNAPSHOTS) == []


@pytest.mark.parametrize("fault", ["fail_before", "fail_after"])
def test_a_failed_write_of_a_block_harms_no_entry(fault: str) -> None:
    disk = MemoryDisk()
    store = SealedStore(MemoryRows(disk), KEY, ID, block_entries=2)
    assert list(store.load()) == []
    store.append([NewEntry(b"one"), NewEntry(b"two")])
    setattr(disk, fault, 0)
    with pytest.raises(Unavailable):
        store.give_up(0, b"nodes", {})
    store.append([NewEntry(b"three")])
    store.give_up(0, b"nodes", {})
    assert [store.read(index) for index in range(3)] == [b"one", b"two", b"three"]


# --- faults of each adapter ---


@pytest.mark.parametrize("fault", ["fail_before", "fail_after"])
@pytest.mark.parametrize("start", [0, 2])
def test_a_failed_write_leaves_nothing_and_the_next_succeeds(fault: str, start: int) -> None:
    disk = MemoryDisk()
    store = SealedStore(MemoryRows(disk), KEY, ID)
    assert list(store.load()) == []
    if start:
        store.append([NewEntry(b"one"), NewEntry(b"two", SecretBytes(b"2" * 32))])
    setattr(disk, fault, 0)
    with pytest.raises(Unavailable):
        store.append([NewEntry(b"lost", SecretBytes(b"l" * 32)), NewEntry(b"lost too")])
    store.append([NewEntry(b"kept", SecretBytes(b"3" * 32))])
    store.close()
    store = SealedStore(MemoryRows(disk), KEY, ID)
    assert list(store.load()) == [b"one", b"two", b"kept"][0 if start else 2 :]
    assert len(store.secrets()) == (2 if start else 1)


def test_a_disk_that_changed_during_a_failed_write_is_noticed() -> None:
    disk = MemoryDisk()
    store = SealedStore(MemoryRows(disk), KEY, ID)
    list(store.load())
    store.append([NewEntry(b"one")])
    old = disk.copy()
    store.append([NewEntry(b"two")])
    disk.fail_before = 0
    with pytest.raises(Unavailable):
        store.append([NewEntry(b"three")])
    disk.tables = old.tables
    with pytest.raises(Tampered):
        store.append([NewEntry(b"three")])


def open_sqlite(path: Path) -> tuple[SqliteRows, SealedStore, list[bytes]]:
    rows = SqliteRows(path)
    store = SealedStore(rows, KEY, ID)
    try:
        return rows, store, list(store.load())
    except Tampered:
        store.close()
        raise


def test_a_full_disk_is_unavailable_and_service_resumes(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    rows, store, _ = open_sqlite(path)
    store.append([NewEntry(b"one")])
    connection = rows._open
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Unavailable) as caught:
        store.append([NewEntry(bytes(60_000), SecretBytes(b"s" * 32))])
    assert caught.value.code == "store-unavailable"
    assert "FULL" in caught.value.message
    store.append([NewEntry(b"two")])  # there is room again: the limit was this connection's
    store.close()
    _, store, entries = open_sqlite(path)
    assert entries == [b"one", b"two"]
    store.close()


def test_a_torn_write_is_unavailable_and_nothing_is_half_applied(tmp_path: Path) -> None:
    """The file system stops in the middle of the write-ahead log, as a full device does."""
    path = tmp_path / "store.sqlite"
    _, store, _ = open_sqlite(path)
    store.append([NewEntry(b"one")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    wal = path.with_name(path.name + "-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 6_000, hard))
    try:
        with pytest.raises(Unavailable):
            store.append([NewEntry(bytes(60_000))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    copy = tmp_path / "crashed" / "store.sqlite"
    copy.parent.mkdir()
    for file in (path, wal):
        shutil.copy(file, copy.with_name(file.name))
    _, crashed, entries = open_sqlite(copy)
    assert entries == [b"one"]
    crashed.close()
    store.append([NewEntry(b"two")])
    store.close()
    _, store, entries = open_sqlite(path)
    assert entries == [b"one", b"two"]
    store.close()


def test_a_read_only_file_is_unavailable(tmp_path: Path) -> None:
    rows, store, _ = open_sqlite(tmp_path / "store.sqlite")
    rows._open.execute("PRAGMA query_only = ON")
    with pytest.raises(Unavailable) as caught:
        store.append([NewEntry(b"one")])
    assert "READONLY" in caught.value.message
    store.append([NewEntry(b"one")])
    store.close()


def test_a_file_that_is_no_database_is_tampered(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"not a database at all " * 100)
    with pytest.raises(Tampered) as caught:
        SqliteRows(path)
    assert caught.value.code == "store-corrupt"


@pytest.mark.parametrize(
    "script",
    [
        "DROP TABLE entries",
        "ALTER TABLE entries RENAME TO old; CREATE TABLE entries AS SELECT 0 AS idx, 'text' AS record",
    ],
)
def test_another_schema_is_tampered(tmp_path: Path, script: str) -> None:
    path = tmp_path / "store.sqlite"
    _, store, _ = open_sqlite(path)
    store.append([NewEntry(b"one")])
    store.close()
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()
    with pytest.raises(Tampered) as caught:
        open_sqlite(path)
    assert caught.value.code == "store-corrupt"


def test_the_lock_of_another_process_is_named(tmp_path: Path) -> None:
    first = SqliteRows(tmp_path / "store.sqlite")
    with pytest.raises(Unavailable) as caught:
        SqliteRows(tmp_path / "store.sqlite")
    assert caught.value.code == "store-locked"
    first.close()
    SqliteRows(tmp_path / "store.sqlite").close()
