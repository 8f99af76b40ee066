"""Backups of a KeyService whose records lie in a real PostgreSQL, restored to another namespace, or to a file."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.testing.backups import put_together, take_apart
from cloister.testing.keyservice_process import HttpCaller, KeyServiceProcess
from cloister.testing.people import Person
from cloister.testing.postgres import PostgresServer
from cloister.wire import calls


@pytest.fixture
def schemas(postgres: PostgresServer) -> Iterator[list[str]]:
    """Names of namespaces of this test's own, which go with it."""
    found = [f"b{secrets.token_hex(6)}" for _ in range(3)]
    yield found
    for schema in found:
        postgres.sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
def process(tmp_path: Path, postgres: PostgresServer, schemas: list[str]) -> Iterator[KeyServiceProcess]:
    process = KeyServiceProcess(tmp_path, store=postgres.url(schemas[0]))
    yield process
    process.kill()


def command(process: KeyServiceProcess, action: str, *words: str) -> dict[str, Any]:
    """``cloister keyservice ACTION`` in the same TEE; what it printed, or its error."""
    tee = ["--simulation-key", str(process.key_file), "--configuration", str(process.configuration)]
    done = subprocess.run(
        [sys.executable, "-m", "cloister", "keyservice", action, "--json", *words, *tee],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return dict(json.loads(done.stdout or done.stderr))


def test_a_backup_goes_from_one_namespace_to_another_and_to_a_file(
    process: KeyServiceProcess, tmp_path: Path, postgres: PostgresServer, schemas: list[str]
) -> None:
    process.start()
    person, caller = Person(process.root.id, process.clock), HttpCaller(process.address)
    caller.call(calls.STATEMENT, person.register())
    head = caller.head()
    caller.close()
    state = str(process.state)
    running = command(process, "backup", "--state", state, "--out", str(tmp_path / "running"))
    assert (running["running"], running["entries"]) == (True, 2), running
    process.stop()
    stopped = command(
        process, "backup", "--state", state, "--out", str(tmp_path / "stopped"), "--store", postgres.url(schemas[0])
    )
    assert (stopped["running"], stopped["entries"]) == (False, 2), stopped
    first = postgres.url(schemas[0])
    into = ["--state", state, "--from", str(tmp_path / "running")]
    assert command(process, "restore", *into, "--store", first)["error"] == "state-exists"
    for store in (["--store", postgres.url(schemas[1])], []):  # another namespace, and no database at all
        shutil.rmtree(process.state)
        done = command(process, "restore", *into, *store)
        assert (done["opened"], done["entries"], done["root"]) == (True, 2, head.root.hex()), done
        process.arguments = tuple(store)
        process.start()
        caller = HttpCaller(process.address)
        assert caller.call(calls.QUERY, person.query("whoami", {}))["sequence"] == person.sequence
        assert caller.head().root == head.root
        caller.close()
        process.stop()


def test_a_backup_that_does_not_open_leaves_an_empty_namespace(
    process: KeyServiceProcess, tmp_path: Path, postgres: PostgresServer, schemas: list[str]
) -> None:
    made = command(
        process,
        *("backup", "--state", str(process.state), "--out", str(tmp_path / "good")),
        *("--store", postgres.url(schemas[0])),
    )
    assert made["entries"] == 1, made
    records = take_apart((tmp_path / "good").read_bytes())
    row = records[1]["rows"][0]
    records[1]["rows"][0] = row[:-1] + bytes([row[-1] ^ 1])
    (tmp_path / "bad").write_bytes(put_together(records))
    into = ["--state", str(tmp_path / "new"), "--store", postgres.url(schemas[2])]
    assert command(process, "restore", *into, "--from", str(tmp_path / "bad"))["error"] == "store-record"
    for table in ("entries", "head", "secrets"):
        assert postgres.sql(f"SELECT count(*) FROM {schemas[2]}.{table}") == [[0]]
    assert not (tmp_path / "new" / "root.sealed").exists()
    assert command(process, "restore", *into, "--from", str(tmp_path / "good"))["opened"]
