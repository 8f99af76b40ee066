"""TLS to the database: the server proves its name before it hears anything, unless that is left out by name."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.adapters.clock import SystemClock
from cloister.base.errors import Unavailable
from cloister.keyservice.storage.postgres import rows as rows_module
from cloister.keyservice.storage.postgres.rows import PostgresRows
from cloister.keyservice.storage.postgres.url import parse_url
from cloister.testing.authority import Authority
from cloister.testing.postgres import PostgresServer


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return made(tmp_path / "good")


def made(folder: Path) -> Authority:
    folder.mkdir()
    authority = Authority(folder, SystemClock().now())
    (folder / "root.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    return authority


@pytest.fixture
def tls(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresServer]:
    """Whatever a test does to its certificates is undone."""
    monkeypatch.setattr(rows_module, "STORE_RECONNECT_S", 0.0)
    yield postgres
    postgres.setting("ssl", "off")


def url(server: PostgresServer, roots: Path) -> str:
    return server.url(f"t{secrets.token_hex(6)}", sslmode="verify-full", sslrootcert=str(roots))


def said(text: str) -> str:
    with pytest.raises(Unavailable) as caught:
        PostgresRows(parse_url(text))
    assert caught.value.code == "store-unavailable"
    return caught.value.message


def test_a_server_that_proves_its_name_is_used_over_tls(
    tls: PostgresServer, authority: Authority, tmp_path: Path
) -> None:
    tls.speak_tls(*authority.issue("127.0.0.1"))
    rows = PostgresRows(parse_url(url(tls, tmp_path / "good" / "root.pem")))
    assert rows._session is not None
    assert rows._session.run("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", bool) == [[True]]
    rows.reopen()
    rows.close()


def test_a_server_that_does_not_is_told_nothing(tls: PostgresServer, authority: Authority, tmp_path: Path) -> None:
    good = tmp_path / "good" / "root.pem"
    tls.speak_tls(*authority.issue("db.example"))
    assert "certificate is not good" in said(url(tls, good))
    tls.speak_tls(*authority.issue("127.0.0.1", expired=True))
    assert "certificate is not good" in said(url(tls, good))
    tls.speak_tls(*made(tmp_path / "other").issue("127.0.0.1"))
    assert "certificate is not good" in said(url(tls, good))
    tls.speak_tls(*authority.issue("127.0.0.1"))
    assert "certificate is not good" in said(tls.url("a", sslmode="verify-full"))  # the system's roots know nobody here
    assert "TLS fails" in said(url(tls, tmp_path / "missing.pem"))


def test_a_server_without_tls_is_refused(tls: PostgresServer, authority: Authority, tmp_path: Path) -> None:
    assert "speaks no TLS" in said(url(tls, tmp_path / "good" / "root.pem"))


def test_whoever_answers_in_its_place_hears_neither_name_nor_password(authority: Authority, tmp_path: Path) -> None:
    """It says that TLS may begin, and then goes on in the clear."""
    heard = bytearray()
    password = tmp_path / "password"
    password.write_bytes(b"the-password")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                heard.extend(connection.recv(65536))
                connection.sendall(b"S" + b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")
                with contextlib.suppress(OSError):
                    while data := connection.recv(65536):
                        heard.extend(data)

        thread = threading.Thread(target=answer)
        thread.start()
        where = f"postgresql://the-user@127.0.0.1:{server.getsockname()[1]}/x?schema=a&password_file={password}"
        roots = tmp_path / "good" / "root.pem"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows_module, "STORE_RECONNECT_S", 0.0)
            assert "TLS fails" in said(f"{where}&sslrootcert={roots}")
        thread.join(10)
    assert b"the-user" not in heard
    assert b"the-password" not in heard
    assert heard.startswith(b"\0\0\0\x08\x04\xd2\x16\x2f\x16\x03")  # the request for TLS, and a handshake
