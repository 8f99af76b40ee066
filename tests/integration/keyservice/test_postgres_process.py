"""KeyServices as processes on a real PostgreSQL: it is killed under them, so are they, and nobody loses anything."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.base.errors import Refused, Unavailable
from cloister.client.client import Client
from cloister.client.identity import create_identity
from cloister.testing.keyservice_process import HttpCaller, KeyServiceProcess
from cloister.testing.people import Person, simulation_policy
from cloister.testing.postgres import PostgresServer
from cloister.testing.replica_processes import ReplicaProcesses
from cloister.wire import calls
from cloister.wire.statements import DefinePolicy


@pytest.fixture
def schemas(postgres: PostgresServer) -> Iterator[list[str]]:
    """Names of namespaces of this test's own, which go with it."""
    found = [f"t{secrets.token_hex(6)}" for _ in range(3)]
    yield found
    for schema in found:
        postgres.sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
def process(tmp_path: Path, postgres: PostgresServer, schemas: list[str]) -> Iterator[KeyServiceProcess]:
    process = KeyServiceProcess(tmp_path, store=postgres.url(schemas[0]))
    yield process
    process.kill()


class Crowd:
    """People who register, one after the other in each thread, and are remembered once that is acknowledged."""

    def __init__(self, process: KeyServiceProcess, threads: int) -> None:
        self.process = process
        self.changed = threading.Condition()
        self.known: list[Person] = []
        self.codes: set[str] = set()
        self.stopping = False
        self.errors: list[BaseException] = []
        self.threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def _run(self) -> None:
        try:
            while not self.stopping:
                self._one(Person(self.process.root.id, self.process.clock))
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            self.errors.append(error)

    def _one(self, person: Person) -> None:
        statement = person.register()
        while not self.stopping:
            try:
                caller = HttpCaller(self.process.address)
                try:
                    caller.call(calls.STATEMENT, statement)
                finally:
                    caller.close()
            except Unavailable as error:
                self.codes.add(error.code)
                continue
            except Refused as error:
                if error.code != "identity-known":  # the first time it was written, and could not be acknowledged
                    raise
            with self.changed:
                self.known.append(person)
                self.changed.notify_all()
            return

    def wait_for(self, more: int) -> None:
        with self.changed:
            enough = len(self.known) + more
            assert self.changed.wait_for(lambda: len(self.known) >= enough or self.errors, 90)
        assert self.errors == []

    def stop(self) -> None:
        self.stopping = True
        for thread in self.threads:
            thread.join(90)
        assert self.errors == []


def test_a_database_killed_under_load_loses_nothing_acknowledged(
    process: KeyServiceProcess, postgres: PostgresServer
) -> None:
    process.start()
    crowd = Crowd(process, 8)
    try:
        for _ in range(3):
            crowd.wait_for(40)
            postgres.kill()
            postgres.start()
        crowd.wait_for(40)
        process.kill()
        process.start()
        crowd.wait_for(20)
    finally:
        crowd.stop()
    caller = HttpCaller(process.address)
    try:
        for person in crowd.known:
            assert caller.call(calls.QUERY, person.query("whoami"))["id"] == person.id
        assert caller.head().size >= 1 + len(crowd.known)
    finally:
        caller.close()
    assert len(crowd.known) >= 180


def test_a_database_that_is_away_is_said_and_found_again(process: KeyServiceProcess, postgres: PostgresServer) -> None:
    process.start()
    caller = HttpCaller(process.address)
    person = Person(process.root.id, process.clock)
    statement = person.register()
    postgres.stop()
    try:
        with pytest.raises(Unavailable) as caught:
            caller.call(calls.STATEMENT, statement)
        assert caught.value.code == "store-unavailable"
        assert caught.value.retry_after is not None
    finally:
        postgres.start()
    caller.call(calls.STATEMENT, statement)
    assert caller.call(calls.QUERY, person.query("whoami"))["id"] == person.id
    caller.close()


def test_a_second_process_is_refused_and_a_stolen_namespace_is_given_up(
    process: KeyServiceProcess, postgres: PostgresServer
) -> None:
    process.start()
    second = KeyServiceProcess.__new__(KeyServiceProcess)
    second.__dict__.update(process.__dict__, _process=None)
    with pytest.raises(Unavailable) as caught:
        second.start()
    assert "store-locked" in caught.value.message
    postgres.sql(f"UPDATE {process.arguments[1].partition('schema=')[2]}.store SET fence = '\\xff'")
    caller = HttpCaller(process.address)
    statement = Person(process.root.id, process.clock).register()
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            caller.call(calls.STATEMENT, statement)
        assert caught.value.code == "store-taken"
    caller.close()
    process.stop()
    process.start()
    caller = HttpCaller(process.address)
    caller.call(calls.STATEMENT, statement)
    caller.close()


def test_init_is_repeated_after_a_database_that_was_away(
    tmp_path: Path, postgres: PostgresServer, schemas: list[str]
) -> None:
    key = tmp_path / "platform.key"
    key.write_text((b"p" * 32).hex())
    store = postgres.url(schemas[0])
    password = postgres.password_file.read_text().strip()

    def init() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cloister", "keyservice", "init", "--json", "--state", str(tmp_path / "state")]
        command += ["--simulation-key", str(key), "--store", store]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    postgres.stop()
    try:
        done = init()
        assert done.returncode != 0
        assert "store-unavailable" in done.stderr
    finally:
        postgres.start()
    assert not (tmp_path / "state" / "root.sealed").exists()
    done = init()
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["keyservice"]) == 64
    assert not (tmp_path / "state" / "store.sqlite").exists()
    again = init()
    assert "state-exists" in again.stderr
    assert password not in done.stdout + done.stderr + again.stderr
    assert postgres.sql(f"SELECT count(*) FROM {schemas[0]}.entries") == [[1]]


def test_three_replicas_on_one_database_outlive_its_restart_and_the_end_of_one(
    tmp_path: Path, postgres: PostgresServer, schemas: list[str]
) -> None:
    replicas = ReplicaProcesses(tmp_path, stores=[postgres.url(schema) for schema in schemas])
    try:
        replicas.start_all()
        home = tmp_path / "home"
        home.mkdir(mode=0o700)
        everywhere = ",".join(replica.address for replica in replicas.replicas)
        owner = Client(replace(replicas.profile(home, 0), keyservice=everywhere), create_identity(home, "owner"))
        owner.register()
        said = 0

        def say() -> None:
            nonlocal said
            said += 1
            statement = DefinePolicy(simulation_policy(said.to_bytes(48, "big")).encode())
            while True:  # the same one again until it is acknowledged, as an operator's script does
                try:
                    owner.account.say(statement)
                except Unavailable:
                    continue
                return

        for _ in range(2):
            say()
            postgres.kill()
            postgres.start()
            say()
        replicas.leader()
        names = {bytes(postgres.sql(f"SELECT name FROM {schema}.store")[0][0]) for schema in schemas}
        assert len(names) == 3
        leader = replicas.leader()
        replicas.replicas[leader].kill()
        say()
        replicas.start(leader)
        say()
        replicas.leader()
        logs = [postgres.sql(f"SELECT idx, record FROM {schema}.entries ORDER BY idx") for schema in schemas]
        assert logs[0] == logs[1] == logs[2]
        assert len(logs[0]) >= 2 + said
        assert {bytes(postgres.sql(f"SELECT name FROM {schema}.store")[0][0]) for schema in schemas} == names
        for replica in replicas.replicas:
            assert not (replica.folder / "state" / "replica").exists(), "its name lies with its records"
        owner.close()
    finally:
        replicas.close()


def test_a_stopped_one_is_backed_up_and_given_another_root(process: KeyServiceProcess, tmp_path: Path) -> None:
    process.start()
    caller = HttpCaller(process.address)
    person = Person(process.root.id, process.clock)
    caller.call(calls.STATEMENT, person.register())
    caller.close()
    assert process.stop() == 0

    def command(*words: str) -> dict[str, Any]:
        line = [sys.executable, "-m", "cloister", "keyservice", *words, "--json", "--state", str(process.state)]
        line += ["--simulation-key", str(process.key_file), "--configuration", str(process.configuration)]
        done = subprocess.run([*line, *process.arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    backup = command("backup", "--out", str(tmp_path / "backup"))
    assert (backup["entries"], backup["running"]) == (2, False)
    rotated = command("rotate-root")
    assert rotated["keyservice"] == process.root.id.hex()
    assert rotated["log_key"] != process.root.log_key.public_key.hex()
    process.start()
    caller = HttpCaller(process.address)
    assert caller.call(calls.QUERY, person.query("whoami"))["id"] == person.id
    caller.close()
