"""What only processes can do: never come up, have their id reused, be half started, leave files behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from cloister.base.errors import Unavailable
from cloister.platforms.local import LocalPlatform
from cloister.platforms.port import Gone, Ready
from cloister.platforms.records import KEPT_LOGS, Book, Entry, start_time

COMMAND = [sys.executable, "-m", "cloister.testing.instance"]


def _run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 60))


def _started(socket: Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([*COMMAND, "--listen", f"unix:{socket}"])
    while not Path(f"/proc/{child.pid}/cmdline").read_bytes():  # empty for an instant while it begins
        pass
    return child


def test_one_that_never_answers_is_killed_and_reported(tmp_path: Path) -> None:
    async def body() -> None:
        platform = LocalPlatform(tmp_path, [*COMMAND, "--ready-after-s", "3600"], start_timeout_s=0.5)
        events = platform.events()
        await platform.start("i-1", "g")
        gone = await anext(events)
        assert isinstance(gone, Gone)
        assert "-9" in gone.reason
        await platform.close()

    _run(body())


def test_a_command_that_fails_is_reported_and_its_log_is_kept(tmp_path: Path) -> None:
    async def body() -> None:
        platform = LocalPlatform(tmp_path, [sys.executable, "-c", "raise SystemExit('no such model')"])
        events = platform.events()
        await platform.start("i-1", "g")
        gone = await anext(events)
        assert isinstance(gone, Gone)
        assert "status 1" in gone.reason
        assert "no such model" in (tmp_path / "logs" / "i-1.log").read_text()
        await platform.close()

    _run(body())


def test_a_command_that_is_not_there_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        platform = LocalPlatform(tmp_path, [str(tmp_path / "missing")])
        with pytest.raises(Unavailable) as caught:
            await platform.start("i-1", "g")
        assert caught.value.code == "platform-unavailable"
        assert not await platform.running()
        assert not list((tmp_path / "instances").iterdir())
        await platform.close()

    _run(body())


def test_a_reused_process_id_is_not_taken_for_the_instance(tmp_path: Path) -> None:
    async def body() -> None:
        book = Book(tmp_path)
        book.open()
        book.write(Entry("i-1", "g", tmp_path / "no" / "s", os.getpid(), start_time(os.getpid()) - 1))
        book.write(Entry("i-2", "g", tmp_path / "no" / "s", 2**22 - 1, 1))
        (tmp_path / "instances" / "i-3.json").write_text('{"pid": ')
        book.close()
        platform = LocalPlatform(tmp_path, COMMAND)
        assert not await platform.running()
        assert not list((tmp_path / "instances").glob("*.json"))
        await platform.close()

    _run(body())


def test_one_whose_start_was_cut_short_is_found_by_its_socket(tmp_path: Path) -> None:
    """The driver was killed after the process began and before its id was written down."""

    async def body() -> None:
        folder = tmp_path / "x"
        folder.mkdir()
        child = _started(folder / "s")
        try:
            book = Book(tmp_path)
            book.open()
            book.write(Entry("i-1", "g", folder / "s"))
            book.close()
            platform = LocalPlatform(tmp_path, COMMAND)
            (found,) = await platform.running()
            assert found.instance == "i-1"
            events = platform.events()
            assert isinstance(await anext(events), Ready)
            assert json.loads((tmp_path / "instances" / "i-1.json").read_text())["pid"] == child.pid
            await platform.stop("i-1")
            assert isinstance(await anext(events), Gone)
            assert not folder.exists()
            await platform.close()
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()

    _run(body())


def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.open()
    for number in range(KEPT_LOGS + 8):
        book.log(f"i-{number:03}").write_text("")
        os.utime(book.log(f"i-{number:03}"), (number, number))
    book.forget("i-000", tmp_path / "no" / "s")
    assert min(path.stem for path in (tmp_path / "logs").iterdir()) == "i-008"
    book.close()


def test_a_folder_has_one_driver_at_a_time(tmp_path: Path) -> None:
    async def body() -> None:
        first, second = LocalPlatform(tmp_path, COMMAND), LocalPlatform(tmp_path, COMMAND)
        await first.open()
        with pytest.raises(Unavailable) as caught:
            await second.open()
        assert caught.value.code == "platform-in-use"
        await first.close()
        await second.open()
        await second.close()

    _run(body())
