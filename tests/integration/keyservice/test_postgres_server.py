"""The server that other tests rely on does what they think: dies, comes back with what was committed, stands still."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from pg8000.exceptions import DatabaseError, InterfaceError
from pg8000.native import Connection

from cloister.testing.postgres import DATABASE, ROLE, PostgresServer

Connect = Callable[..., Connection]


@pytest.fixture
def connect(postgres: PostgresServer) -> Iterator[Connect]:
    """Sessions of its role over TCP; their sockets are closed whatever becomes of them."""
    sockets: list[socket.socket] = []

    def open_session(password: str | None = None, timeout: float = 10.0) -> Connection:
        sockets.append(socket.create_connection(("127.0.0.1", postgres.port), timeout))
        said = password or postgres.password_file.read_text().strip()
        return Connection(ROLE, database=DATABASE, password=said, sock=sockets[-1], ssl_context=False)

    yield open_session
    for each in sockets:
        each.close()


def test_what_was_committed_outlives_a_kill_and_nothing_else_does(postgres: PostgresServer, connect: Connect) -> None:
    postgres.sql("CREATE TABLE IF NOT EXISTS public.kept (n INTEGER)")
    postgres.sql("INSERT INTO public.kept VALUES (1)")
    session = connect()
    postgres.sql(f"GRANT ALL ON public.kept TO {ROLE}")
    session.run("START TRANSACTION")
    session.run("INSERT INTO public.kept VALUES (2)")
    postgres.kill()
    with pytest.raises((InterfaceError, OSError)):
        session.run("COMMIT")
    with pytest.raises((InterfaceError, OSError)):
        connect()
    postgres.start()
    assert postgres.sql("SELECT n FROM public.kept") == [[1]]
    postgres.sql("DROP TABLE public.kept")


def test_its_role_needs_its_password(connect: Connect) -> None:
    with pytest.raises(DatabaseError) as caught:
        connect("wrong")
    assert caught.value.args[0]["C"] == "28P01"


def test_a_paused_one_answers_when_it_goes_on(postgres: PostgresServer, connect: Connect) -> None:
    session = connect(timeout=0.3)
    assert session.run("SELECT 1") == [[1]]
    postgres.pause()
    with pytest.raises((InterfaceError, OSError)):
        session.run("SELECT 1")
    postgres.resume()
    assert postgres.sql("SELECT 1") == [[1]]
