"""Statements and releases a second of one KeyService, one with witnesses and three replicas, on SQLite and PostgreSQL.

    python benchmarks/keyservice_rates.py [--callers 1,4,16] [--count 320] [--rounds 3] [--postgres]

Each KeyService, witness and database is a process on this machine, asked over HTTP by so many callers at once, each
waiting for its answer. Calls are signed and sealed before the clock starts. Deployments take turns, so that what else
the machine does meets all of them; printed are medians over the rounds, smallest and largest, and the memory of the
process that answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloister.adapters.keyservice import MAX_REPLY
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.log.merkle import MerkleTree
from cloister.testing.embedded import attest_request
from cloister.testing.keyservice_process import HttpCaller, KeyServiceProcess
from cloister.testing.people import Person
from cloister.testing.postgres import PostgresServer
from cloister.testing.replica_processes import ReplicaProcesses
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import WitnessProcess
from cloister.wire import calls, provisioning
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

KEY = SecretBytes(b"k" * 32)


class Deployment:
    """One that runs, and is asked at ``address``."""

    def __init__(self, name: str, folder: Path, server: PostgresServer | None) -> None:
        self.name = f"{name}, {'PostgreSQL' if server else 'SQLite'}"
        folder.mkdir()
        stores = [server.url(f"{name}{number}") for number in range(3)] if server else []
        self.processes: list[Any] = []
        if name == "replicated":
            world = ReplicaProcesses(folder, stores=stores)
            self.processes.append(world)
            world.start_all()
            leader = world.leader()
            process = world.replicas[leader].process
            assert process is not None
            self.address, self.pid, self.id = world.replicas[leader].address, process.pid, world.root.id
            self.tee: SimulatedTee = world.runtime
            self.close = world.close
            return
        witnesses = [WitnessProcess(folder / f"w{number}") for number in range(3 if name == "witnessed" else 0)]
        for witness in witnesses:
            witness.start()
        platform = SimulatedTee("runtime").key
        protection = "".join(
            (
                'rollback_protection = "witnesses"\nwitness_threshold = 2\n',
                f"witnesses = {json.dumps([witness.key.public_key.hex() for witness in witnesses])}\n",
            )
        )
        settings = f'simulation_keys = ["{platform.public_key.hex()}"]\n' + (protection if witnesses else "")
        words = tuple(word for witness in witnesses for word in ("--witness", witness.address))
        single = KeyServiceProcess(folder, settings=settings, arguments=words, store=stores[0] if stores else None)
        for witness in witnesses:
            witness.add(single.root.log_key.public_key)
        single.start()
        self.address, self.pid, self.id = single.address, single.pid, single.root.id
        self.tee = SimulatedTee("runtime", key=platform, clock=single.clock)

        def close() -> None:
            single.kill()
            for witness in witnesses:
                witness.kill()

        self.close = close

    def memory_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


class Caller:
    """One with a model, a grant to himself and a session."""

    def __init__(self, deployment: Deployment) -> None:
        self.http = HttpCaller(deployment.address)
        self.person = Person(deployment.id, deployment.tee.clock)
        self.policy = deployment.tee.policy()
        model = ModelId(self.person.id, "model")
        grant = Grant("model", self.person.id, self.policy.digest, Validity(), 0)
        consent = Consent(model, self.policy.digest, None, REQUEST_KEY, key_commitment(KEY), Validity())
        self.say(self.person.register())
        self.say(self.person.statement(DefinePolicy(self.policy.encode())))
        self.say(self.person.statement(PublishModel("model", 1, b"1" * 32, key_commitment(KEY))), KEY)
        self.say(self.person.statement(grant))
        self.say(self.person.statement(consent), KEY)
        request, key = attest_request(deployment.tee, self.http.post("/v1/challenge", b"", limit=1024))
        self.session = provisioning.accept_session(self.http.call(calls.ATTEST, request.encode()), request, key)
        self.wanted = ReleaseRequest(self.person.id, model, REQUEST_KEY, key_commitment(KEY)).fields()
        self.sequence = 0

    def say(self, statement: bytes, *keys: SecretBytes) -> None:
        self.http.call(calls.STATEMENT, statement, keys)

    def statements(self, count: int) -> list[Callable[[], object]]:
        grants = [Grant("model", self.person.id, self.policy.digest, Validity(), 1 + n % 9) for n in range(count)]
        sealed = [
            calls.seal_call(self.http.description, calls.STATEMENT, self.person.statement(grant)).data
            for grant in grants
        ]
        return [lambda data=data: self.http.post("/v1/call", data, limit=MAX_REPLY) for data in sealed]  # type: ignore[misc]

    def releases(self, count: int) -> list[Callable[[], object]]:
        first, self.sequence = self.sequence + 1, self.sequence + count
        sealed = [
            provisioning.seal_session_call(self.session, number, self.wanted) for number in range(first, first + count)
        ]
        return [lambda data=data: self.http.post("/v1/session", data, limit=MAX_REPLY) for data in sealed]  # type: ignore[misc]


def rate(jobs: list[list[Callable[[], object]]]) -> float:
    """Calls a second over all callers."""
    start = threading.Barrier(len(jobs) + 1)

    def run(own: list[Callable[[], object]]) -> None:
        start.wait()
        for job in own:
            job()

    threads = [threading.Thread(target=run, args=(own,)) for own in jobs]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return sum(map(len, jobs)) / (time.perf_counter() - began)


def proofs(sizes: list[int]) -> None:
    """The longest inclusion proof of any entry, and the longest proof that one log continues another, in bytes."""
    for size in sizes:
        tree = MerkleTree(number.to_bytes(32, "big") for number in range(size))
        inclusion = max(len(tree.inclusion(at, size)) for at in range(0, size, max(1, size // 997)))
        consistency = max(len(tree.consistency(at, size)) for at in range(1, size, max(1, size // 997)))
        print(f"{size:9,} entries: inclusion at most {inclusion * 32} bytes, consistency {consistency * 32}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--callers", default="1,4,16")
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--postgres", action="store_true")
    options = parser.parse_args()
    proofs([10**3, 10**5, 10**6])
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        servers: list[PostgresServer | None] = [None]
        if options.postgres:
            servers.append(stack.enter_context(PostgresServer()))
        deployments = []
        for server in servers:
            for kind in ("one", "witnessed", "replicated"):
                made = Deployment(kind, Path(name) / f"{kind}-{len(deployments)}", server)
                stack.callback(made.close)
                deployments.append(made)
        most = max(map(int, options.callers.split(",")))
        people = {made.name: [Caller(made) for _ in range(most)] for made in deployments}
        found: dict[tuple[str, int, str], list[float]] = {}
        for _ in range(options.rounds):
            for callers in map(int, options.callers.split(",")):
                for made in deployments:
                    chosen = people[made.name][:callers]
                    share = max(1, options.count // callers)
                    found.setdefault((made.name, callers, "statements"), []).append(
                        rate([caller.statements(share) for caller in chosen])
                    )
                    found.setdefault((made.name, callers, "releases"), []).append(
                        rate([caller.releases(share) for caller in chosen])
                    )
        for (where, callers, what), rates in found.items():
            middle = statistics.median(rates)
            print(f"{where:24} {callers:3} {what:10} {middle:7.0f}/s ({min(rates):.0f} to {max(rates):.0f})")
        for made in deployments:
            print(f"{made.name:24} {made.memory_mib():.0f} MiB")
        print("load average", os.getloadavg())


if __name__ == "__main__":
    main()
