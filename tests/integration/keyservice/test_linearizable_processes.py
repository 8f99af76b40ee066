"""Processes over HTTP, killed one after the other under load: what was released and acknowledged is one history."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.attest.bundle import TrustBundle, open_bundle
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.testing.keyservice_process import KeyServiceProcess
from cloister.testing.people import Person, simulation_policy
from cloister.testing.permission_links import LinkCaller, OverHttp
from cloister.testing.permissions import Denied, Granted, Released, Revoked, Storm
from cloister.testing.postgres import PostgresServer
from cloister.testing.replica_processes import ReplicaProcesses
from cloister.testing.tee import SimulatedTee

PAIRS = 2
PLATFORM = SigningKey.from_seed(SecretBytes(b"p" * 32))  # that of ``KeyServiceProcess``


class Load:
    """Whoever grants, consents and asks, over HTTP; and what came of it."""

    def __init__(
        self, keyservice: bytes, client: HttpClient, origins: Callable[[], str], bundle: TrustBundle, tee: SimulatedTee
    ) -> None:
        def connect() -> LinkCaller:
            return LinkCaller(OverHttp(client, origins), bundle=bundle, clock=tee.clock, tee=tee)

        people = [Person(keyservice, tee.clock) for _ in range(4 * PAIRS)]
        policies = [simulation_policy(tee.measurement).encode()]
        policies += [simulation_policy(tee.measurement, maximum_age_s=36_000 + more).encode() for more in range(2)]
        self.connect = connect
        self.storm = Storm(people, connect, policies, pairs=PAIRS, runtimes=1, reads=False, pause_s=0.02)
        self.storm.begin()

    def more(self, number: int) -> None:
        """Wait until so many more statements were acknowledged and keys released."""
        counts = {kind: self.storm.history.count(kind) + number for kind in (Granted, Revoked, Released)}
        until = time.monotonic() + 90
        while any(self.storm.history.count(kind) < count for kind, count in counts.items()):
            assert not self.storm.faults, self.storm.faults
            assert time.monotonic() < until, dict(self.storm.history.errors)
            time.sleep(0.05)

    def check(self, **options: tuple[type, ...]) -> None:
        history = self.storm.end()
        history.check(**options)
        assert self.storm.acknowledged
        assert self.storm.lost_and_repeated(self.connect()) == (0, 0)


@pytest.fixture
def client() -> Iterator[HttpClient]:
    client = HttpClient(SystemClock())
    yield client
    client.close()


def test_one_process_killed_again_and_again(tmp_path: Path, client: HttpClient) -> None:
    author, path = SigningKey.generate(), tmp_path / "bundle"
    process = KeyServiceProcess(
        tmp_path,
        settings=f'bundle_root = "{author.public_key.hex()}"\nsimulation_keys = ["{PLATFORM.public_key.hex()}"]\n',
        arguments=("--bundle", str(path)),
    )
    now = int(process.clock.now())
    bundle = TrustBundle(
        root=author.public_key,
        version=1,
        name="test",
        issued_at=now - 10,
        expires_at=now + 3600,
        keyservice=simulation_policy(process.tee.measurement, configuration=[process.settings.measured().digest]),
        accept_simulation=True,
        simulation_keys=(PLATFORM.public_key,),
        accept_rollback_unsafe=True,
    )
    path.write_bytes(bundle.sign(author))
    process.start()
    tee = SimulatedTee("runtime", key=PLATFORM, clock=process.clock)
    load = Load(process.root.id, client, lambda: process.address, bundle, tee)
    try:
        for _ in range(3):
            load.more(8)
            process.kill()
            process.start()
        load.more(8)
        load.check()
        assert load.storm.history.errors["keyservice-unreachable"] > 0
    finally:
        process.kill()


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[ReplicaProcesses]:
    replicas = ReplicaProcesses(tmp_path)
    try:
        replicas.start_all()
        yield replicas
    finally:
        replicas.close()


@pytest.mark.parametrize("rounds", [1, pytest.param(8, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_three_replicas_killed_in_turn(rounds: int, replicas: ReplicaProcesses, client: HttpClient) -> None:
    """Each of them, whoever leads; the others go on, and no statement that was acknowledged is lost."""
    bundle = open_bundle(replicas.bundle.read_bytes(), replicas.bundle_key.public_key, 1, replicas.clock.now())

    def origins() -> str:
        return ",".join(replica.address for replica in replicas.replicas)

    load = Load(replicas.root.id, client, origins, bundle, replicas.runtime)
    for number in [*range(3)] * rounds:
        load.more(5)
        replicas.replicas[number].kill()
        load.more(3)
        if rounds > 1 and not secrets.randbelow(2):
            witness = secrets.choice(replicas.witnesses)
            witness.kill()
            load.more(3)
            witness.start()
        replicas.start(number)
        replicas.leader()
    load.check(without=(Denied,))


def test_three_replicas_on_one_database_that_is_killed(
    tmp_path: Path, client: HttpClient, postgres: PostgresServer
) -> None:
    """The replica that leads is killed, then the database under all of them, and then it is restarted in order."""
    schemas = [f"t{secrets.token_hex(6)}" for _ in range(3)]
    replicas = ReplicaProcesses(tmp_path, stores=[postgres.url(schema) for schema in schemas])
    try:
        replicas.start_all()
        bundle = open_bundle(replicas.bundle.read_bytes(), replicas.bundle_key.public_key, 1, replicas.clock.now())
        addresses = ",".join(replica.address for replica in replicas.replicas)
        load = Load(replicas.root.id, client, lambda: addresses, bundle, replicas.runtime)
        load.more(5)
        leader = replicas.leader()
        replicas.replicas[leader].kill()
        load.more(3)
        replicas.start(leader)
        replicas.leader()
        postgres.kill()
        postgres.start()
        load.more(5)
        postgres.restart()
        load.more(5)
        load.check(without=(Denied,))
    finally:
        replicas.close()
        for schema in schemas:
            postgres.sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
