"""Statements and releases a second, start-up time and proof sizes of one KeyService on SQLite, or PostgreSQL.

    python benchmarks/keyservice.py [--threads 1,16] [--count 2000] [--entries 1000,10000]
                                    [--witnesses 0,3] [--away-ms 0] [--replicas 0,3] [--database sqlite|postgresql]

In this process, without HTTP: sealed call in, sealed reply out, durable in between. Clients' work (sealing, signing)
is done before the clock starts, so that it is the KeyService that is measured; 16 threads share fsyncs. Witnesses are
processes on this machine, reached over HTTP, as far away as --away-ms says (there and back); more than half must sign.

With --replicas each KeyService is a process, asked over HTTP by one caller at a time, with three witnesses: 0 is one
alone; of 3 the one that leads is asked, is then killed, and another asked until it answers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.keyservice import MAX_REPLY
from cloister.adapters.witness import HttpWitness, WitnessPort
from cloister.base.errors import CloisterError
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.offline import begin
from cloister.keyservice.proposals import Proposal
from cloister.keyservice.root import root_of
from cloister.keyservice.settings import Settings
from cloister.keyservice.storage.port import Rows
from cloister.keyservice.storage.postgres.rows import PostgresRows
from cloister.keyservice.storage.postgres.url import parse_url
from cloister.keyservice.storage.sealed import SealedStore
from cloister.keyservice.storage.sqlite import SqliteRows
from cloister.log.entry import STATEMENT
from cloister.testing.embedded import EmbeddedKeyService, attest_request
from cloister.testing.keyservice_process import HttpCaller, KeyServiceProcess
from cloister.testing.people import Person
from cloister.testing.plenty import PLENTY
from cloister.testing.postgres import PostgresServer
from cloister.testing.replica_processes import ReplicaProcesses
from cloister.testing.witness import WitnessProcess
from cloister.wire import calls, cbor, provisioning
from cloister.wire.calls import Description
from cloister.wire.provisioning import ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Consent,
    DefinePolicy,
    Grant,
    PublishModel,
    Validity,
    key_commitment,
)

SEED = b"r" * 32
KEY = SecretBytes(b"k" * 32)


SERVER: PostgresServer | None = None  # with --database postgresql: one of this run's own, over loopback


def rows_at(path: Path) -> Rows:
    """The store of a benchmark: a file, or a namespace named after it."""
    if SERVER is None:
        return SqliteRows(path)
    return PostgresRows(parse_url(SERVER.url(namespace(path))))


def namespace(path: Path) -> str:
    return f"b{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"


def megabytes_at(path: Path) -> float:
    if SERVER is None:
        return path.stat().st_size / 1e6
    sizes = SERVER.sql(
        "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = CAST(:p0 AS regnamespace)"
        " AND relkind = 'r'",
        parameters=[namespace(path)],
    )
    return float(sizes[0][0]) / 1e6


class Distant:
    """A witness that is some way off."""

    def __init__(self, port: WitnessPort, away_s: float) -> None:
        self._port = port
        self._away = away_s

    def add_checkpoint(self, body: bytes) -> bytes | int:
        time.sleep(self._away)
        return self._port.add_checkpoint(body)

    def newest(self, keyservice: bytes) -> bytes | None:
        time.sleep(self._away)
        return self._port.newest(keyservice)


def opened(folder: Path, witnesses: Sequence[WitnessProcess], away_s: float) -> EmbeddedKeyService:
    clock = SystemClock()
    path = folder / "store.sqlite"
    fake = EmbeddedKeyService(clock=clock)  # its settings name the runtime whose evidence is accepted
    fake.close()
    root, more = root_of(SecretBytes(SEED)), {}
    if witnesses:
        keys = tuple(witness.key.public_key for witness in witnesses)
        protection = {"rollback_protection": "witnesses", "witness_threshold": len(keys) // 2 + 1}
        client = HttpClient(clock)
        ports = [Distant(HttpWitness(client, witness.address), away_s) for witness in witnesses]
        more = {"witness_keys": keys, "witnesses": ports, **protection}
        for witness in witnesses:
            witness.add(root.log_key.public_key)
    begin(rows_at(path), root, fake.settings, clock).close()
    rows = rows_at(path)
    return EmbeddedKeyService(clock=clock, rows=rows, seed=SEED, runtime_tee=fake.runtime_tee, rates=PLENTY, **more)


def timed(jobs: list[list[Callable[[], object]]]) -> tuple[float, float]:
    """Calls a second over all threads, and the median latency in milliseconds."""
    latencies: list[list[float]] = [[] for _ in jobs]
    start = threading.Barrier(len(jobs) + 1)

    def run(number: int) -> None:
        start.wait()
        for job in jobs[number]:
            began = time.perf_counter()
            job()
            latencies[number].append(time.perf_counter() - began)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    every = [item for one in latencies for item in one]
    return len(every) / seconds, statistics.median(every) * 1000


def throughput(threads: int, count: int, witnesses: int = 0, away_ms: float = 0.0) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        processes = [WitnessProcess(Path(folder) / f"w{number}") for number in range(witnesses)]
        try:
            for process in processes:
                process.start()
            ks = opened(Path(folder), processes, away_ms / 1000)
            return {"witnesses": witnesses, "away_ms": away_ms, **measured(ks, threads, count)}
        finally:
            for process in processes:
                process.kill()


def measured(ks: EmbeddedKeyService, threads: int, count: int) -> dict[str, float]:
    description = Description.decode(ks.service.description())
    owner = ks.person()
    policy = ks.runtime_tee.policy()
    ks.say(owner.statement(DefinePolicy(policy.encode())))
    ks.say(owner.statement(PublishModel("model", 1, b"1" * 32, key_commitment(KEY))), KEY)
    model = ModelId(owner.id, "model")
    share = count // threads
    people = [ks.person() for _ in range(threads)]
    statements: list[list[Callable[[], object]]] = []
    for person in people:
        ks.say(person.statement(DefinePolicy(policy.encode())))
        sealed = []
        for number in range(share):
            body = Grant("model", number.to_bytes(32, "big"), policy.digest, Validity(), 0)
            if number == 0:
                ks.say(person.statement(PublishModel("model", 1, b"1" * 32, key_commitment(KEY))), KEY)
            pending = calls.seal_call(description, calls.STATEMENT, person.statement(body))
            sealed.append(lambda data=pending.data: ks.service.call(data))
        statements.append(sealed)
    per_second, latency = timed(statements)
    releases: list[list[Callable[[], object]]] = []
    for person in people:
        ks.say(owner.statement(Grant("model", person.id, policy.digest, Validity(), 0)))
        body = Consent(model, policy.digest, None, REQUEST_KEY, key_commitment(KEY), Validity())
        ks.say(person.statement(body), KEY)
        session = ks.attest()
        request = ReleaseRequest(person.id, model, REQUEST_KEY, key_commitment(KEY))
        session.release(request)
        calls_ = [session.seal(request) for _ in range(share)]
        releases.append([lambda data=data: ks.service.session(data) for data in calls_])
    released, release_latency = timed(releases)
    size = ks.assembled.ledger.head().size
    inclusion = len(ks.assembled.ledger.entries([0])[0][2])
    head = ks.assembled.ledger.shown_head()
    head_bytes = len(cbor.encode(head.fields()))
    consistency = len(ks.assembled.ledger.consistency(size // 2 + 1, size))
    ks.close()
    return {
        "threads": threads,
        "statements_per_s": round(per_second),
        "statement_median_ms": round(latency, 2),
        "releases_per_s": round(released),
        "release_median_ms": round(release_latency, 2),
        "log_entries": size,
        "inclusion_proof_hashes": inclusion,
        "consistency_proof_hashes": consistency,
        "cosignatures": len(head.cosignatures),
        "head_bytes": head_bytes,
    }


def replicated(replicas: int, count: int) -> dict[str, float]:
    """Medians over HTTP, and how long nobody acknowledges after ``kill -9`` of the one that leads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = ReplicaProcesses(folder, count=max(replicas, 2))
        single = (
            None
            if replicas
            else KeyServiceProcess(
                _made(folder / "single"),
                settings=_alone(world),
                arguments=tuple(word for witness in world.witnesses for word in ("--witness", witness.address)),
            )
        )
        try:
            if single is not None:
                for witness in world.witnesses:
                    witness.add(single.root.log_key.public_key)
                single.start()
            else:
                world.start_all()
            leader = 0 if single else world.leader()
            address = single.address if single else world.replicas[leader].address
            root = single.root if single else world.root
            found = {"replicas": replicas, **over_http(HttpCaller(address), root.id, world, count)}
            if not single:
                found["silent_s"] = silence(world, leader)
            return found
        finally:
            if single is not None:
                single.kill()
            world.close()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _alone(world: ReplicaProcesses) -> str:
    keys = json.dumps([witness.key.public_key.hex() for witness in world.witnesses])
    simulation = world.runtime.key.public_key.hex()
    protection = f'rollback_protection = "witnesses"\nwitnesses = {keys}\nwitness_threshold = 2\n'
    return f'{protection}simulation_keys = ["{simulation}"]\n'


def over_http(caller: HttpCaller, keyservice: bytes, world: ReplicaProcesses, count: int) -> dict[str, float]:
    owner = Person(keyservice, world.clock)
    policy = world.runtime.policy()
    model = ModelId(owner.id, "model")
    consent = Consent(model, policy.digest, None, REQUEST_KEY, key_commitment(KEY), Validity())
    for body, keys in (
        (None, ()),
        (DefinePolicy(policy.encode()), ()),
        (PublishModel("model", 1, b"1" * 32, key_commitment(KEY)), (KEY,)),
        (Grant("model", owner.id, policy.digest, Validity(), 0), ()),
        (consent, (KEY,)),
    ):
        caller.call(calls.STATEMENT, owner.register() if body is None else owner.statement(body), keys)
    statements = [
        calls.seal_call(
            caller.description,
            calls.STATEMENT,
            owner.statement(Grant("model", number.to_bytes(32, "big"), policy.digest, Validity(), 0)),
        ).data
        for number in range(count)
    ]
    _, latency = timed([[lambda data=data: caller.post("/v1/call", data, limit=MAX_REPLY) for data in statements]])
    request, key = attest_request(world.runtime, caller.post("/v1/challenge", b"", limit=1024))
    session = provisioning.accept_session(caller.call(calls.ATTEST, request.encode()), request, key)
    wanted = ReleaseRequest(owner.id, model, REQUEST_KEY, key_commitment(KEY)).fields()
    sealed = [provisioning.seal_session_call(session, number, wanted) for number in range(1, count + 1)]
    _, released = timed([[lambda data=data: caller.post("/v1/session", data, limit=MAX_REPLY) for data in sealed]])
    return {"statement_median_ms": round(latency, 2), "release_median_ms": round(released, 2)}


def silence(world: ReplicaProcesses, leader: int) -> float:
    """Seconds from ``kill -9`` to the next acknowledgement."""
    person = Person(world.root.id, world.clock)
    world.replicas[leader].kill()
    killed = time.monotonic()
    while True:
        try:
            caller = HttpCaller(world.replicas[(leader + 1) % len(world.replicas)].address)
            caller.call(calls.STATEMENT, person.register(sequence=1))
        except CloisterError:
            time.sleep(0.05)
        else:
            return round(time.monotonic() - killed, 2)


def startup(entries: int) -> dict[str, float]:
    """Replay of a log of grants, without snapshots."""
    clock, root, settings = SystemClock(), root_of(SecretBytes(SEED)), Settings()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite"
        ledger = begin(rows_at(path), root, settings, clock)
        owner = Person(root.id, clock)
        policy = EmbeddedKeyService().runtime_tee.policy()
        first = [owner.register(), owner.statement(DefinePolicy(policy.encode()))]
        first.append(owner.statement(PublishModel("model", 1, b"1" * 32, key_commitment(KEY))))
        for statement in first:
            secret = KEY if statement is first[-1] else None
            ledger.commit(lambda _s, _v, _n, body=statement, key=secret: Proposal(STATEMENT, body, key))
        waiting = iter(range(entries - 4))
        lock = threading.Lock()

        def fill() -> None:
            while True:
                with lock:
                    number = next(waiting, None)
                    if number is None:
                        return
                    body = Grant("model", number.to_bytes(32, "big"), policy.digest, Validity(), 0)
                    statement = owner.statement(body)
                ledger.commit(lambda _s, _v, _n, body=statement: Proposal(STATEMENT, body))

        threads = [threading.Thread(target=fill) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ledger.close()
        megabytes = megabytes_at(path)
        began = time.perf_counter()
        again = Ledger(SealedStore(rows_at(path), root.store_key, root.id), clock)
        seconds = time.perf_counter() - began
        again.close()
        tracemalloc.start()
        again = Ledger(SealedStore(rows_at(path), root.store_key, root.id), clock)
        memory = tracemalloc.get_traced_memory()[0] / 1e6
        tracemalloc.stop()
        again.close()
    return {
        "entries": entries,
        "start_s": round(seconds, 2),
        "us_per_entry": round(seconds / entries * 1e6),
        "memory_mb": round(memory, 1),
        "store_mb": round(megabytes, 1),
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,16")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--entries", default="1000,10000")
    parser.add_argument("--witnesses", default="0")
    parser.add_argument("--away-ms", type=float, default=0.0)
    parser.add_argument("--replicas", default="")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    args = parser.parse_args()
    if args.database == "postgresql":
        global SERVER
        with PostgresServer() as SERVER:
            report(args)
    else:
        report(args)


def report(args: argparse.Namespace) -> None:
    result = {
        "database": args.database,
        "throughput": [
            throughput(int(threads), args.count, int(witnesses), args.away_ms)
            for witnesses in args.witnesses.split(",")
            for threads in args.threads.split(",")
            if threads
        ],
        "replicas": [replicated(int(number), args.count) for number in args.replicas.split(",") if number],
        "startup": [startup(int(entries)) for entries in args.entries.split(",") if entries],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
