"""How long a start of the KeyService takes, with and without a snapshot, and what memory and disk it needs.

    python benchmarks/keyservice_start.py [--entries 1000,100000,1000000] [--state 0] [--folder DIR] [--plot FILE.svg]

A log as a hundred users of twenty models write it: they register, grant and consent, then runtimes get keys, each pair
in turn; one entry in fifty rotates a request key. With --state N as many users more have a grant each: a large state
instead of a long log. Entries are real, and sealed into SQLite in large transactions; each start is a fresh process.
"""

from __future__ import annotations

import argparse
import gc
import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloister.adapters.clock import SystemClock
from cloister.adapters.logs import Value
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.keyservice.keeper import Keeper
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.proposals import Proposal
from cloister.keyservice.root import root_of
from cloister.keyservice.settings import Settings
from cloister.keyservice.storage.port import NewEntry
from cloister.keyservice.storage.sealed import SealedStore
from cloister.keyservice.storage.sqlite import SqliteRows
from cloister.log.entry import GENESIS, RELEASE, STATEMENT, Entry, Genesis, ReleaseRecord
from cloister.testing.people import Person, simulation_policy
from cloister.wire.statements import (
    REQUEST_KEY,
    Consent,
    DefinePolicy,
    Grant,
    PublishModel,
    RotateRequestKey,
    Validity,
    key_commitment,
)

ROOT = root_of(SecretBytes(b"r" * 32))
POLICY = simulation_policy(b"m" * 48)
USERS, MODELS, ROTATION = 100, 20, 50
CODE = b"code"
BATCH = 4_096
STATEMENTS = 400


class Quiet:
    """Keeps what the keeper says."""

    def __init__(self) -> None:
        self.said: list[dict[str, Value]] = []

    def event(self, name: str, /, *, level: str = "info", **fields: Value) -> None:
        self.said.append({"event": name, "level": level, **fields})


Said = tuple[str, bytes, SecretBytes | None, int | None]


def history(count: int, granted: int) -> Iterator[Said]:
    """Kind, body and secret of each entry; and the entry whose secret it ends."""
    clock = SystemClock()
    yield GENESIS, Genesis(ROOT.id, ROOT.log_key.public_key, Settings().measured().encoded).encode(), None, None
    said = 1
    newest: dict[tuple[bytes, ModelId], int] = {}
    owner = Person(ROOT.id, clock, b"o" * 32)
    users = [Person(ROOT.id, clock, number.to_bytes(32, "big")) for number in range(1, USERS + 1)]
    key = SecretBytes(b"k" * 32)
    models = [ModelId(owner.id, f"model-{number}") for number in range(MODELS)]

    def setting_up() -> Iterator[tuple[bytes, SecretBytes | None]]:
        for person in (owner, *users):
            yield person.register(), None
            yield person.statement(DefinePolicy(POLICY.encode())), None
        for number, model in enumerate(models):
            secret = SecretBytes(secrets.token_bytes(32))
            body = PublishModel(model.name, 1, number.to_bytes(32, "big"), key_commitment(secret))
            yield owner.statement(body), secret
        for number in range(granted):
            body = Grant("model-0", number.to_bytes(32, "little"), POLICY.digest, Validity(), 0)
            yield owner.statement(body), None
        for user in users:
            for model in models:
                yield owner.statement(Grant(model.name, user.id, POLICY.digest, Validity(), 0)), None
                consent = Consent(model, POLICY.digest, None, REQUEST_KEY, key_commitment(key), Validity())
                yield user.statement(consent), key

    for statement, secret in setting_up():
        if said == count:
            return
        yield STATEMENT, statement, secret, None
        said += 1
    pairs = [(user, model) for model in models for user in users]
    releases = [
        ReleaseRecord(
            user=user.id,
            model=model,
            manifest_digest=b"1" * 32,
            version=1,
            mode=REQUEST_KEY,
            key_id=key_commitment(key),
            tee="simulation",
            measurements={"measurement": b"m" * 48},
            configuration_digest=b"c" * 32,
            owner_policy=POLICY.digest,
            owner_rule="simulated",
            user_policy=POLICY.digest,
            user_rule="simulated",
            lease_s=60,
            lease_requests=100_000,
        ).encode()
        for user, model in pairs
    ]
    for number in range(count - said):
        user, model = pairs[number % len(pairs)]
        if number % ROTATION == 0:
            secret = SecretBytes(secrets.token_bytes(32))
            ended, newest[user.id, model] = newest.get((user.id, model)), said + number
            yield STATEMENT, user.statement(RotateRequestKey(model, key_commitment(secret))), secret, ended
        else:
            yield RELEASE, releases[number % len(pairs)], None, None


def write(path: Path, count: int, granted: int) -> float:
    """The log, of ten entries a second, and the secrets that live; how long it took."""
    began, now = time.perf_counter(), int(SystemClock().now())
    store = SealedStore(SqliteRows(path), ROOT.store_key, ROOT.id)
    list(store.load())
    batch: list[NewEntry] = []
    dead: list[int] = []
    for number, (kind, body, secret, ended) in enumerate(history(count, granted)):
        dead += [] if ended is None else [ended]
        at = now - (count - number) // 10 - 1
        batch.append(NewEntry(Entry(kind, at, secrets.token_bytes(32), body).encode(), secret))
        if len(batch) == BATCH:
            store.append(batch, dead)
            batch.clear()
            dead.clear()
    store.append(batch, dead)
    store.close()
    return time.perf_counter() - began


def opened(path: Path) -> Ledger:
    return Ledger(SealedStore(SqliteRows(path), ROOT.store_key, ROOT.id), SystemClock(), code=CODE)


def resident() -> float:
    """MB of this process."""
    gc.collect()
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise AssertionError


def start(path: Path, *, save: bool) -> dict[str, Any]:
    """In a fresh process: the start; then, if asked, snapshots while statements are made, the scrub and a shutdown."""
    SystemClock().now()
    before = resident()
    began, processor = time.perf_counter(), time.process_time()
    ledger = opened(path)
    found: dict[str, Any] = {
        "start_s": round(time.perf_counter() - began, 3),
        "processor_s": round(time.process_time() - processor, 3),
        "entries": ledger.head().size,
        "from_snapshot": ledger.begun,
        "memory_mb": round(resident() - before, 1),
    }
    keeper = Keeper(ledger, SystemClock(), log := Quiet())
    if save:
        ledger.sweep()
        found["first"] = saved(keeper, ledger, log)
        found["memory_after_mb"] = round(resident() - before, 1)
        found["next"] = saved(keeper, ledger, log)
    elif ledger.begun:
        began, times = time.process_time(), []
        more = True
        while more:
            once = time.perf_counter()
            more = keeper.scrub()
            times.append(time.perf_counter() - once)
        took = time.process_time() - began
        found["scrub"] = {
            "us_per_entry": round(took / ledger.begun * 1e6, 1),
            "processor_s": round(took, 1),
            "wall_s": round(10 * took),
            "hold_ms": round(statistics.median(times) * 1000, 2),
        }
    ledger.close()
    return found


def saved(keeper: Keeper, ledger: Ledger, log: Quiet) -> dict[str, Any]:
    """One snapshot, beside a caller whose statements are made one after the other."""
    owner = Person(ROOT.id, SystemClock(), b"o" * 32)
    with ledger.read() as (state, _):
        identity = state.identities.get(owner.id)
        owner.sequence = identity.sequence if identity else 0
    statements = [
        owner.statement(Grant("model-0", number.to_bytes(32, "big"), POLICY.digest, Validity(), 0))
        for number in range(4 * STATEMENTS)
    ]

    def say(statement: bytes) -> float:
        began = time.perf_counter()
        ledger.commit(lambda _state, _vault, _now: Proposal(STATEMENT, statement))
        return (time.perf_counter() - began) * 1000

    quiet = [say(statement) for statement in statements[:STATEMENTS]]
    busy: list[float] = []
    done = threading.Event()

    def saying() -> None:
        for statement in statements[STATEMENTS:]:
            if done.is_set():
                return
            busy.append(say(statement))

    thread = threading.Thread(target=saying)
    thread.start()
    began = time.perf_counter()
    keeper.save()
    took = time.perf_counter() - began
    done.set()
    thread.join()
    event = next(entry for entry in reversed(log.said) if entry["event"] == "snapshot")
    return {
        "save_s": round(took, 2),
        "parts": event["count"],
        "stopped": event["step"],
        "statement_ms": round(statistics.median(quiet), 2),
        "meanwhile_ms": round(statistics.median(busy), 2),
        "meanwhile_longest_ms": round(max(busy), 1),
        "statements_meanwhile": len(busy),
    }


def child(path: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(path), *words], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(folder: Path, count: int, granted: int) -> dict[str, Any]:
    """One log: written, started without a snapshot and with one."""
    path = folder / "store.sqlite"
    wrote = write(path, count, granted)
    megabytes = path.stat().st_size / 1e6
    plain = child(path)
    again = child(path, "--save")
    with_snapshot = child(path)
    return {
        "entries": count,
        "granted": granted,
        "written_s": round(wrote, 1),
        "store_mb": round(megabytes, 1),
        "with_blocks_and_snapshot_mb": round(path.stat().st_size / 1e6, 1),
        "without": plain,
        "saving": again,
        "with": with_snapshot,
    }


def plot(results: list[dict[str, Any]], where: Path) -> None:
    """Processor time and memory of a start over the log's length."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "cloister"
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2))
    sizes = [result["entries"] for result in results]
    for axes, field, title in zip(
        panels, ("processor_s", "memory_mb"), ("start, seconds of one processor", "memory after it, MB"), strict=True
    ):
        for kind, colour, name in (("without", "#9aa5b1", "every entry read"), ("with", "#1b7f5c", "with a snapshot")):
            values = [result[kind][field] for result in results]
            axes.loglog(sizes, values, marker="o", color=colour, label=name)
            for size, value in zip(sizes, values, strict=True):
                axes.annotate(f"{value:.3g}", (size, value), (0, 6), textcoords="offset points", ha="center", size=8)
        axes.set_xlabel("entries of the log")
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(0.12, 0.2)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(where, metadata={"Date": None})


def main() -> None:
    """Print one JSON object for each log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", default="1000,100000,1000000")
    parser.add_argument("--state", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(start(args.child, save=args.save)))
        return
    results = []
    for entries in args.entries.split(","):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            results.append(measured(Path(folder), int(entries), args.state))
            print(json.dumps(results[-1], indent=1), flush=True)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
