"""The cloud owns the database: its server, what lies in it, and every byte it says.

What its records can be made to say is attacked in tests/contract/keyservice, for each kind of store; here are the
server's own words, and histories brought back under a service that runs.
"""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.base.errors import CloisterError, Tampered, Unavailable
from cloister.base.secret import SecretBytes
from cloister.keyservice.storage.port import ENTRIES, SECRETS, TABLES, NewEntry
from cloister.keyservice.storage.postgres import rows as rows_module
from cloister.keyservice.storage.postgres.rows import PostgresRows
from cloister.keyservice.storage.postgres.url import PostgresUrl, parse_url
from cloister.keyservice.storage.sealed import SealedStore
from cloister.testing.postgres import PostgresServer

KEY, ID = SecretBytes(b"k" * 32), b"i" * 32
PASSWORD = b"the-database's-password"


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def authentication(code: int, more: bytes = b"") -> bytes:
    return message(b"R", struct.pack("!i", code) + more)


def row_description(*types: int) -> bytes:
    fields = b"".join(b"x\0" + struct.pack("!ihihih", 0, 0, kind, 0, 0, 0) for kind in types)
    return message(b"T", struct.pack("!h", len(types)) + fields)


READY = message(b"Z", b"I")
WELCOME = authentication(0) + READY


class Trickle(bytes):
    """Said without having heard anything."""


class Liar:
    """A server that says what it was told, whatever it hears; keeps what it heard."""

    def __init__(self, *said: bytes | float) -> None:
        self._said = said
        self.heard = bytearray()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.getsockname()[1])

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    for say in self._said:
                        if isinstance(say, float):
                            self._closing.wait(say)
                            continue
                        if not isinstance(say, Trickle):
                            self.heard += connection.recv(65536)
                        connection.sendall(say)
                    while not self._closing.is_set() and (data := connection.recv(65536)):
                        self.heard += data
                except OSError:
                    pass

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)


@pytest.fixture
def lied_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[str, Liar]]]:
    """What opening a store says of a server that says such things."""
    monkeypatch.setattr(rows_module, "STORE_RECONNECT_S", 0.0)
    liars: list[Liar] = []
    password = tmp_path / "password"
    password.write_bytes(PASSWORD)

    def check(*said: bytes | float) -> tuple[str, Liar]:
        liars.append(Liar(*said))
        url = f"postgresql://ks@127.0.0.1:{liars[-1].port}/x?schema=a&sslmode=disable&password_file={password}"
        with pytest.raises(CloisterError) as caught:
            PostgresRows(parse_url(url))
        assert caught.value.code in ("store-unavailable", "store-corrupt")
        return caught.value.message, liars[-1]

    yield check
    for liar in liars:
        liar.close()


def test_s8_what_no_server_says_ends_the_connection(lied_to: Callable[..., tuple[str, Liar]]) -> None:
    for said in (
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00" * 64,
        message(b"G", b"\0\0\0"),
        message(b"H", b"\0\0\0"),
        message(b"x"),
        b"R" + struct.pack("!i", 3),
        b"R" + struct.pack("!i", -1),
        b"R" + struct.pack("!i", 2**31 - 1),
        b"D" + struct.pack("!i", 2**31 - 1),
        b"E" + struct.pack("!i", 2**20) + b"M",
        message(b"R"),
        message(b"R", b"\0\0\0"),
        authentication(10),
        authentication(10, b"\xff\xfe\0\0"),
        authentication(11, b"r=x,s=y,i=z"),
        authentication(12, b"v=forged"),
        authentication(0) + message(b"S", b"client_encoding\0no-such\0") + READY,
        authentication(0) + message(b"Z"),
        authentication(0) + message(b"A", b"\0"),
    ):
        lied_to(said)


def test_s8_what_no_statement_is_answered_by_ends_the_connection(lied_to: Callable[..., tuple[str, Liar]]) -> None:
    for said in (
        READY * 3,
        row_description(25) + READY,
        message(b"T", struct.pack("!h", -1)) + READY,
        message(b"T", struct.pack("!h", 3000)) + READY,
        message(b"D", b"") + READY,
        message(b"D", struct.pack("!hi", 1, 2**30)) + READY,
        message(b"E", b"") + READY,
        message(b"E", b"C42\x1b[31m\0Mforged\0\0") + READY,
        message(b"E", b"C\xff\xff\0\0") + READY,
        message(b"C", b"SELECT \xff\0") + READY,
        message(b"S", b"client_encoding\0utf-16\0") + READY,
        message(b"S", b"client_encoding\0idna\0") + READY,
    ):
        text, _ = lied_to(WELCOME, said, READY, READY)
        assert "forged" not in text
        assert "\x1b" not in text


def test_s8_a_flood_is_cut_and_not_kept(lied_to: Callable[..., tuple[str, Liar]]) -> None:
    for flood in (
        message(b"N", b"Mnotice\0" + b"x" * 8000 + b"\0\0") * 2000,
        message(b"S", b"a\0" + b"x" * 8000 + b"\0") * 2000,
        row_description(25) + message(b"D", struct.pack("!hi", 1, 1) + b"x") * 20_000,
        b"N" + struct.pack("!i", 2**30) + b"x" * 2**20,
    ):
        text, _ = lied_to(WELCOME, flood)
        assert "more than it was asked for" in text or "does not speak" in text


def test_s8_a_server_that_trickles_is_given_up_in_time(
    lied_to: Callable[..., tuple[str, Liar]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes soon enough; all of them do not."""
    monkeypatch.setattr(rows_module, "STORE_DEADLINE_S", 1.0)
    text, _ = lied_to(b"", *(word for byte in WELCOME for word in (0.2, Trickle(bytes([byte])))))
    assert "in time" in text


def test_s8_the_password_is_never_sent_in_the_clear_nor_as_md5(lied_to: Callable[..., tuple[str, Liar]]) -> None:
    for said in (authentication(3), authentication(5, b"salt"), authentication(7), authentication(2)):
        text, liar = lied_to(said, READY)
        assert "SCRAM" in text
        assert PASSWORD not in liar.heard
        assert b"md5" not in liar.heard


def test_s8_the_server_does_not_choose_how_long_scram_takes(lied_to: Callable[..., tuple[str, Liar]]) -> None:
    sasl = authentication(10, b"SCRAM-SHA-256\0\0")
    for rounds in (b"100000000", b"9" * 40, b"0"):
        text, liar = lied_to(sasl, authentication(11, b"r=x,s=c2FsdHNhbHRzYWx0,i=" + rounds))
        assert "rounds of SCRAM" in text or rounds == b"0"
        assert PASSWORD not in liar.heard


# --- histories ---


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[PostgresUrl]:
    schema = f"t{secrets.token_hex(6)}"
    yield parse_url(postgres.url(schema))
    postgres.sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


Tables = dict[str, list[list[object]]]


def dumped(server: PostgresServer, schema: str) -> Tables:
    return {table: server.sql(f"SELECT * FROM {schema}.{table}") for table in (*TABLES, "store")}


def restored(server: PostgresServer, schema: str, tables: Tables) -> None:
    """As its owner does, in one transaction, while sessions are open."""
    for table, rows in tables.items():
        server.sql(f"DELETE FROM {schema}.{table}")
        for row in rows:
            places = ", ".join(f":p{number}" for number in range(len(row)))
            server.sql(f"INSERT INTO {schema}.{table} VALUES ({places})", parameters=row)


def test_s7_a_database_brought_back_under_a_service_that_runs_is_written_no_more(
    postgres: PostgresServer, url: PostgresUrl
) -> None:
    store = SealedStore(PostgresRows(url), KEY, ID)
    try:
        assert list(store.load()) == []
        store.append([NewEntry(b"one", SecretBytes(b"1" * 32))])
        old = dumped(postgres, url.schema)
        store.append([NewEntry(b"two")])
        restored(postgres, url.schema, old)
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                store.append([NewEntry(b"three")])
            assert caught.value.code == "store-taken"
        assert dumped(postgres, url.schema) == old
    finally:
        store.close()


def test_s7_records_brought_back_but_for_the_fence_are_noticed(postgres: PostgresServer, url: PostgresUrl) -> None:
    """The owner knows of the fence and leaves it: what is read is held against what was written, and so at start."""
    store = SealedStore(PostgresRows(url), KEY, ID)
    try:
        assert list(store.load()) == []
        store.append([NewEntry(b"one")])
        old = dumped(postgres, url.schema)
        store.append([NewEntry(b"two"), NewEntry(b"three")])
        restored(postgres, url.schema, {table: rows for table, rows in old.items() if table != "store"})
        with pytest.raises(Tampered) as caught:
            store.read(1)
        assert caught.value.code == "store-missing"
        store.append([NewEntry(b"four")])
    finally:
        store.close()
    store = SealedStore(PostgresRows(url), KEY, ID)
    try:
        with pytest.raises(Tampered) as caught:
            list(store.load())
        assert caught.value.code == "store-missing"
    finally:
        store.close()


def test_s7_an_acknowledgement_that_was_a_lie_is_noticed_at_the_next_start(
    postgres: PostgresServer, url: PostgresUrl
) -> None:
    """It says that it committed, and did not keep it: a trigger of its owner's throws the entry away."""
    store = SealedStore(PostgresRows(url), KEY, ID)
    try:
        assert list(store.load()) == []
        store.append([NewEntry(b"one")])
        postgres.sql(
            f"CREATE FUNCTION {url.schema}.lose() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
        )
        postgres.sql(
            f"CREATE TRIGGER lose BEFORE INSERT ON {url.schema}.entries FOR EACH ROW"
            f" EXECUTE FUNCTION {url.schema}.lose()"
        )
        store.append([NewEntry(b"two", SecretBytes(b"2" * 32))])
        with pytest.raises(Tampered):
            store.read(1)
    finally:
        store.close()
    store = SealedStore(PostgresRows(url), KEY, ID)
    try:
        with pytest.raises(Tampered) as caught:
            list(store.load())
        assert caught.value.code == "store-truncated"
    finally:
        store.close()


def test_s7_records_of_another_replicas_namespace_open_as_its_copies_and_not_in_other_places(
    postgres: PostgresServer, url: PostgresUrl
) -> None:
    """Replicas share keys and records; what one holds elsewhere, or holds back, is noticed in the other."""
    other = parse_url(postgres.url(f"{url.schema}b"))
    first = SealedStore(PostgresRows(url), KEY, ID)
    second = SealedStore(PostgresRows(other), KEY, ID)
    try:
        for store, name in ((first, b"first"), (second, b"second")):
            assert list(store.load()) == []
            store.append([NewEntry(name + b" %d" % number, SecretBytes(name.ljust(32))) for number in range(3)])
    finally:
        first.close()
        second.close()
    for table in (ENTRIES, SECRETS):
        postgres.sql(
            f"UPDATE {url.schema}.{table} SET record = other.record FROM {other.schema}.{table} other"
            f" WHERE {table}.idx = 1 AND other.idx = 1"
        )
    store = SealedStore(PostgresRows(url), KEY, ID)
    try:
        with pytest.raises(Tampered) as caught:
            list(store.load())
        assert caught.value.code == "store-record"
    finally:
        store.close()
        postgres.sql(f"DROP SCHEMA {other.schema} CASCADE")
