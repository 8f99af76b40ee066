"""Where a store in PostgreSQL is, as an operator writes it; a password is seen nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.base.errors import InvalidInput, Unavailable
from cloister.keyservice.storage.postgres.url import parse_url

SOUND = "postgresql://ks@db.example:6543/cloister?schema=replica0"


def test_everything_is_read() -> None:
    found = parse_url(SOUND + "&sslrootcert=/etc/db.pem&password_file=/run/secrets/db")
    assert (found.user, found.database, found.schema) == ("ks", "cloister", "replica0")
    assert (found.host, found.port, found.socket) == ("db.example", 6543, "")
    assert found.tls
    assert (found.roots, found.password_file) == (Path("/etc/db.pem"), Path("/run/secrets/db"))
    assert found.name == "'replica0' of database 'cloister' on db.example:6543"


def test_over_tcp_the_server_proves_its_name_unless_that_is_left_out_by_name() -> None:
    assert parse_url(SOUND).tls
    assert not parse_url(SOUND + "&sslmode=disable").tls


def test_a_unix_socket() -> None:
    found = parse_url("postgresql://ks@/cloister?schema=a&host=/run/postgresql")
    assert (found.host, found.socket, found.tls) == ("", "/run/postgresql/.s.PGSQL.5432", False)
    assert "/run/postgresql" in found.name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sqlite:///x",
        "postgresql://",
        "postgresql://db.example/cloister?schema=a",
        "postgresql://ks@db.example/?schema=a",
        "postgresql://ks@db.example/a/b?schema=a",
        "postgresql://ks@db.example:port/a?schema=a",
        "postgresql://ks@db.example:99999/a?schema=a",
        "postgresql://ks@db.example/cloister",
        "postgresql://ks@db.example/cloister?schema=",
        "postgresql://ks@db.example/cloister?schema=a&schema=b",
        "postgresql://ks@db.example/cloister?schema=A",
        "postgresql://ks@db.example/cloister?schema=a%22b",
        "postgresql://ks@db.example/cloister?schema=public",
        "postgresql://ks@db.example/cloister?schema=pg_catalog",
        "postgresql://ks@db.example/cloister?schema=" + "a" * 64,
        "postgresql://ks@db.example/cloister?schema=a&sslmode=prefer",
        "postgresql://ks@db.example/cloister?schema=a&sslmode=disable&sslrootcert=/x",
        "postgresql://ks@db.example/cloister?schema=a&options=-c%20fsync",
        "postgresql://ks@db.example/cloister?schema=a&host=/run",
        "postgresql://ks@/cloister?schema=a",
        "postgresql://ks@/cloister?schema=a&host=relative",
        "postgresql://ks@/cloister?schema=a&host=/run&sslmode=verify-full",
        "postgresql://ks@db.example/cloister?schema=a#x",
        "postgresql://ks@db.example/clo%00ister?schema=a",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_url(text)
    assert caught.value.code == "store-url"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ks:hunter2@db.example/cloister?schema=a",
        "postgresql://ks:hunter2@db.example/cloister",
        "postgresql://ks@db.example/cloister?schema=a&password=hunter2",
        "postgresql://ks:hunter2@db.example:bad/cloister?schema=a",
    ],
)
def test_a_password_in_it_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_url(text)
    assert "hunter2" not in str(caught.value)


def test_the_password_is_read_anew_from_its_file_or_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "password"
    url = parse_url(f"{SOUND}&password_file={path}")
    for text in ("hunter1\n", "hunter2", "hunter3 \r\n"):
        path.write_bytes(text.encode())
        password = url.password({"PGPASSWORD": "other"})
        assert password is not None
        assert password.reveal() == text.rstrip("\r\n").encode()
        assert text.strip() not in repr(password) + repr(url)
    plain = parse_url(SOUND)
    assert plain.password({}) is None
    found = plain.password({"PGPASSWORD": "of the environment"})
    assert found is not None
    assert found.reveal() == b"of the environment"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"x" * 5000])
def test_a_password_file_without_one_is_said(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Unavailable) as caught:
        parse_url(f"{SOUND}&password_file={path}").password()
    assert caught.value.code == "store-password"
