"""Backup and restore of one KeyService by its commands: time, size, memory, and what statements notice of it.

    python benchmarks/backup.py [--entries 10000,100000] [--callers 4]

The KeyService is a process on SQLite, its log grants of one owner. Callers send statements over HTTP one after another,
first alone, then while backups are taken one after the other. Restoring opens every record and replays the log.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from cloister.base.secret import SecretBytes
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.proposals import Proposal
from cloister.keyservice.storage.place import STORE_FILE
from cloister.keyservice.storage.sealed import SealedStore
from cloister.keyservice.storage.sqlite import SqliteRows
from cloister.log.entry import STATEMENT
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.keyservice_process import HttpCaller, KeyServiceProcess
from cloister.testing.people import Person, simulation_policy
from cloister.testing.plenty import plenty_of_everything
from cloister.wire import calls
from cloister.wire.statements import DefinePolicy, Grant, PublishModel, Validity, key_commitment

KEY = SecretBytes(b"k" * 32)


def fill(process: KeyServiceProcess, entries: int) -> None:
    """Grants until the log has so many entries; the process does not run yet."""
    root = process.root
    ledger = Ledger(SealedStore(SqliteRows(process.state / STORE_FILE), root.store_key, root.id), process.clock)
    owner, policy = Person(root.id, process.clock), EmbeddedKeyService().runtime_tee.policy()
    first = [owner.register(), owner.statement(DefinePolicy(policy.encode()))]
    first.append(owner.statement(PublishModel("model", 1, b"1" * 32, key_commitment(KEY))))
    for statement in first:
        secret = KEY if statement is first[-1] else None
        ledger.commit(lambda _s, _v, _n, body=statement, key=secret: Proposal(STATEMENT, body, key))
    waiting, lock = iter(range(entries - 4)), threading.Lock()

    def run() -> None:
        while True:
            with lock:
                number = next(waiting, None)
                if number is None:
                    return
                body = Grant("model", number.to_bytes(32, "big"), policy.digest, Validity(), 0)
                statement = owner.statement(body)
            ledger.commit(lambda _s, _v, _n, body=statement: Proposal(STATEMENT, body))

    threads = [threading.Thread(target=run) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()


class Callers:
    """So many who send statements, one after the other each."""

    def __init__(self, process: KeyServiceProcess, count: int) -> None:
        self.latencies: list[float] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(process,), daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, process: KeyServiceProcess) -> None:
        caller, person = HttpCaller(process.address), Person(process.root.id, process.clock)
        caller.call(calls.STATEMENT, person.register())
        number = 0
        while not self._stop.is_set():
            number += 1
            policy = simulation_policy((number % 500 + 1).to_bytes(8, "big") * 6)
            statement = person.statement(DefinePolicy(policy.encode()))
            began = time.perf_counter()
            caller.call(calls.STATEMENT, statement)
            self.latencies.append(time.perf_counter() - began)
        caller.close()

    def end(self) -> dict[str, float]:
        """Milliseconds."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        ordered = sorted(self.latencies)
        return {
            "median_ms": round(1000 * statistics.median(ordered), 2),
            "p99_ms": round(1000 * ordered[int(0.99 * len(ordered))], 2),
            "statements": len(ordered),
        }


# The most memory is asked for inside: what the system tells a parent of its child may be the parent's own.
COMMAND = """
import sys, time
from cloister.cli.main import main
status = main(["keyservice", *sys.argv[1:], "--json"])
lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(time.process_time(), int(lines["VmHWM"].split()[0]) / 1000, file=sys.stderr)
sys.exit(status)
"""


def command(*words: str) -> tuple[dict[str, object], dict[str, float]]:
    """What it says; seconds, seconds of a processor, and the most memory it had in megabytes."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    found: dict[str, object] = json.loads(done.stdout)
    processor, memory = map(float, done.stderr.split())
    return found, {"s": round(time.perf_counter() - began, 2), "cpu_s": round(processor, 2), "most_mb": memory}


def resident(pid: int) -> tuple[float, float]:
    """Of a process: now, and the most so far, in megabytes."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1000 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def measured(entries: int, count: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = KeyServiceProcess(folder)
        fill(process, entries)
        process.start("--limits", str(plenty_of_everything(folder)))
        pid = process._process.pid if process._process else 0
        os.sync()
        callers = Callers(process, count)
        time.sleep(8)
        alone = callers.end()
        before = resident(pid)
        callers, began, taken = Callers(process, count), time.monotonic(), []
        while time.monotonic() - began < 8 or not taken:
            _, seen = command("backup", "--state", str(process.state), "--out", str(folder / f"during{len(taken)}"))
            taken.append(seen["s"])
        during = callers.end()
        after = resident(pid)
        made, backup = command("backup", "--state", str(process.state), "--out", str(folder / "quiet"))
        process.stop()
        shutil.rmtree(process.state)
        words = [
            "--state",
            str(process.state),
            "--from",
            str(folder / "quiet"),
            "--simulation-key",
            str(process.key_file),
        ]
        _, restore = command("restore", *words, "--configuration", str(process.configuration))
        shutil.rmtree(process.state)
        _, unopened = command("restore", "--state", str(process.state), "--from", str(folder / "quiet"))
        return {
            "entries": made["entries"],
            "backup": backup,
            "backup_mb": round(int(str(made["bytes"])) / 1e6, 1),
            "under_load_s": round(statistics.median(taken), 2),
            "service_mb": {"before": before[0], "after": after[0], "most": after[1]},
            "restore": restore,
            "restore_unopened": unopened,
            "statements_alone": alone,
            "statements_during": during,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", default="10000,100000")
    parser.add_argument("--callers", type=int, default=4)
    args = parser.parse_args()
    for entries in map(int, args.entries.split(",")):
        print(json.dumps(measured(entries, args.callers)), flush=True)


if __name__ == "__main__":
    main()
