"""The operator's socket of a KeyService that runs: what it tells, to whom, and one backup at a time."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.unix import socket_name
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import CONTROL_CONNECTIONS
from cloister.keyservice.backup.writing import HISTORY_FILE, BackupHistory, keep_backup
from cloister.keyservice.control import CONTROL_FILE, Control, ControlPath, make_control
from cloister.keyservice.standing import Standing
from cloister.testing.backups import quiet
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.rows import MemoryDisk, MemoryRows


@pytest.fixture
def ks() -> Iterator[EmbeddedKeyService]:
    ks = EmbeddedKeyService()
    yield ks
    ks.close()


def control_of(ks: EmbeddedKeyService, state: Path) -> Control:
    rows = MemoryRows(MemoryDisk())
    tee = ks.as_tee()
    standing = Standing(ks.assembled, rows, ks.settings, tee, SystemClock(), lambda: "http://127.0.0.1:1")
    return make_control(state, standing, root_file=state / "root.sealed", events=ks.events)


async def ask(path: Path, method: str, target: str, content: bytes = b"") -> bytes:
    client = HttpClient(SystemClock())
    try:
        answer = await asyncio.to_thread(
            lambda: client.request(method, f"unix:{path}", target, content=content).checked()
        )
        return bytes(answer.body)
    finally:
        client.close()


def test_status_backup_and_the_note_of_it(ks: EmbeddedKeyService, tmp_path: Path) -> None:
    async def run() -> None:
        control, path = control_of(ks, tmp_path), tmp_path / CONTROL_FILE
        await control.start(path)
        try:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            found = json.loads(await ask(path, "GET", ControlPath.STATUS))
            assert (found["keyservice"], found["entries"], found["role"]) == (ks.id.hex(), 1, "single")
            assert found["backup"] is None
            assert found["store"] == {"kind": "memory", "schema": 1, "bytes": 0}
            data = await ask(path, "GET", ControlPath.BACKUP)
            kept = keep_backup(tmp_path / "backup", io.BytesIO(data).read, quiet)
            assert kept.end.size == 1
            await ask(path, "POST", ControlPath.KEPT, json.dumps({"entries": 1}).encode())
            assert json.loads(await ask(path, "GET", ControlPath.STATUS))["backup"]["entries"] == 1
            assert BackupHistory(tmp_path).newest is not None
            age = ks.assembled.telemetry.registry.exposition().decode()
            assert "cloister_keyservice_backup_age_seconds -1" not in age
            for method, target, content in (
                ("GET", "/v1/description", b""),
                ("POST", ControlPath.KEPT, b"[]"),
                ("POST", ControlPath.KEPT, b'{"entries": -1}'),
                ("POST", ControlPath.KEPT, b'{"entries": true}'),
                ("POST", ControlPath.BACKUP, b""),
            ):
                with pytest.raises(InvalidInput):
                    await ask(path, method, target, content)
        finally:
            await control.stop()
        assert not path.exists()

    asyncio.run(run())


def test_one_backup_at_a_time_and_one_that_is_given_up_makes_room(ks: EmbeddedKeyService, tmp_path: Path) -> None:
    async def run() -> None:
        began, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def pieces() -> Iterator[bytes]:
            yield b"header"
            loop.call_soon_threadsafe(began.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(60)
            yield b"rest"

        rows = MemoryRows(MemoryDisk())
        standing = Standing(ks.assembled, rows, ks.settings, ks.as_tee(), SystemClock(), lambda: "")
        control = Control(
            backup=pieces, standing=standing, history=BackupHistory(tmp_path), clock=SystemClock(), log=ks.events
        )
        path = tmp_path / CONTROL_FILE
        await control.start(path)
        try:
            first = asyncio.create_task(ask(path, "GET", ControlPath.BACKUP))
            await began.wait()
            with pytest.raises(Unavailable) as caught:
                await ask(path, "GET", ControlPath.BACKUP)
            assert caught.value.code == "backup-running"
            assert json.loads(await ask(path, "GET", ControlPath.STATUS))["entries"] == 1  # it goes on beside it
            go_on.set()
            assert await first == b"headerrest"
            assert await ask(path, "GET", ControlPath.BACKUP) == b"headerrest"
            go_on.clear()
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(b"GET /backup HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await reader.readuntil(b"header")
            writer.close()  # it is given up in the middle
            go_on.set()
            found, codes = b"", set()
            while not found:
                try:
                    found = await ask(path, "GET", ControlPath.BACKUP)
                except Unavailable as error:
                    codes.add(error.code)
            assert found == b"headerrest"
            assert codes <= {"backup-running"}
        finally:
            await control.stop()

    asyncio.run(run())


def test_a_store_that_fails_ends_a_backup_before_its_end(ks: EmbeddedKeyService, tmp_path: Path) -> None:
    async def run() -> None:
        def pieces() -> Iterator[bytes]:
            yield b"header"
            raise Unavailable("store-unavailable", "the disk is away")

        standing = Standing(ks.assembled, MemoryRows(MemoryDisk()), ks.settings, ks.as_tee(), SystemClock(), lambda: "")
        control = Control(
            backup=pieces, standing=standing, history=BackupHistory(tmp_path), clock=SystemClock(), log=ks.events
        )
        await control.start(tmp_path / CONTROL_FILE)
        try:
            with pytest.raises(Unavailable) as caught:
                await ask(tmp_path / CONTROL_FILE, "GET", ControlPath.BACKUP)
            assert caught.value.code in {"answer-truncated", "no-answer"}
        finally:
            await control.stop()

    asyncio.run(run())


def test_a_place_where_no_socket_can_be_is_said_and_nothing_else(ks: EmbeddedKeyService, tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / CONTROL_FILE
        path.write_bytes(b"something else")
        control = control_of(ks, tmp_path)
        await control.start(path)
        await control.stop()
        assert path.read_bytes() == b"something else"
        assert [name for name, _, _ in ks.events.events if name == "control-failed"]  # type: ignore[attr-defined]

    asyncio.run(run())


def test_a_long_path_is_reached_by_way_of_its_folder(ks: EmbeddedKeyService, tmp_path: Path) -> None:
    async def run() -> None:
        folder = tmp_path / ("d" * 100) / ("e" * 100)
        folder.mkdir(parents=True)
        control, path = control_of(ks, tmp_path), folder / CONTROL_FILE
        await control.start(path)
        try:
            assert json.loads(await ask(path, "GET", ControlPath.STATUS))["entries"] == 1
            client = AsyncHttpClient()
            answer = await client.request("GET", f"unix:{path}", ControlPath.STATUS)
            assert answer.status == 200
            await client.close()
        finally:
            await control.stop()

    asyncio.run(run())
    with pytest.raises(FileNotFoundError), socket_name(tmp_path / ("x" * 120) / "none"):
        pass


def test_on_the_loopback_where_unix_sockets_do_not_reach_and_nowhere_else(
    ks: EmbeddedKeyService, tmp_path: Path
) -> None:
    async def run() -> None:
        control = control_of(ks, tmp_path)
        for host in ("0.0.0.0", "192.0.2.1", "::", "localhost", ""):  # refused
            with pytest.raises(InvalidInput):
                await control.start_on(host, 0)
        await control.start_on("127.0.0.1", 0)
        client = HttpClient(SystemClock())
        try:
            answer = await asyncio.to_thread(lambda: client.request("GET", control.address, ControlPath.BACKUP))
            assert keep_backup(tmp_path / "backup", io.BytesIO(answer.body).read, quiet).end.size == 1
        finally:
            client.close()
            await control.stop()

    asyncio.run(run())


def test_idle_connections_keep_no_operator_out(ks: EmbeddedKeyService, tmp_path: Path) -> None:
    async def run() -> None:
        control, path = control_of(ks, tmp_path), tmp_path / CONTROL_FILE
        await control.start(path)
        held = []
        try:
            for _ in range(2 * CONTROL_CONNECTIONS):
                each = socket.socket(socket.AF_UNIX)
                await asyncio.to_thread(each.connect, str(path))
                held.append(each)
            assert json.loads(await ask(path, "GET", ControlPath.STATUS))["entries"] == 1
        finally:
            for each in held:
                each.close()
            await control.stop()

    asyncio.run(run())


def test_a_note_that_somebody_wrote_over_is_none(tmp_path: Path) -> None:
    for content in (b"", b"{", b"[]", b'{"at": []}', b"[" * 4000, b'{"at": "x", "entries": 1}', b"9" * 4000):
        (tmp_path / HISTORY_FILE).write_bytes(content)
        assert BackupHistory(tmp_path).newest is None
    BackupHistory(tmp_path).note(7, 8)
    assert BackupHistory(tmp_path).newest == (7, 8)
