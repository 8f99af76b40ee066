"""The disk fails under the KeyService: a clear error, nothing acknowledged is lost, and it goes on by itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cloister.base.errors import Refused, Unavailable
from cloister.testing import disk_faults
from cloister.testing.disk_faults import failing, no_file_longer
from cloister.testing.keyservice_process import HttpCaller, KeyServiceProcess
from cloister.testing.people import Person, simulation_policy
from cloister.wire import calls
from cloister.wire.statements import DefinePolicy

strace = pytest.mark.skipif(not disk_faults.AVAILABLE, reason="strace is not installed")


class Said:
    """One person's policies, and which of them were acknowledged."""

    def __init__(self, process: KeyServiceProcess) -> None:
        self.process = process
        self.person = Person(process.root.id, process.clock)
        self.acknowledged: dict[int, int] = {}
        self.number = 0
        self.caller = HttpCaller(process.address)
        self.caller.call(calls.STATEMENT, self.person.register())

    def say(self) -> None:
        self.number += 1
        body = DefinePolicy(simulation_policy(self.number.to_bytes(48, "big")).encode())
        answer = self.caller.call(calls.STATEMENT, self.person.statement(body))
        self.acknowledged[self.number] = answer["entry"]

    def refused(self) -> str:
        with pytest.raises(Unavailable) as caught:
            self.say()
        return caught.value.code

    def check(self, *, doubtful: int = 0) -> None:
        """Each one that was acknowledged is there, in its place; nothing else is, but so many at most."""
        there = [number for number in range(1, self.number + 1) if self.has(number)]
        assert not set(self.acknowledged) - set(there)
        assert len(set(there) - set(self.acknowledged)) <= doubtful
        assert self.caller.head().size == 2 + len(there)
        assert all(entry == 2 + there.index(number) for number, entry in self.acknowledged.items())

    def has(self, number: int) -> bool:
        digest = simulation_policy(number.to_bytes(48, "big")).digest
        try:
            self.caller.call(calls.QUERY, self.person.query("policy", {"digest": digest}))
        except Refused as error:
            if error.code != "policy-unknown":
                raise
            return False
        return True

    def restart(self) -> None:
        self.caller.close()
        self.process.kill()
        self.process.start()
        self.caller = HttpCaller(self.process.address)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[KeyServiceProcess]:
    process = KeyServiceProcess(tmp_path)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def said(process: KeyServiceProcess) -> Iterator[Said]:
    said = Said(process)
    yield said
    said.caller.close()


FAULTS: dict[str, Callable[[int], AbstractContextManager[None]]] = {
    "fsync fails": lambda pid: failing(pid, ["fsync", "fdatasync"], "EIO"),
    "writes fail": lambda pid: failing(pid, ["pwrite64"], "EIO"),
    "no space left": lambda pid: failing(pid, ["pwrite64"], "ENOSPC"),
    "quota used up": lambda pid: failing(pid, ["pwrite64", "ftruncate"], "EDQUOT"),
    "read-only file system": lambda pid: failing(
        pid, ["pwrite64", "ftruncate", "fsync", "fdatasync", "unlink"], "EROFS"
    ),
}


@strace
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_disk_and_its_end(fault: str, process: KeyServiceProcess, said: Said) -> None:
    said.say()
    with FAULTS[fault](process.pid):
        assert [said.refused() for _ in range(3)] == ["store-unavailable"] * 3
        answer = said.caller.call(calls.QUERY, said.person.query("whoami"))
        assert answer["id"] == said.person.id  # what is there can still be asked for
    said.say()  # by itself: nobody restarted anything
    said.say()
    said.check()
    said.restart()
    said.check()
    said.say()
    assert '"code":"store-unavailable"' in process.log.read_text()


@strace
@pytest.mark.parametrize("fault", FAULTS)
def test_kill_9_while_the_disk_fails(fault: str, process: KeyServiceProcess, said: Said) -> None:
    said.say()
    with FAULTS[fault](process.pid):
        assert said.refused() == "store-unavailable"
        said.restart()
    said.check(doubtful=1)  # whole, though nobody was told: all of it was written before the fsync failed
    said.say()
    said.check(doubtful=1)


def test_no_file_may_grow(process: KeyServiceProcess, said: Said) -> None:
    """Without strace: the kernel itself refuses to write."""
    said.say()
    assert (process.state / "store.sqlite-wal").stat().st_size > 3 * 4096
    with no_file_longer(process.pid, 3 * 4096):
        assert said.refused() == "store-unavailable"
        assert said.refused() == "store-unavailable"
    said.say()
    said.check()
    said.restart()
    said.check()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "cloister-test", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs rights that are not here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_and_one_with_room_again(small: Path, request: pytest.FixtureRequest) -> None:
    process = KeyServiceProcess(small)
    request.addfinalizer(process.kill)
    process.start()
    said = Said(process)
    said.say()
    ballast = small / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(descriptor, bytes(4096))
    os.close(descriptor)
    assert said.refused() == "store-unavailable"
    ballast.unlink()
    said.say()
    said.check()
    said.restart()
    said.check()
    said.caller.close()
    process.kill()


def test_starting_on_a_read_only_file_system(small: Path, request: pytest.FixtureRequest) -> None:
    process = KeyServiceProcess(small, log=small.parent / "log.jsonl")
    request.addfinalizer(process.kill)
    process.start()
    said = Said(process)
    said.say()
    said.caller.close()
    process.kill()
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(Unavailable, match=r"store-unavailable|state-unwritable"):
        process.start()
    subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
    process.start()
    said.caller = HttpCaller(process.address)
    said.check()
    said.say()
    said.caller.close()
    process.kill()
