"""A real database on a real disk that is full: nothing acknowledged is lost, and it goes on once there is room."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pg8000.exceptions import DatabaseError, InterfaceError

from cloister.base.errors import CloisterError, Unavailable
from cloister.base.secret import SecretBytes
from cloister.keyservice.storage.port import NewEntry
from cloister.keyservice.storage.postgres import rows as rows_module
from cloister.keyservice.storage.postgres.rows import PostgresRows
from cloister.keyservice.storage.postgres.url import parse_url
from cloister.keyservice.storage.sealed import SealedStore
from cloister.testing.postgres import PostgresServer, find_server

KEY, ID = SecretBytes(b"k" * 32), b"i" * 32


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own, where also the account that the server runs as may go."""
    if find_server() is None:
        pytest.skip("no PostgreSQL server here: install Debian's `postgresql`")
    disk = Path(tempfile.mkdtemp(prefix="cloister-full-"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=112m,mode=755", "none", disk], check=False).returncode:
        disk.rmdir()
        pytest.skip("no file system can be mounted here: this needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)
    disk.rmdir()


def revive(server: PostgresServer) -> None:
    """What has no room for its write-ahead log begins anew by itself, or ends and is started again."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if not server.runs:
                server.start()
            server.sql("SELECT 1")
        except (CloisterError, InterfaceError, DatabaseError, OSError):
            time.sleep(0.1)
        else:
            return


def test_a_full_disk_is_unavailable_and_service_resumes(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "STORE_RECONNECT_S", 0.0)
    data = small_disk / "data"
    data.mkdir(mode=0o700)
    settings = {"max_wal_size": "32MB", "min_wal_size": "32MB", "autovacuum": "off"}
    with PostgresServer(data=data, settings=settings) as server:
        store = SealedStore(PostgresRows(parse_url(server.url("a"))), KEY, ID)
        assert list(store.load()) == []
        ballast = small_disk / "ballast"
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
        ballast.write_bytes(bytes(free - 4 * 1024 * 1024))
        acknowledged: list[bytes] = []
        failed = 0
        for number in range(400):
            data_ = b"%d " % number + os.urandom(60_000)
            try:
                store.append([NewEntry(data_, SecretBytes(number.to_bytes(32, "big")))])
            except Unavailable as error:
                assert error.code == "store-unavailable"  # noqa: PT017  # each attempt may go well or not
                failed += 1
                if failed == 3:
                    break
            else:
                acknowledged.append(data_)
        assert failed == 3
        assert len(acknowledged) > 10
        assert "No space left on device" in server.log
        ballast.unlink()
        monkeypatch.undo()
        revive(server)
        store.append([NewEntry(b"there is room")])
        store.close()
        store = SealedStore(PostgresRows(parse_url(server.url("a"))), KEY, ID)
        assert list(store.load()) == [*acknowledged, b"there is room"]
        assert len(store.secrets()) == len(acknowledged)
        store.close()
