"""Processes: a KeyService under load is backed up, killed, wiped, and goes on from the backup, or hears it is old."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.base.errors import CloisterError, Unavailable
from cloister.log.receipt import check_statement_receipt
from cloister.testing.keyservice_process import HttpCaller, KeyServiceProcess
from cloister.testing.people import Person, simulation_policy
from cloister.testing.replica_processes import ReplicaProcesses
from cloister.testing.witness import WitnessProcess
from cloister.wire import calls
from cloister.wire.statements import DefinePolicy

RUNNERS = 4


class Cloud:
    """One KeyService, and three witnesses of which two must sign, or none."""

    def __init__(self, folder: Path, witnesses: int) -> None:
        self.folder = folder
        self.witnesses = [WitnessProcess(folder / f"w{number}") for number in range(witnesses)]
        for witness in self.witnesses:
            witness.start()
        keys = json.dumps([witness.key.public_key.hex() for witness in self.witnesses])
        settings = (
            f'rollback_protection = "witnesses"\nwitnesses = {keys}\nwitness_threshold = 2\n' if witnesses else ""
        )
        words = [word for witness in self.witnesses for word in ("--witness", witness.address)]
        self.ks = KeyServiceProcess(folder, settings=settings if witnesses else "", arguments=tuple(words))
        for witness in self.witnesses:
            witness.add(self.ks.root.log_key.public_key)
        self.ks.start()
        self.callers: list[HttpCaller] = []
        self.acknowledged: dict[bytes, int] = {}
        self.people: list[Person] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._some = threading.Semaphore(0)

    def person(self) -> Person:
        """Somebody new."""
        person = Person(self.ks.root.id, self.ks.clock)
        caller = self.caller()
        self.say(caller, person, person.register())
        return person

    def caller(self) -> HttpCaller:
        caller = HttpCaller(self.ks.address)
        self.callers.append(caller)
        return caller

    def say(self, caller: HttpCaller, person: Person, statement: bytes) -> None:
        result = caller.call(calls.STATEMENT, statement)
        check_statement_receipt(result, statement, self.ks.root.log_keys)
        self.acknowledged[person.id] = person.sequence

    def load(self) -> None:
        """People say things until :meth:`rest`."""

        def run(person: Person) -> None:
            caller, number = self.caller(), 0
            while not self._stop.is_set():
                number += 1
                policy = simulation_policy(number.to_bytes(8, "big") * 6)
                self.say(caller, person, person.statement(DefinePolicy(policy.encode())))
                self._some.release()

        self.people = [self.person() for _ in range(RUNNERS)]
        self._threads = [threading.Thread(target=run, args=(person,), daemon=True) for person in self.people]
        for thread in self._threads:
            thread.start()

    def hear(self, count: int) -> None:
        """Wait until so many more things were acknowledged."""
        while self._some.acquire(blocking=False):
            pass
        for _ in range(count):
            assert self._some.acquire(timeout=60)

    def rest(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def command(self, action: str, *words: str) -> tuple[int, dict[str, Any], str]:
        return command(action, *words)

    def backup(self, name: str) -> tuple[int, dict[str, Any], str]:
        return self.command("backup", "--state", str(self.ks.state), "--out", str(self.folder / name), *self.tee())

    def restore(self, name: str, *words: str) -> tuple[int, dict[str, Any], str]:
        place = ["--state", str(self.ks.state), "--from", str(self.folder / name)]
        return self.command("restore", *place, *self.tee(), *words)

    def tee(self) -> list[str]:
        return ["--simulation-key", str(self.ks.key_file), "--configuration", str(self.ks.configuration)]

    def asked(self) -> list[str]:
        return [word for witness in self.witnesses for word in ("--witness", witness.address)]

    def wipe(self) -> None:
        """``kill -9``, and the disk is gone."""
        self.ks.kill()
        shutil.rmtree(self.ks.state)

    def sequences(self) -> dict[bytes, int]:
        caller = self.caller()
        return {
            person.id: int(caller.call(calls.QUERY, person.query("whoami", {}))["sequence"]) for person in self.people
        }

    def close(self) -> None:
        self._stop.set()
        for caller in self.callers:
            caller.close()
        for process in (self.ks, *self.witnesses):
            process.kill()


def command(action: str, *words: str) -> tuple[int, dict[str, Any], str]:
    """``cloister keyservice ACTION``: status, what it printed as JSON, and what a person saw."""
    done = subprocess.run(
        [sys.executable, "-m", "cloister", "keyservice", action, "--json", *words],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, json.loads(done.stdout or done.stderr), done.stderr


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path, 3)
    yield cloud
    cloud.close()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path, 0)
    yield cloud
    cloud.close()


def test_what_was_acknowledged_before_a_backup_under_load_is_in_it_and_witnesses_know_what_came_after(
    cloud: Cloud,
) -> None:
    cloud.load()
    cloud.hear(20)
    before = dict(cloud.acknowledged)
    status, made, _ = cloud.backup("first")
    assert (status, made["running"], made["sealed_root"]) == (0, True, True), made
    cloud.hear(RUNNERS + 1)  # of which one at least was said after it
    cloud.rest()
    cloud.wipe()
    status, told, _ = cloud.restore("first", *cloud.asked())
    assert (status, told["error"]) == (1, "backup-behind"), told
    assert int(told["details"]["behind"]) >= 1
    assert not cloud.ks.state.exists()
    status, done, _ = cloud.restore("first", *cloud.asked(), "--behind")
    assert (status, done["opened"], done["entries"]) == (0, True, made["entries"]), done
    cloud.ks.start()
    found = cloud.sequences()
    assert all(found[person] >= sequence for person, sequence in before.items())
    with pytest.raises(Unavailable) as caught:
        cloud.say(cloud.caller(), cloud.people[0], cloud.people[0].statement(DefinePolicy(b"p")))
    assert caught.value.code == "keyservice-superseded"


def test_a_backup_after_which_nothing_was_said_brings_it_back(cloud: Cloud) -> None:
    cloud.load()
    cloud.hear(20)
    cloud.rest()
    status, made, _ = cloud.backup("last")
    assert status == 0, made
    last = dict(cloud.acknowledged)
    cloud.wipe()
    status, done, _ = cloud.restore("last", *cloud.asked())
    assert (status, done["opened"], done["behind"]) == (0, True, 0), done
    told = sorted(map(int, done["witnesses"].values()))  # two of three signed; the third may have been slower
    assert told[1:] == [made["entries"]] * 2
    assert told[0] <= made["entries"]
    cloud.ks.start()
    assert cloud.sequences() == {person.id: last[person.id] for person in cloud.people}
    caller, person = cloud.caller(), cloud.people[0]
    person.sequence = last[person.id]
    cloud.say(caller, person, person.statement(DefinePolicy(simulation_policy(b"m" * 48).encode())))
    status, found, _ = cloud.command("status", "--state", str(cloud.ks.state))
    assert (status, found["releases"], found["entries"]) == (0, True, made["entries"] + 1), found
    assert [item["outcome"] for item in found["confirmed"]["witnesses"]].count("confirmed") >= 2


def test_one_without_witnesses_is_backed_up_running_and_stopped_and_says_what_it_cannot_know(alone: Cloud) -> None:
    state = str(alone.ks.state)
    status, found, _ = alone.command("status", "--state", state)
    assert (status, found["role"], found["backup"], found["releases"]) == (0, "single", None, True), found
    assert alone.backup("first")[0] == 0
    assert alone.backup("first")[1]["error"] == "file-exists"
    status, found, _ = alone.command("status", "--state", state)
    assert found["backup"]["entries"] == found["entries"] == 1
    assert oct((alone.ks.state / "control").stat().st_mode)[-3:] == "600"
    command = [sys.executable, "-m", "cloister", "keyservice", "backup", "--state", state, "--out", "-"]
    passed = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert len(passed.stdout) == (alone.folder / "first").stat().st_size
    (alone.folder / "passed").write_bytes(passed.stdout)
    alone.person()
    head = f"{found['entries'] + 1}:" + alone.caller().head().root.hex()
    assert alone.ks.stop() == 0
    status, told, _ = alone.command("status", "--state", state)
    assert (status, told["error"]) == (1, "keyservice-not-running")
    status, made, _ = alone.backup("stopped")
    assert (status, made["running"], made["entries"]) == (0, False, 2), made
    assert json.loads((alone.ks.state / "backup.json").read_text())["entries"] == 2
    status, told, _ = alone.restore("stopped")
    assert (status, told["error"]) == (1, "state-exists")
    shutil.rmtree(alone.ks.state)
    assert alone.restore("passed", "--not-before-head", head)[1]["error"] == "log-rollback"  # it is a whole one
    status, told, _ = alone.restore("first", "--not-before-head", head)
    assert (status, told["error"], told["details"]) == (1, "log-rollback", {"behind": "1"})
    status, told, _ = alone.restore("first", "--not-before-head", str(alone.folder / "stopped"))
    assert (status, told["error"]) == (1, "log-rollback")
    status, done, _ = alone.restore("stopped", "--not-before-head", head, "--keyservice", alone.ks.root.id.hex())
    assert (status, done["rollback_protection"]) == (0, "none"), done
    alone.ks.start("--control", "127.0.0.1:0")
    assert alone.caller().head().size == 2
    assert not (alone.ks.state / "control").exists()
    assert alone.command("status", "--state", state)[1]["error"] == "keyservice-not-running"
    assert alone.command("status", "--control", "http://127.0.0.1:9")[1]["error"] == "keyservice-not-running"


def test_a_killed_backup_or_restore_leaves_nothing_that_looks_whole(alone: Cloud) -> None:
    alone.person()
    alone.ks.kill()
    (alone.folder / "killed.part").write_bytes(b"half")
    status, made, _ = alone.backup("killed")
    assert (status, made["entries"]) == (0, 2), made
    assert not (alone.folder / "killed.part").exists()
    shutil.rmtree(alone.ks.state)
    alone.ks.state.mkdir()
    for name in ("store.sqlite.restored", "store.sqlite.restored-wal", "root.sealed.restored"):
        (alone.ks.state / name).write_bytes(os.urandom(5000))
    status, done, _ = alone.restore("killed")
    assert (status, done["entries"]) == (0, 2), done
    assert {path.name for path in alone.ks.state.iterdir()} == {"root.sealed", "store.sqlite", "store.sqlite.lock"}
    alone.ks.start()
    with pytest.raises(CloisterError):
        alone.say(alone.caller(), Person(bytes(32), alone.ks.clock), b"nothing")


def test_a_replica_on_a_new_machine_begins_with_a_backup_and_gets_root_and_rest_from_the_others(tmp_path: Path) -> None:
    world = ReplicaProcesses(tmp_path)
    try:
        world.start_all()
        number = world.leader()
        caller, person = HttpCaller(world.replicas[number].address), Person(world.root.id, world.clock)
        caller.call(calls.STATEMENT, person.register())
        follower, lost = (other for other in range(3) if other != number)
        state = world.replicas[follower].folder / "state"
        while command("status", "--state", str(state))[1]["entries"] < caller.head().size:
            threading.Event().wait(0.05)  # it follows
        status, made, _ = command("backup", "--state", str(state), "--out", str(tmp_path / "backup"))
        assert (status, made["running"]) == (0, True), made
        size = made["entries"]
        assert made["confirmed"] is None or made["confirmed"] <= size
        world.replicas[lost].kill()
        place = world.replicas[lost].folder / "state"
        shutil.rmtree(place)
        statement = person.statement(DefinePolicy(simulation_policy(b"m" * 48).encode()))
        caller.call(calls.STATEMENT, statement)  # which the backup has not
        caller.close()
        words = ["--state", str(place), "--from", str(tmp_path / "backup"), "--configuration", str(world.configuration)]
        words += ["--simulation-key", str(world.replicas[lost].folder / "platform.key")]
        words += [word for witness in world.witnesses for word in ("--witness", witness.address)]
        status, told, _ = command("restore", *words)
        assert (status, told["error"]) == (1, "backup-behind"), told
        status, done, _ = command("restore", *words, "--behind")
        assert (status, done["opened"], done["entries"]) == (0, False, size), done
        assert not (place / "root.sealed").exists()
        world.start(lost)
        world.leader()
        found = command("status", "--state", str(place))[1]
        assert found["entries"] > size
        assert found["role"] == "follower"
        assert found["replica"]["behind"] == 0
    finally:
        world.close()
