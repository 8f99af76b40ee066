"""Faults of PostgreSQL and of the way there: nothing acknowledged is lost or half-applied, and it goes on by itself."""

from __future__ import annotations

import contextlib
import secrets
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from cloister.base.errors import CloisterError, Refused, Tampered, Unavailable
from cloister.base.secret import SecretBytes
from cloister.keyservice.storage.migrations import NEWEST
from cloister.keyservice.storage.port import BLOCKS, ENTRIES, HEAD, SNAPSHOTS, NewEntry, Row
from cloister.keyservice.storage.postgres import rows as rows_module
from cloister.keyservice.storage.postgres.rows import PostgresRows, exists
from cloister.keyservice.storage.postgres.url import parse_url
from cloister.keyservice.storage.sealed import SealedStore
from cloister.testing.cutting_proxy import DOWN, UP, CuttingProxy
from cloister.testing.postgres import ROLE, PostgresServer

KEY, ID = SecretBytes(b"k" * 32), b"i" * 32


class Namespace:
    """One of a test's own, on the server that all tests of this process share."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.schema = f"t{secrets.token_hex(6)}"
        self.port: int | None = None
        self.entries: list[bytes] = []
        self.secrets: dict[int, SecretBytes] = {}
        self._opened: list[PostgresRows] = []

    def rows(self, patience_s: float = 60.0, **options: str) -> PostgresRows:
        url = parse_url(self.server.url(self.schema, port=self.port, **options))
        self._opened.append(PostgresRows(url, patience_s=patience_s))
        return self._opened[-1]

    def store(self) -> SealedStore:
        store = SealedStore(self.rows(), KEY, ID)
        assert list(store.load()) == self.entries
        assert dict(store.secrets()) == self.secrets
        return store

    def append(self, store: SealedStore, data: bytes, dropped: tuple[int, ...] = ()) -> None:
        """Two entries, one of them with a secret; remembered once they are acknowledged."""
        secret = SecretBytes(data.ljust(32, b"."))
        store.append([NewEntry(data, secret), NewEntry(data + b"'")], dropped, b"proof of " + data)
        self.secrets = {index: value for index, value in self.secrets.items() if index not in dropped}
        self.secrets[len(self.entries)] = secret
        self.entries += [data, data + b"'"]

    def tried(self, store: SealedStore, data: bytes, dropped: tuple[int, ...] = ()) -> bool:
        """Whether it failed, as what can be tried again does."""
        try:
            self.append(store, data, dropped)
        except Unavailable as error:
            if error.code != "store-unavailable":
                raise
            return True
        return False

    def sql(self, statement: str) -> list[list[object]]:
        return self.server.sql(statement.format(self.schema))

    def close(self) -> None:
        for rows in self._opened:
            rows.close()
        self._opened.clear()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What should go well may take its time on a busy machine; tests of what ends in time say in how much."""
    for name in ("STORE_DEADLINE_S", "STORE_RECONNECT_S", "STORE_LOCK_S"):
        monkeypatch.setattr(rows_module, name, 60.0)


@pytest.fixture
def space(postgres: PostgresServer) -> Iterator[Namespace]:
    found = Namespace(postgres)
    yield found
    found.close()
    postgres.sql(f"DROP SCHEMA IF EXISTS {found.schema} CASCADE")


@pytest.fixture
def proxy(space: Namespace) -> Iterator[CuttingProxy]:
    """The space is reached through it."""
    with CuttingProxy(space.server.port) as found:
        space.port = found.port
        yield found
        space.close()


def refused(code: str, do: Callable[[], object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        do()
    assert caught.value.code == code, caught.value
    return caught.value


def messages(data: bytes) -> list[int]:
    """Where each of PostgreSQL's messages begins, and where the last ends."""
    found, at = [0], 0
    while at < len(data):
        at += 1 + int.from_bytes(data[at + 1 : at + 5], "big")
        found.append(at)
    assert at == len(data)
    return found


# --- connections ---


def test_a_connection_cut_at_any_message_loses_and_halves_nothing(space: Namespace, proxy: CuttingProxy) -> None:
    store = space.store()
    space.append(store, b"first")
    space.append(store, b"second", (0,))  # every statement is prepared now
    proxy.arm()
    space.append(store, b"third", (2,))
    points = []
    for way in (UP, DOWN):
        bounds = messages(proxy.passed(way))
        points += [(way, at) for at in bounds[1:]]
        points += [(way, (start + end) // 2) for start, end in pairwise(bounds)]
    commit = proxy.passed(UP).index(b"COMMIT")
    assert len(points) > 80
    failed = unseen = 0
    for number, (way, at) in enumerate(points):
        data = b"cut %d" % number
        proxy.arm(way, at)
        last = len(space.entries) - 2
        error = space.tried(store, data, (last,))
        failed += bool(error)
        unseen += not error
        assert not error or way == DOWN or at > commit, "it was cut before COMMIT, so it is tried once more"
        assert proxy.fired
    assert failed >= 2
    assert unseen >= 60
    proxy.arm()
    space.append(store, b"at last")
    assert store.proof() == b"proof of at last"
    store.close()
    space.store()


def test_a_connection_cut_while_it_is_made_is_made_again(space: Namespace, proxy: CuttingProxy) -> None:
    store = space.store()
    space.append(store, b"first")
    rows = space._opened[0]
    for way in (UP, DOWN):
        at = 1
        while True:
            proxy.arm(way, at)
            rows.reopen()
            if not proxy.fired:  # it takes fewer bytes than that
                break
            at += 97
        assert at > 1000
    proxy.arm()
    space.append(store, b"second")
    store.close()
    space.store()


def test_a_connection_cut_while_pages_are_read_goes_on_where_it_was(
    space: Namespace, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "STORE_PAGE_ROWS", 10)
    rows = space.rows()
    records = [(index, secrets.token_bytes(40)) for index in range(-5, 95)]
    rows.write([Row(ENTRIES, index, record) for index, record in records], [])
    found = []
    for index, record in rows.scan(ENTRIES):
        found.append((index, record))
        if index % 7 == 0:
            proxy.cut()
    assert found == records


def test_many_records_are_read_without_holding_them(space: Namespace) -> None:
    rows = space.rows()
    space.sql("INSERT INTO {}.entries SELECT n, decode(repeat('ab', 1000), 'hex') FROM generate_series(0, 39999) n")
    space.sql("INSERT INTO {}.blocks SELECT n, decode(repeat('ab', 1000000), 'hex') FROM generate_series(0, 19) n")
    tracemalloc.start()
    try:
        assert [sum(len(record) for _, record in rows.scan(table)) for table in (ENTRIES, BLOCKS)] == [
            40_000_000,
            20_000_000,
        ]
        assert [index for index, _ in rows.scan(ENTRIES, 39_990)] == list(range(39_990, 40_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6


def test_a_network_that_goes_silent_ends_in_time_and_the_namespace_is_had_again(
    space: Namespace, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server still believes in the old session, which holds the lock: it is ended."""
    store = space.store()
    space.append(store, b"first")
    monkeypatch.setattr(rows_module, "STORE_DEADLINE_S", 0.5)
    proxy.silence(on=True)
    error = refused("store-unavailable", lambda: space.append(store, b"lost"))
    assert "in time" in error.message
    proxy.silence(on=False)
    monkeypatch.setattr(rows_module, "STORE_DEADLINE_S", 60.0)
    space.append(store, b"second")
    store.close()
    space.store()


def test_an_administrator_who_ends_the_session_is_not_noticed(space: Namespace) -> None:
    store = space.store()
    space.append(store, b"first")
    space.server.end_sessions()
    space.append(store, b"second")
    assert store.read(0) == b"first"
    space.server.end_sessions()
    assert store.read(2) == b"second"
    store.close()
    space.store()


# --- the server ---


def test_a_server_killed_between_transactions_comes_back_with_all(
    space: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "STORE_RECONNECT_S", 0.2)
    store = space.store()
    for number in range(3):
        space.append(store, b"%d" % number)
        space.server.kill()
        refused("store-unavailable", lambda n=number: space.append(store, b"lost %d" % n))  # type: ignore[misc]
        refused("store-unavailable", lambda: store.read(0))
        space.server.start()
        assert store.read(0) == b"0"
    space.append(store, b"last")
    store.close()
    space.store()


def test_a_server_killed_in_the_middle_of_transactions_loses_nothing_acknowledged(space: Namespace) -> None:
    """It dies again and again while entries are written as fast as can be."""
    store = space.store()
    stop = threading.Event()

    def hunt() -> None:
        try:
            for number in range(5):
                stop.wait(0.02 + 0.031 * number)
                space.server.kill()
                space.server.start()
        finally:
            stop.set()

    hunter = threading.Thread(target=hunt)
    hunter.start()
    number = 0
    while not stop.is_set():
        number += 1
        space.tried(store, b"%d" % number)
    hunter.join()
    space.append(store, b"last")
    assert len(space.entries) > 2
    store.close()
    space.store()


def test_an_orderly_restart_is_waited_for(space: Namespace) -> None:
    store = space.store()
    for number in range(3):
        space.append(store, b"%d" % number)
        space.server.restart()
    starting = threading.Thread(target=space.server.start)
    space.server.stop()
    starting.start()
    space.append(store, b"meanwhile")
    starting.join()
    store.close()
    space.store()


def test_a_server_that_stands_still_is_given_up_in_time(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    store = space.store()
    space.append(store, b"first")
    monkeypatch.setattr(rows_module, "STORE_DEADLINE_S", 0.5)
    space.server.pause()
    try:
        refused("store-unavailable", lambda: space.append(store, b"lost"))
        refused("store-unavailable", lambda: store.read(0))
    finally:
        space.server.resume()
    monkeypatch.setattr(rows_module, "STORE_DEADLINE_S", 60.0)
    space.append(store, b"second")
    store.close()
    space.store()


def test_a_read_only_database_is_unavailable_and_says_so(space: Namespace) -> None:
    store = space.store()
    space.append(store, b"first")
    space.server.setting("default_transaction_read_only", "on")
    try:
        for _ in range(2):
            error = refused("store-unavailable", lambda: space.append(store, b"lost"))
            assert "25006" in error.message
            assert "read-only" in (error.hint or "")
        assert store.read(0) == b"first"
    finally:
        space.server.setting("default_transaction_read_only", None)
    space.append(store, b"second")
    store.close()
    space.store()


def test_a_server_that_does_not_flush_is_refused(space: Namespace) -> None:
    space.server.setting("fsync", "off")
    try:
        error = refused("store-not-durable", space.rows)
        assert "fsync" in error.message
    finally:
        space.server.setting("fsync", None)
    space.rows()


def test_commits_are_durable_whatever_the_roles_defaults_are(space: Namespace) -> None:
    space.server.sql(f"ALTER ROLE {ROLE} SET synchronous_commit = off")
    space.server.sql(f"ALTER ROLE {ROLE} SET search_path = pg_catalog")
    space.server.sql(f"ALTER ROLE {ROLE} SET statement_timeout = 0")
    try:
        rows = space.rows()
        session = rows._session
        assert session is not None
        shown = session.run(
            "SELECT current_setting('synchronous_commit'), current_setting('statement_timeout')", str, str
        )
        assert shown == [["on", "8s"]]
        rows.write([Row(ENTRIES, 0, b"a")], [])
    finally:
        space.server.sql(f"ALTER ROLE {ROLE} RESET ALL")


# --- one process at a time ---


def test_another_process_is_refused_until_this_one_is_gone(space: Namespace) -> None:
    first = space.rows()
    error = refused("store-locked", lambda: space.rows(patience_s=0.2))
    assert space.schema in error.message
    first.write([Row(ENTRIES, 0, b"a")], [])
    first.close()
    assert space.rows().get(ENTRIES, 0) == b"a"


def test_namespaces_of_one_database_do_not_meet(space: Namespace) -> None:
    other = Namespace(space.server)
    try:
        first, second = space.rows(), other.rows()
        first.write([Row(ENTRIES, 0, b"a")], [])
        second.write([Row(ENTRIES, 0, b"b")], [])
        assert (first.get(ENTRIES, 0), second.get(ENTRIES, 0)) == (b"a", b"b")
        assert first.name != second.name
        assert len(first.name) == 16
    finally:
        other.close()
        space.server.sql(f"DROP SCHEMA {other.schema} CASCADE")


def test_a_replicas_name_stays_with_its_records(space: Namespace) -> None:
    rows = space.rows()
    name = rows.name
    rows.reopen()
    assert rows.name == name
    rows.close()
    assert space.rows().name == name


def test_whose_namespace_was_opened_by_another_meanwhile_writes_nothing_any_more(
    space: Namespace, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session died, another process came and went: the lock is free, and the fence is another."""
    store = space.store()
    space.append(store, b"first")
    proxy.cut()
    space.port = None
    other = space.store()
    space.append(other, b"of the other")
    monkeypatch.setattr(rows_module, "STORE_LOCK_S", 0.2)
    refused("store-locked", lambda: store.append([NewEntry(b"while it is open")]))
    other.close()
    before = space.sql("SELECT * FROM {}.entries ORDER BY idx")
    for _ in range(3):
        error = refused("store-taken", lambda: store.append([NewEntry(b"stolen back")]))
        assert "another process" in error.message
    refused("store-taken", lambda: store.read(0))
    assert space.sql("SELECT * FROM {}.entries ORDER BY idx") == before
    space.store()


def test_a_lock_that_is_given_twice_still_lets_one_write_only(
    space: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler, or a server that lies: both believe that they hold it. The one that came last goes on."""
    monkeypatch.setattr(PostgresRows, "_lock", lambda *_: None)
    first = space.store()
    space.append(first, b"first")
    second = space.store()
    refused("store-taken", lambda: first.append([NewEntry(b"both")]))
    space.append(second, b"second")
    refused("store-taken", lambda: first.append([NewEntry(b"both")]))
    second.close()
    space.store()


def test_two_that_write_at_once_never_interleave(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a lock, from two threads, as fast as can be: the fence alone."""
    monkeypatch.setattr(PostgresRows, "_lock", lambda *_: None)
    ended: list[tuple[int, str]] = []

    def run(number: int, rows: PostgresRows, start: threading.Barrier) -> None:
        start.wait()
        for count in range(200):
            try:
                rows.write([Row(ENTRIES, 0, b"%d %d" % (number, count)), Row(HEAD, 0, b"%d %d" % (number, count))], [])
            except Unavailable as error:
                ended.append((number, error.code))
                return

    pair = [space.rows(), space.rows()]
    start = threading.Barrier(2)
    threads = [threading.Thread(target=run, args=(number, rows, start)) for number, rows in enumerate(pair)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [(0, "store-taken")]
    assert pair[1].get(ENTRIES, 0) == pair[1].get(HEAD, 0) == b"1 199"


# --- schemas ---


def test_a_namespace_of_version_1_is_brought_to_the_newest(space: Namespace) -> None:
    store = space.store()
    space.append(store, b"first")
    store.close()
    for table in (BLOCKS, SNAPSHOTS):
        space.sql(f"DROP TABLE {{}}.{table}")
    space.sql("UPDATE {}.store SET version = 1")
    store = space.store()
    space.append(store, b"second")
    assert space.sql("SELECT version FROM {}.store") == [[NEWEST]]
    assert space.sql("SELECT count(*) FROM {}.blocks") == [[0]]


def test_a_namespace_whose_making_is_cut_anywhere_is_whole_or_not_there(
    space: Namespace, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "STORE_RECONNECT_S", 0.0)  # it dies, rather than to try again
    proxy.arm()
    space.rows()
    total = len(proxy.passed(UP))
    space.close()
    found = set()
    for at in range(1, total, 151):
        space.sql("DROP SCHEMA IF EXISTS {} CASCADE")
        proxy.arm(UP, at)
        with contextlib.suppress(Unavailable):
            space.rows()
        space.close()
        assert proxy.fired or at + 500 > total  # it asks for the lock again where the one before is not gone yet
        tables = space.server.sql("SELECT count(*) FROM pg_tables WHERE schemaname = :p0", parameters=[space.schema])
        found.add(tables[0][0])
        proxy.arm()
        rows = space.rows()
        rows.write([Row(SNAPSHOTS, 0, b"a")], [])
        space.close()
    assert found == {0, 6}


def test_a_newer_schema_is_refused_and_not_touched(space: Namespace) -> None:
    space.rows().close()
    space.sql(f"UPDATE {{}}.store SET version = {NEWEST + 1}")
    before = space.sql("SELECT version, fence FROM {}.store")
    with pytest.raises(Refused) as caught:
        space.rows()
    assert caught.value.code == "store-newer"
    assert space.sql("SELECT version, fence FROM {}.store") == before
    space.sql(f"UPDATE {{}}.store SET version = {NEWEST}")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE {}.store SET version = 0",
        "UPDATE {}.store SET version = 1",
        "UPDATE {}.store SET version = -1",
        "DELETE FROM {}.store",
        "DROP TABLE {}.store",
        "UPDATE {}.store SET name = ''",
        "ALTER TABLE {}.store DROP COLUMN fence",
    ],
)
def test_whoever_changes_what_describes_the_records_makes_nothing_anew(space: Namespace, change: str) -> None:
    store = space.store()
    space.append(store, b"first")
    store.close()
    before = space.sql("SELECT * FROM {}.entries ORDER BY idx")
    space.sql(change)
    with pytest.raises(Tampered) as caught:
        space.rows()
    assert caught.value.code == "store-corrupt"
    assert space.sql("SELECT * FROM {}.entries ORDER BY idx") == before


def test_a_namespace_that_is_somebody_elses_is_left_alone(space: Namespace) -> None:
    space.sql("CREATE SCHEMA {}")
    space.sql("CREATE TABLE {}.entries (important TEXT)")
    error = refused("store-unavailable", space.rows)
    assert "42501" in error.message
    space.sql(f"GRANT ALL ON SCHEMA {{}} TO {ROLE}")
    refused("store-corrupt", space.rows)


def test_whether_a_log_is_there(space: Namespace) -> None:
    url = parse_url(space.server.url(space.schema))
    assert not exists(url)
    store = space.store()
    assert not exists(url), "tables alone are none: `init` may have been cut short"
    space.append(store, b"first")
    assert exists(url)
