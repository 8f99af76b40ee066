"""One session with the server: statements by the library, over a :class:`Line`; afterwards it is sound, or of no use.

The server's own words are repeated nowhere: of an error only its five characters of SQLSTATE, for they are the host's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, final

from cloister.base.errors import Tampered, Unavailable
from cloister.base.limits import STORE_STATEMENT_S
from cloister.keyservice.storage.postgres.line import Line, LineError
from cloister.keyservice.storage.postgres.url import PostgresUrl

_STATE: Final = re.compile(r"[0-9A-Z]{5}")
_INT8, _INT4, _BYTEA, _TEXT, _BOOL = 20, 23, 17, 25, 16
_MILLISECONDS: Final = str(int(STORE_STATEMENT_S * 1000))
# What holds for the session whatever the server's defaults are. A pooler that would mix sessions refuses these.
_PARAMETERS: Final = {
    "client_encoding": "UTF8",
    "synchronous_commit": "on",  # durable when COMMIT returns
    "statement_timeout": _MILLISECONDS,
    "lock_timeout": _MILLISECONDS,
    "idle_in_transaction_session_timeout": _MILLISECONDS,
    "tcp_keepalives_idle": "10",  # the server notices within half a minute that we are gone, and gives up our lock
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "default_transaction_isolation": "read committed",  # the fence is compared with what is there when its turn comes
    "bytea_output": "hex",
    "row_security": "off",  # an error rather than a part of the rows
}


class Lost(Exception):
    """The connection is gone, and what was under way may have happened."""


class Rejected(Exception):
    """The server answered with an error; the session goes on.

    :ivar state: its SQLSTATE, or ``?????``.
    """

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.state = state


@final
class Session:
    """Connected and authenticated.

    :param tag: by which the server's list of sessions names this process.
    :raises Lost: it cannot be reached until ``deadline``. :raises Rejected: it lets nobody in.
    :raises Unavailable: ``store-client-missing``: the extra is not installed; ``store-password``.
    """

    def __init__(self, url: PostgresUrl, tag: str, deadline: float) -> None:
        try:
            from pg8000.exceptions import DatabaseError
            from pg8000.native import Connection
        except ImportError as error:
            raise Unavailable(
                "store-client-missing",
                "this installation has no client for PostgreSQL",
                hint="Install it: pip install 'cloister[postgres]'.",
            ) from error
        self._errors: type[Exception] = DatabaseError
        self._prepared: dict[str, Any] = {}
        self._sound = True
        self.deadline = deadline
        secret = url.password()
        try:
            self._line = Line(url, deadline, password=secret is not None)
        except LineError as error:
            raise Lost(str(error)) from error
        try:
            self._connection = self._ask(
                lambda: Connection(
                    url.user,
                    database=url.database,
                    password=None if secret is None else secret.reveal(),
                    application_name=tag,
                    startup_params=dict(_PARAMETERS),
                    sock=self._line,
                    ssl_context=False,
                )
            )
        except BaseException:
            self._line.close()
            raise
        self._connection.password = self._connection.auth = None  # it was used
        # Types that our statements have; a server that says another one gets its text taken for text.
        kinds: Mapping[int, Callable[[str], Any]] = {_INT8: int, _INT4: int, _BYTEA: _bytes, _BOOL: _bool}
        self._connection.pg_types = _Types(kinds)

    def simple(self, sql: str) -> None:
        """A statement without parameters, whose rows nobody wants."""
        self._ask(lambda: self._connection.execute_simple(sql))

    def run(self, sql: str, *kinds: type, **parameters: Any) -> list[list[Any]]:
        """A statement's rows; parameters are named ``:name`` in it. It is prepared once a session.

        :param kinds: of the columns; no column is NULL.
        :raises Tampered: ``store-corrupt``: the answer has other columns.
        """
        found: list[list[Any]] = self._ask(lambda: self._run(sql, parameters))
        for row in found:
            if [type(value) for value in row] != list(kinds):
                raise Tampered("store-corrupt", "the database's answer is of another kind than was asked for")
        return found

    def _run(self, sql: str, parameters: dict[str, Any]) -> list[list[Any]]:
        statement = self._prepared.get(sql)
        if statement is None:
            statement = self._prepared[sql] = self._connection.prepare(sql)
        return list(statement.run(**parameters) or [])

    def _ask(self, what: Callable[[], Any]) -> Any:
        """One exchange. A server can make the library stumble over anything: then the session is over."""
        if not self._sound:
            raise Lost("the connection was given up")
        self._sound = False
        self._line.begin(self.deadline)
        try:
            found = what()
        except self._errors as error:
            self._sound = True
            raise Rejected(_state(error)) from error
        except Exception as error:
            raise self._understood(error) from error
        self._sound = True
        return found

    def _understood(self, error: Exception) -> Lost | Rejected:
        """The library wraps what :class:`Line` says, or trips over the end of a session whose beginning was refused."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, LineError):
                return Lost(str(cause))
            if isinstance(cause, self._errors):
                return Rejected(_state(cause))
            cause = cause.__cause__ or cause.__context__
        return Lost("it does not speak as PostgreSQL does")

    def close(self) -> None:
        """Say good-bye if that is possible, and hang up."""
        if self._sound:
            with contextlib.suppress(Exception):
                self._line.begin(self.deadline)
                self._connection.close()
        self._line.close()


class _Types(dict[int, Callable[[str], Any]]):
    """What a column's type makes of its text; anything that we never ask for stays text."""

    def __missing__(self, _oid: int) -> Callable[[str], Any]:
        return str


def _bytes(text: str) -> bytes:
    if not text.startswith("\\x"):
        raise ValueError("a bytea that is not in hexadecimal")
    return bytes.fromhex(text[2:])


def _bool(text: str) -> bool:
    return text == "t"


def _state(error: BaseException) -> str:
    said = error.args[0].get("C", "") if error.args and isinstance(error.args[0], dict) else ""
    return said if _STATE.fullmatch(said) else "?????"
