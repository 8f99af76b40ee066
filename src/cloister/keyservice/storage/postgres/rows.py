"""``Rows`` in one PostgreSQL database: a namespace for each replica, one process at a time, and fenced (13.22).

Who opens a namespace takes its advisory lock, which lives as long as the session, and then replaces the namespace's
*fence*, 16 random bytes in a row of their own. Every write replaces it too, and names the one it replaces: a process
that lost its lock without knowing it, or whose database was brought back to another time, changes nothing and stops.

A lost connection is made anew by itself. The lock is taken again, which waits for the session that held it to be over,
so whatever that was about to commit is decided then; and the fence found must be one that this process made.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, final

from cloister.base.errors import CloisterError, Tampered, Unavailable
from cloister.base.limits import (
    MAX_STORE_RECORD,
    STORE_DEADLINE_S,
    STORE_LOCK_S,
    STORE_PAGE_BYTES,
    STORE_PAGE_ROWS,
    STORE_RECONNECT_S,
    STORE_RETRY_S,
    STORE_STATEMENT_ROWS,
)
from cloister.keyservice.storage.migrations import NEWEST, Dialect, pending
from cloister.keyservice.storage.port import TABLES, Row, StoreFacts
from cloister.keyservice.storage.postgres.session import Lost, Rejected, Session
from cloister.keyservice.storage.postgres.url import PostgresUrl

NAME_LENGTH: Final = 16
_FENCE: Final = 16
_OLDEST: Final = 120_000  # server_version_num: of those that its makers still maintain some are newer, none older
_FIRST_PAUSE_S: Final = 0.005  # a session that was cut is over in that time
_LEAST: Final = -(2**63)
_GREATEST: Final = 2**63 - 1
_LOCK: Final = b"cloister/keyservice-store\x00"
_PAGE: Final = """
    SELECT idx, record FROM (
        SELECT idx, record, sum(octet_length(record)) OVER (ORDER BY idx) AS upto
        FROM {table} WHERE idx >= CAST(:first AS bigint) ORDER BY idx LIMIT CAST(:most AS integer)
    ) page WHERE upto - octet_length(record) < CAST(:room AS bigint) ORDER BY idx"""
_PUT: Final = """
    INSERT INTO {table} (idx, record)
    SELECT * FROM unnest(CAST(:indices AS bigint[]), CAST(:records AS bytea[]))
    ON CONFLICT (idx) DO UPDATE SET record = excluded.record"""
# What a server says when its tables are not ours, or its disk does not hold what was written to it.
_READ_ONLY: Final = "25006"
_CORRUPT: Final = ("42P01", "42703", "42804", "42883", "42P07", "42P06", "3F000", "XX001", "XX002", "22")
_HINTS: Final = {
    "08": "What answers takes no settings of a session, as a pooler does: name the server itself.",
    "28": "Check the user of --store, and its password.",
    "3D": "The database of --store is not there; make it, and a role that owns it.",
    "42501": "The role may not do this: it must own the namespace, or be allowed to CREATE in the database.",
    _READ_ONLY: "The database is read-only, or a standby.",
    "53": "The database's host has no room, memory or connections left.",
    "57": "The database was told to stop; the service resumes by itself.",
}


@final
class PostgresRows:
    """Records in one namespace, which is made when it is not there.

    :param patience_s: how long a namespace that somebody else has open is waited for.
    :ivar name: 16 random bytes, made with the namespace: what this replica is counted by (clause 13.17).
    :raises Unavailable: ``store-locked`` while another process has it; ``store-unavailable``; ``store-not-durable``;
        ``store-client-missing``; ``store-password``. :raises Refused: ``store-newer``.
    :raises Tampered: ``store-corrupt`` when the namespace holds something else.
    """

    def __init__(self, url: PostgresUrl, *, patience_s: float = STORE_LOCK_S) -> None:
        self._url = url
        self._tag = f"cloister-keyservice-{secrets.token_hex(8)}"
        self._inside = f'"{url.schema}".'
        self._known: set[bytes] = set()
        self._claim = secrets.token_bytes(_FENCE)
        self._claimed = False
        self._taken = False
        self._closed = False
        self._session: Session | None = None
        self._turn = threading.RLock()  # one exchange at a time, whichever thread asks
        self.name = b""
        self._connect(_after(STORE_DEADLINE_S), patience_s)

    # --- the port ---

    def scan(self, table: str, first: int | None = None) -> Iterator[tuple[int, bytes]]:
        """All records by index, a page at a time; see the port."""
        sql = _PAGE.format(table=self._table(table))
        least = _LEAST if first is None else first
        while True:
            page = self._read(sql, int, bytes, first=least, most=STORE_PAGE_ROWS, room=STORE_PAGE_BYTES)
            for index, record in page:
                if not least <= index <= _GREATEST:
                    raise _corrupt("its indices are in no order")
                yield index, record
                least = index + 1
            if not page or least > _GREATEST:
                return

    def get(self, table: str, index: int) -> bytes | None:
        """One record; see the port."""
        sql = f"SELECT record FROM {self._table(table)} WHERE idx = CAST(:index AS bigint)"  # noqa: S608
        found = self._read(sql, bytes, index=index)
        return bytes(found[0][0]) if found else None

    def write(self, put: Sequence[Row], drop: Sequence[tuple[str, int]]) -> None:
        """One transaction; see the port.

        What is cut before it is committed has not happened, and is tried once more over a new connection.

        :raises Unavailable: ``store-taken``: another process opened the namespace; for good.
        """
        with self._turn:
            self._write(put, drop, secrets.token_bytes(_FENCE))

    def _write(self, put: Sequence[Row], drop: Sequence[tuple[str, int]], fence: bytes) -> None:
        deadline = _after(STORE_DEADLINE_S)
        for again in (True, False):
            session = self._ready(deadline)
            committing = False
            try:
                if not self._claimed:
                    self._own(session)
                session.simple("START TRANSACTION")
                self._pass_fence(session, fence)
                self._change(session, put, drop)
                self._known.add(fence)
                committing = True
                session.simple("COMMIT")
            except Lost as error:
                self._hang_up()
                if committing or not again:
                    raise _unavailable(self._url, "cannot be written", str(error)) from error
                continue
            except Rejected as error:
                if committing:
                    self._hang_up()
                else:
                    self._roll_back(session)
                raise _translated(self._url, "cannot be written", error) from error
            except CloisterError:
                self._roll_back(session)
                raise
            self._known = {fence}
            return

    def reopen(self) -> None:
        """Over a new session, start again from what the database holds; see the port."""
        with self._turn:
            self._hang_up()
            self._connect(_after(STORE_DEADLINE_S), STORE_LOCK_S)

    def facts(self) -> StoreFacts:
        """What it is; see the port. How large it is the database's administrator sees."""
        return StoreFacts("postgresql", NEWEST)

    def close(self) -> None:
        """End the session, and its lock with it."""
        with self._turn:
            self._closed = True
            self._hang_up()

    # --- statements ---

    def _table(self, table: str) -> str:
        if table not in TABLES:
            msg = f"there is no table {table!r}"
            raise AssertionError(msg)
        return self._inside + table

    def _change(self, session: Session, put: Sequence[Row], drop: Sequence[tuple[str, int]]) -> None:
        for table in TABLES:
            rows = {row.index: row.record for row in put if row.table == table}
            if any(len(record) > MAX_STORE_RECORD for record in rows.values()):
                raise AssertionError("a record is longer than any may be")
            sql = _PUT.format(table=self._table(table))
            indices = list(rows)
            for at in range(0, len(indices), STORE_STATEMENT_ROWS):  # a rotation replaces all secrets at once
                part = indices[at : at + STORE_STATEMENT_ROWS]
                session.run(sql, indices=part, records=[rows[index] for index in part])
            gone = [index for name, index in drop if name == table]
            if gone:
                sql = f"DELETE FROM {self._table(table)} WHERE idx = ANY(CAST(:indices AS bigint[]))"  # noqa: S608
                session.run(sql, indices=gone)

    def _pass_fence(self, session: Session, fence: bytes) -> None:
        (mine,) = self._known
        if not self._replace_fence(session, mine, fence):
            self._taken = True
            raise self._lost_to_another()

    def _replace_fence(self, session: Session, old: bytes, new: bytes) -> bool:
        sql = f"UPDATE {self._inside}store SET fence = :new WHERE one = 1 AND fence = :old RETURNING one"  # noqa: S608
        return len(session.run(sql, int, new=new, old=old)) == 1

    def _read(self, sql: str, *kinds: type, **parameters: int) -> list[list[Any]]:
        deadline = _after(STORE_DEADLINE_S)
        for again in (True, False):
            try:
                with self._turn:
                    return self._ready(deadline).run(sql, *kinds, **parameters)
            except Lost as error:
                with self._turn:
                    self._hang_up()
                if not again:
                    raise _unavailable(self._url, "cannot be read", str(error)) from error
            except Rejected as error:
                raise _translated(self._url, "cannot be read", error) from error
        raise AssertionError

    def _roll_back(self, session: Session) -> None:
        try:
            session.simple("ROLLBACK")
        except (Lost, Rejected):
            self._hang_up()

    # --- sessions ---

    def _ready(self, deadline: float) -> Session:
        if self._session is None:
            self._connect(deadline, STORE_LOCK_S)
        if self._taken:
            raise self._lost_to_another()
        if self._session is None:
            raise AssertionError
        self._session.deadline = deadline
        return self._session

    def _hang_up(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.deadline = _after(STORE_RETRY_S)
            session.close()

    def _connect(self, deadline: float, patience_s: float) -> None:
        if self._taken:
            raise self._lost_to_another()
        if self._closed:
            raise _unavailable(self._url, "cannot be used", "it was closed")
        until = min(deadline, _after(STORE_RECONNECT_S))
        while True:
            try:
                self._open(deadline, patience_s)
            except Lost as error:
                if time.monotonic() + STORE_RETRY_S >= until:
                    raise _unavailable(self._url, "cannot be reached", str(error)) from error
            except Rejected as error:
                # 57P03: it starts or stops; 57P0x: it was told to stop. It will be back.
                if not error.state.startswith("57P") or time.monotonic() + STORE_RETRY_S >= until:
                    raise _translated(self._url, "cannot be opened", error) from error
            else:
                return
            time.sleep(STORE_RETRY_S)

    def _open(self, deadline: float, patience_s: float) -> None:
        session = Session(self._url, self._tag, deadline)
        try:
            self._check(session)
            self._lock(session, min(deadline, _after(patience_s)))
            self._prepare(session)
            self._claimed = False
            try:
                self._own(session)
            except Rejected as error:
                if not error.state.startswith(_READ_ONLY):
                    raise  # a database that takes no writes now can still be read; the next write tries again
        except BaseException:
            session.close()
            raise
        self._session = session

    def _check(self, session: Session) -> None:
        """An operator's mistakes; a host that wants to lie about them does so."""
        sql = """SELECT current_setting('server_version_num'), current_setting('fsync'),
            current_setting('synchronous_commit'), current_setting('full_page_writes'), pg_is_in_recovery()"""
        found = session.run(sql, str, str, str, str, bool)
        if len(found) != 1:
            raise _corrupt("its server does not tell its settings")
        version, fsync, commit, pages, standby = found[0]
        if not version.isdecimal() or len(version) > 9 or int(version) < _OLDEST:
            raise _unavailable(self._url, "cannot be used", f"its server is older than version {_OLDEST // 10_000}")
        for setting, value, good in (("fsync", fsync, "on"), ("full_page_writes", pages, "on"), ("", commit, "on")):
            if value != good:
                name = setting or "synchronous_commit"
                raise Unavailable(
                    "store-not-durable",
                    f"the database loses what it acknowledged when its host stops: {name} is not {good}",
                    hint="A KeyService acknowledges nothing that can be lost; switch it on.",
                )
        if standby:
            raise _unavailable(self._url, "cannot be used", "its server is a standby, which takes no writes")

    def _lock(self, session: Session, until: float) -> None:
        """Waits for a session that has it: one of ours that the server does not know to be gone yet is ended."""
        key = int.from_bytes(hashlib.sha256(_LOCK + self._url.schema.encode()).digest()[:8], "big", signed=True)
        pause = _FIRST_PAUSE_S
        while session.run("SELECT pg_try_advisory_lock(CAST(:key AS bigint))", bool, key=key) != [[True]]:
            if time.monotonic() + pause >= until:
                raise Unavailable(
                    "store-locked",
                    f"another process has the store {self._url.name} open",
                    hint="One KeyService at a time uses a namespace; stop the other one, or name another schema.",
                )
            with contextlib.suppress(Rejected):  # who may not look has to wait
                session.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = :tag AND usename = current_user AND pid <> pg_backend_pid()",
                    bool,
                    tag=self._tag,
                )
            time.sleep(pause)
            pause = min(2 * pause, STORE_RETRY_S)

    def _prepare(self, session: Session) -> None:
        """Make the namespace where there is none, and bring it to the newest schema: whole or not at all."""
        there = session.run("SELECT to_regclass(:store) IS NOT NULL", bool, store=f"{self._inside}store") == [[True]]
        if not there and self._known:
            raise _corrupt("its tables are gone")
        if there:
            version = session.run(f"SELECT version FROM {self._inside}store WHERE one = 1", int)  # noqa: S608
            if len(version) != 1:
                raise _corrupt("it does not say which schema it has")
            steps = pending(version[0][0])
        else:
            steps = pending(0)
        if not steps:
            return
        dialect = Dialect(integer="BIGINT", blob="BYTEA", inside=self._inside)
        session.simple("START TRANSACTION")
        if not there:
            if session.run("SELECT 1 FROM pg_namespace WHERE nspname = :name", int, name=self._url.schema) == []:
                session.simple(f'CREATE SCHEMA "{self._url.schema}"')
            session.simple(
                f"CREATE TABLE {self._inside}store (one INTEGER PRIMARY KEY CHECK (one = 1),"
                " version INTEGER NOT NULL, fence BYTEA NOT NULL, name BYTEA NOT NULL)"
            )
            session.run(
                f"INSERT INTO {self._inside}store VALUES (1, 0, :fence, :name)",  # noqa: S608
                fence=bytes(_FENCE),
                name=secrets.token_bytes(NAME_LENGTH),
            )
        for step in steps:
            for statement in step.sql(dialect):
                session.simple(statement)
        session.run(f"UPDATE {self._inside}store SET version = :version", version=steps[-1].version)  # noqa: S608
        session.simple("COMMIT")

    def _own(self, session: Session) -> None:
        """Replace the fence: after this nobody who had the namespace before writes into it."""
        found = session.run(f"SELECT fence, name FROM {self._inside}store WHERE one = 1", bytes, bytes)  # noqa: S608
        if len(found) != 1 or len(found[0][1]) != NAME_LENGTH:
            raise _corrupt("it has no fence, or no name")
        fence, name = found[0]
        if (self._known and fence not in self._known) or (self.name and name != self.name):
            self._taken = True
            raise self._lost_to_another()
        self.name = name
        self._known |= {fence, self._claim}
        if not self._replace_fence(session, fence, self._claim):
            self._taken = True
            raise self._lost_to_another()
        self._known = {self._claim}
        self._claimed = True
        self._claim = secrets.token_bytes(_FENCE)

    # --- errors ---

    def _lost_to_another(self) -> Unavailable:
        return Unavailable(
            "store-taken",
            f"the store {self._url.name} was opened by another process, or was restored, since this one opened it",
            hint="This one writes nothing any more. Find out which is the right one, and start it again.",
        )


def exists(url: PostgresUrl) -> bool:
    """Whether a log is in the namespace, whoever has it open; raises as :class:`PostgresRows`."""
    try:
        session = Session(url, "cloister-keyservice", _after(STORE_DEADLINE_S))
        try:
            sql = "SELECT to_regclass(:entries) IS NOT NULL"
            if session.run(sql, bool, entries=f'"{url.schema}".entries') != [[True]]:
                return False
            return session.run(f'SELECT EXISTS (SELECT 1 FROM "{url.schema}".entries)', bool) == [[True]]  # noqa: S608
        finally:
            session.close()
    except Lost as error:
        raise _unavailable(url, "cannot be reached", str(error)) from error
    except Rejected as error:
        raise _translated(url, "cannot be opened", error) from error


def _translated(url: PostgresUrl, what: str, error: Rejected) -> CloisterError:
    if error.state.startswith(_CORRUPT):
        return _corrupt(f"SQLSTATE {error.state}")
    return _unavailable(url, what, f"SQLSTATE {error.state}", error.state)


def _unavailable(url: PostgresUrl, what: str, cause: str, state: str = "") -> Unavailable:
    hints = [hint for start, hint in _HINTS.items() if state.startswith(start)]
    return Unavailable(
        "store-unavailable",
        f"the store {url.name} {what}: {cause}",
        retry_after=1.0,
        hint=hints[0] if hints else "Check the database; the service resumes by itself.",
    )


def _corrupt(why: str) -> Tampered:
    return Tampered("store-corrupt", f"the store's namespace in the database is not as we made it: {why}")


def _after(seconds: float) -> float:
    return time.monotonic() + seconds
