"""``cloister keyservice rotate-root`` on a real disk, its process killed at each step."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.keyservice.offline import ROOT_FILE
from cloister.keyservice.rotation import newer
from cloister.testing.keyservice_process import HttpCaller, KeyServiceProcess
from cloister.testing.people import Person
from cloister.testing.postgres import PostgresServer
from cloister.wire import calls

# Each replaces one function by one that dies before or after it does what it does.
STEPS = {
    "before the new root is written": ("rotation.keep_root = die", 0),
    "after it is written": ("rotation.keep_root = then_die(rotation.keep_root)", 0),
    "before the transaction": ("Rows.write = die", 0),
    "after the transaction": ("Rows.write = then_die(Rows.write)", 1),
    "before the new root takes its place": ("rotation.replace_root = die", 1),
    "after that": ("rotation.replace_root = then_die(rotation.replace_root)", 1),
    "never": ("", 1),
}
PROGRAM = """
import os, sys
from cloister.cli.main import main
from cloister.keyservice import rotation
if "--store" in sys.argv:
    from cloister.keyservice.storage.postgres.rows import PostgresRows as Rows
else:
    from cloister.keyservice.storage.sqlite import SqliteRows as Rows
def die(*_):
    os._exit(9)
def then_die(call):
    def run(*arguments):
        call(*arguments)
        os._exit(9)
    return run
STEP
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[KeyServiceProcess]:
    process = KeyServiceProcess(tmp_path)
    yield process
    process.kill()


@pytest.fixture
def on_postgres(tmp_path: Path, postgres: PostgresServer) -> Iterator[KeyServiceProcess]:
    schema = f"t{secrets.token_hex(6)}"
    process = KeyServiceProcess(tmp_path, store=postgres.url(schema))
    yield process
    process.kill()
    postgres.sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


def rotate(process: KeyServiceProcess, step: str, *store: str) -> int:
    arguments = ["keyservice", "rotate-root", "--state", str(process.state), *store]
    arguments += ["--simulation-key", str(process.key_file), "--configuration", str(process.configuration)]
    program = PROGRAM.replace("STEP", step)
    done = subprocess.run(  # ourselves
        [sys.executable, "-c", program, *arguments], capture_output=True, check=False, text=True
    )
    return done.returncode


@pytest.mark.parametrize("step", STEPS)
def test_s7_killed_anywhere_it_is_rotated_or_not_and_goes_on(process: KeyServiceProcess, step: str) -> None:
    killed(process, step)


@pytest.mark.parametrize("step", ["before the transaction", "after the transaction", "never"])
def test_s7_killed_anywhere_over_a_database_likewise(on_postgres: KeyServiceProcess, step: str) -> None:
    killed(on_postgres, step, *on_postgres.arguments)


def killed(process: KeyServiceProcess, step: str, *store: str) -> None:
    process.start()
    before = HttpCaller(process.address)
    person = Person(process.root.id, process.clock)
    before.call(calls.STATEMENT, person.register())
    assert rotate(process, "", *store) == 1  # it runs
    process.stop()
    patch, generation = STEPS[step]
    assert rotate(process, patch, *store) == (9 if patch else 0)
    process.start()
    after = HttpCaller(process.address)
    assert after.description.keyservice == before.description.keyservice
    assert after.description.log_keys.generation == generation
    assert after.head().size == 2 + generation
    after.call(calls.STATEMENT, Person(process.root.id, process.clock).register())
    assert not newer(process.state / ROOT_FILE).exists()
    before.close()
    after.close()
