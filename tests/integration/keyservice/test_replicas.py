"""Three KeyServices, three witnesses, all of them processes: the one that leads dies, and nobody loses anything."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.keyservice import HttpTransport, KeyServiceLink, VolatileHeads
from cloister.attest.bundle import open_bundle
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.client.client import Client
from cloister.client.identity import create_identity
from cloister.runtime.keys import RuntimeSession
from cloister.runtime.stages import Timings
from cloister.testing.collateral import NoCollateral
from cloister.testing.people import simulation_policy
from cloister.testing.replica_processes import ReplicaProcesses
from cloister.wire.provisioning import ReleaseRequest
from cloister.wire.statements import REQUEST_KEY, Consent, DefinePolicy, Grant, PublishModel, Validity, key_commitment

MODEL_KEY, REQUEST = SecretBytes(b"M" * 32), SecretBytes(b"Q" * 32)


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[ReplicaProcesses]:
    replicas = ReplicaProcesses(tmp_path)
    try:
        replicas.start_all()
        yield replicas
    finally:
        replicas.close()


def person(replicas: ReplicaProcesses, name: str, number: int) -> Client:
    home = replicas.folder / "home"
    home.mkdir(exist_ok=True, mode=0o700)
    client = Client(replicas.profile(home, number), create_identity(home, name))
    client.register()
    return client


def runtime(replicas: ReplicaProcesses, client: HttpClient, *numbers: int) -> RuntimeSession:
    """It knows the addresses of these, in this order."""
    bundle = open_bundle(replicas.bundle.read_bytes(), replicas.bundle_key.public_key, 1, replicas.clock.now())
    link = KeyServiceLink(
        HttpTransport(client, ",".join(replicas.replicas[number].address for number in numbers)),
        bundle=lambda: bundle,
        collateral=NoCollateral(),
        clock=replicas.clock,
        heads=VolatileHeads(),
    )
    tee = replicas.runtime
    return RuntimeSession(link, tee.attester(), tee.configuration, clock=replicas.clock)


class Load:
    """A thread that does one thing again and again, and what came of it, with the time."""

    def __init__(self, act: Callable[[int], object]) -> None:
        self.act = act
        self.done: list[float] = []
        self.errors: list[BaseException] = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        for count in range(1, 10_000):
            if self.stopping.is_set():
                return
            try:
                self.act(count)
                self.done.append(time.monotonic())
            except BaseException as error:  # noqa: BLE001  # looked at by the test
                self.errors.append(error)
                return
            time.sleep(0.01)

    def wait_for(self, count: int) -> None:
        """So many more."""
        enough, until = len(self.done) + count, time.monotonic() + 90
        while len(self.done) < enough and not self.errors:
            assert time.monotonic() < until
            time.sleep(0.05)

    def stop(self) -> list[float]:
        self.stopping.set()
        self.thread.join(90)
        assert not self.thread.is_alive()
        if self.errors:
            raise self.errors[0]
        return self.done


def policy(count: int) -> DefinePolicy:
    return DefinePolicy(simulation_policy(count.to_bytes(48, "big")).encode())


def test_kill_9_of_the_one_that_leads_loses_no_statement_and_no_request(replicas: ReplicaProcesses) -> None:
    leader = replicas.leader()
    follower = (leader + 1) % 3
    owner = person(replicas, "owner", follower)
    rules = replicas.runtime.policy()
    owner.account.define_policy(rules)
    model = ModelId(owner.account.identity.id, "model")
    owner.account.say(PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY)), (MODEL_KEY,))
    owner.account.say(Grant("model", owner.account.identity.id, rules.digest, Validity(), 0))
    consent = Consent(model, rules.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
    owner.account.say(consent, (REQUEST,))
    request = ReleaseRequest(model.owner, model, REQUEST_KEY, key_commitment(REQUEST))
    client = HttpClient(replicas.clock)
    session = runtime(replicas, client, leader, follower)
    assert session.release(request, Timings()).key == REQUEST

    said: list[int] = []

    def say(count: int) -> None:
        owner.account.say(policy(count))
        said.append(count)

    statements = Load(say)
    releases = Load(lambda _: session.release(request, Timings()))
    try:
        statements.wait_for(10)
        releases.wait_for(5)
        replicas.replicas[leader].kill()
        killed = time.monotonic()
        statements.wait_for(20)
        releases.wait_for(5)
    finally:
        when = statements.stop()
        others = releases.stop()
    assert min(moment for moment in when if moment > killed) - killed < 45  # 4 to 6 s on a machine that is idle
    assert min(moment for moment in others if moment > killed) - killed < 45
    # everything that was acknowledged is there, and the one that died learns of it
    replicas.start(leader)
    assert replicas.leader() != leader
    for count in said:
        digest = simulation_policy(count.to_bytes(48, "big")).digest
        assert owner.account.ask("policy", {"digest": digest})["policy"] == policy(count).policy
    roles = [replicas.role(number)["role"] for number in range(3)]
    assert sorted(roles) == ["follower", "follower", "leader"]
    # what is passed on is passed on once, and an operator sees who leads
    address = replicas.replicas[roles.index("follower")].address
    answer = client.request("GET", address, "/v1/description", headers=[("cloister-forwarded", "1")])
    assert (answer.status, b"keyservice-no-leader" in bytes(answer.body)) == (503, True)
    command = [sys.executable, "-m", "cloister", "keyservice", "status", "--json", "--address", address]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (found["role"], len(found["cosigned"]) >= 2) == ("follower", True)
    owner.close()
    client.close()


def test_all_replicas_killed_at_once_go_on_where_they_were(replicas: ReplicaProcesses) -> None:
    owner = person(replicas, "owner", replicas.leader())
    owner.account.say(policy(1))
    for replica in replicas.replicas:
        replica.kill()
    replicas.start_all()
    digest = simulation_policy((1).to_bytes(48, "big")).digest
    assert owner.account.ask("policy", {"digest": digest})["policy"] == policy(1).policy
    owner.account.say(policy(2))
    text = bytes(replicas.http.request("GET", replicas.replicas[replicas.leader()].address, "/metrics").body).decode()
    assert "cloister_keyservice_replica_leads 1" in text
    owner.close()


def test_the_command_joins_the_keyservice_that_is_named_and_no_other(replicas: ReplicaProcesses) -> None:
    """And tells an operator why not, without a word of the secret."""
    folder = replicas.folder / "another"
    giver = replicas.replicas[replicas.leader()]

    def joined(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "cloister", "keyservice", "join", "--json", "--from", giver.address]
        command += ["--simulation-key", str(replicas.replicas[1].folder / "platform.key")]
        command += ["--bundle", str(replicas.bundle), "--state", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert replicas.root.secret.reveal().hex() not in done.stdout + done.stderr
        return done.returncode, done.stdout or done.stderr

    right = ("--configuration", str(replicas.configuration))
    status, said = joined(*right, "--keyservice", "00" * 32)
    assert (status != 0, "keyservice-other" in said) == (True, True), said
    assert not (folder / "root.sealed").exists()
    other = replicas.folder / "other.toml"
    other.write_text(replicas.configuration.read_text().replace("replicas = 3", "replicas = 2"))
    status, said = joined("--configuration", str(other))
    assert (status != 0, "configuration" in said) == (True, True), said
    other.write_text(replicas.configuration.read_text().replace("replicas = 3", "replicas = 0"))
    status, said = joined("--configuration", str(other))
    assert (status != 0, "replica-other" in said) == (True, True), said
    status, said = joined(*right, "--keyservice", replicas.root.id.hex())
    assert (status, json.loads(said)["keyservice"]) == (0, replicas.root.id.hex())
    assert (folder / "root.sealed").exists()
    status, said = joined(*right)
    assert (status != 0, "state-exists" in said) == (True, True), said
    assert '"event":"handed-over"' in giver.log
    assert '"event":"hand-over-refused"' not in giver.log  # whoever is configured otherwise finds out by itself
