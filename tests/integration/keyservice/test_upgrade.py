"""KeyServices, all processes, become another build or get another configuration; of replicas callers notice nothing."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.keyservice import BUNDLE_PATH, HttpTransport, KeyServiceLink, VolatileHeads
from cloister.attest.bundle import TrustBundle, open_bundle
from cloister.attest.policy_toml import format_policy
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_BUNDLE
from cloister.base.secret import SecretBytes
from cloister.cli.main import main
from cloister.client.audit import describe
from cloister.client.client import Client
from cloister.client.identity import create_identity
from cloister.log.entry import BUNDLE, HAND_OVER, Entry
from cloister.runtime.keys import RuntimeSession
from cloister.runtime.stages import Timings
from cloister.testing.collateral import NoCollateral
from cloister.testing.keyservice_process import HttpCaller, KeyServiceProcess
from cloister.testing.people import Person, simulation_policy
from cloister.testing.replica_processes import Build, ReplicaProcesses
from cloister.wire import calls
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


class Caller:
    """A thread that does one thing again and again; ends at the first error.

    :ivar done: when each was done; monotonic.
    """

    def __init__(self, act: Callable[[int], object]) -> None:
        self.act = act
        self.done: list[float] = []
        self.errors: list[BaseException] = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        for count in itertools.count(1):
            if self.stopping.wait(0.02):
                return
            try:
                self.act(count)
            except BaseException as error:  # noqa: BLE001  # looked at by the test
                self.errors.append(error)
                return
            self.done.append(time.monotonic())

    def goes_on(self, count: int = 5) -> None:
        """So many more."""
        enough, until = len(self.done) + count, time.monotonic() + 90
        while len(self.done) < enough:
            if self.errors:
                raise self.errors[0]
            assert time.monotonic() < until
            time.sleep(0.02)

    def stop(self) -> float:
        """The longest time in which nothing was done, in seconds."""
        self.stopping.set()
        self.thread.join(90)
        assert not self.thread.is_alive()
        if self.errors:
            raise self.errors[0]
        return max(later - earlier for earlier, later in itertools.pairwise(self.done))


class World:
    """An owner and a runtime, who know the addresses of all replicas and the first trust bundle."""

    def __init__(self, replicas: ReplicaProcesses) -> None:
        self.replicas = replicas
        self.http = HttpClient(replicas.clock)
        self.addresses = ",".join(replica.address for replica in replicas.replicas)
        home = replicas.folder / "home"
        home.mkdir(mode=0o700)
        given = home / "bundle.cbor"
        given.write_bytes(replicas.bundle.read_bytes())
        profile = replace(replicas.profile(home, 0), keyservice=self.addresses, bundle=str(given))
        self.owner = Client(profile, create_identity(home, "owner"))
        self.owner.register()
        self.first = self.opened(given.read_bytes())
        tee = replicas.runtime
        self.session = RuntimeSession(self.link(), tee.attester(), tee.configuration, clock=replicas.clock)
        account, rules = self.owner.account, tee.policy()
        account.define_policy(rules)
        model = ModelId(account.identity.id, "model")
        account.say(PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY)), (MODEL_KEY,))
        account.say(Grant("model", account.identity.id, rules.digest, Validity(), 0))
        consent = Consent(model, rules.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
        account.say(consent, (REQUEST,))
        self.request = ReleaseRequest(model.owner, model, REQUEST_KEY, key_commitment(REQUEST))
        self.said: list[int] = []

    def opened(self, data: bytes) -> TrustBundle:
        return open_bundle(data, self.replicas.bundle_key.public_key, 1, self.replicas.clock.now())

    def link(self) -> KeyServiceLink:
        return KeyServiceLink(
            HttpTransport(self.http, self.addresses),
            bundle=lambda: self.first,
            collateral=NoCollateral(),
            clock=self.replicas.clock,
            heads=VolatileHeads(),
        )

    def say(self, count: int) -> None:
        self.owner.account.say(policy(count))
        self.said.append(count)

    def release(self, _count: int) -> None:
        assert self.session.release(self.request, Timings()).key == REQUEST

    def attest(self, _count: int) -> None:
        """Somebody new, who has nothing but the first bundle."""
        self.link().settled()
        time.sleep(0.2)

    def offer(self, data: bytes) -> None:
        """The operator writes the file that all replicas read, and the one that leads takes it."""
        temporary = self.replicas.bundle.with_suffix(".new")
        temporary.write_bytes(data)
        temporary.replace(self.replicas.bundle)
        until = time.monotonic() + 60
        transport = HttpTransport(self.http, self.addresses)
        while transport.get(BUNDLE_PATH, limit=MAX_BUNDLE) != data:
            assert time.monotonic() < until
            time.sleep(0.1)

    def joined(self, build: Build, folder: Path) -> str:
        """What `cloister keyservice join` says of a new replica of this build."""
        command = [sys.executable, "-m", "cloister", "keyservice", "join", "--json", "--state", str(folder)]
        command += ["--simulation-key", str(self.replicas.replicas[0].folder / "platform.key")]
        command += ["--configuration", str(build.configuration), "--bundle", str(self.replicas.bundle)]
        command += [word for replica in self.replicas.replicas for word in ("--from", replica.address)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=build.environment)
        return "" if done.returncode == 0 else str(json.loads(done.stderr)["error"])


def policy(count: int) -> DefinePolicy:
    return DefinePolicy(simulation_policy(count.to_bytes(48, "big")).encode())


def events(client: Client) -> list[dict[str, Any]]:
    return [describe(item["index"], Entry.decode(item["entry"])) for item in client.keyservice_events()]


def test_three_replicas_become_another_build_and_no_request_is_refused(replicas: ReplicaProcesses) -> None:
    world, present = World(replicas), replicas.build
    following = replicas.another_build("lease_s = 30\n")
    assert following.measurement != present.measurement
    assert world.joined(following, replicas.folder / "early") != ""  # nobody signed for it yet
    callers = [Caller(world.say), Caller(world.release), Caller(world.attest)]
    try:
        for caller in callers:
            caller.goes_on()
        world.offer(replicas.sign(2, [present, following], [following]))
        leader = replicas.leader()
        for number in (*(other for other in range(3) if other != leader), leader):  # the one that leads last
            replica = replicas.replicas[number]
            replica.stop()
            replica.build = following  # on the disk of the build before it
            replicas.start(number)
            replicas.leader()
            for caller in callers:
                caller.goes_on()
        third = replicas.sign(3, [following])
        world.offer(third)
        for caller in callers:
            caller.goes_on(20)
    finally:
        silences = [caller.stop() for caller in callers]
    print(f"longest silence: statement {silences[0]:.1f} s, release {silences[1]:.1f} s, attest {silences[2]:.1f} s")
    # nothing that was acknowledged is lost, and all of it runs the next build
    for count in world.said:
        digest = simulation_policy(count.to_bytes(48, "big")).digest
        assert world.owner.account.ask("policy", {"digest": digest})["policy"] == policy(count).policy
    attested = world.link().settled()
    assert attested.appraisal.claims.measurements["measurement"] == following.measurement
    assert attested.appraisal.configuration.values["lease_s"] == 30
    # an auditor sees who got the root secret, and by which bundle
    seen = events(world.owner)
    assert [event["version"] for event in seen if event["kind"] == BUNDLE][-2:] == [2, 3]
    handed = {
        (event["measurements"]["measurement"], event["configuration_digest"], event["bundle_version"])
        for event in seen
        if event["kind"] == HAND_OVER and event["bundle_version"] > 1
    }
    assert handed == {(following.measurement.hex(), following.digest.hex(), 2)}
    # the build before it joins no more, and an operator brings no older bundle back
    assert world.joined(present, replicas.folder / "late") == "replica-other"
    follower = next(number for number in range(3) if replicas.role(number)["role"] == "follower")
    replicas.bundle.write_bytes(replicas.sign(2, [present, following], [following]))
    replicas.replicas[follower].stop()
    replicas.start(follower)
    process = replicas.replicas[follower].process
    assert process is not None
    assert process.wait(60) != 0
    assert "bundle-rollback" in replicas.replicas[follower].log
    replicas.bundle.write_bytes(third)
    replicas.start(follower)
    replicas.leader()
    world.owner.close()
    world.http.close()


def test_a_single_keyservice_is_carried_over_as_the_how_to_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: object) -> dict[str, Any]:
        assert main([*map(str, words), "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    signer, bundle = tmp_path / "root.key", tmp_path / "bundle.cbor"
    pinned = f'bundle_root = "{said("bundle", "key", "--output", signer)["bundle_root"]}"\n'
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = KeyServiceProcess(tmp_path / "old", settings=pinned, arguments=("--bundle", str(bundle)))
    following = tmp_path / "new" / "keyservice.toml"
    following.write_text(f"{pinned}lease_s = 30\n")
    common = ("--simulation-key", old.key_file, "--configuration")
    first = said("keyservice", "measure", *common, old.configuration)
    second = said("keyservice", "measure", *common, following)
    assert second["successor"] == f"{second['measurement']}:{second['configuration']}" != first["successor"]

    def sign(version: int, *builds: dict[str, Any], successors: tuple[str, ...] = ()) -> None:
        policy = tmp_path / f"policy-{version}.toml"
        digests = [bytes.fromhex(build["configuration"]) for build in builds]
        code = bytes.fromhex(builds[0]["measurement"])
        policy.write_text(format_policy(simulation_policy(code, configuration=digests)))
        words = ["--root-key", signer, "--policy", policy, "--name", "alone", "--days", 1, "--version", version]
        words += ["--accept-rollback-unsafe", "--insecure-simulation-key", old.platform.public_key.hex()]
        words += [word for successor in successors for word in ("--successor", successor)]
        made = said("bundle", "sign", *words, "--output", tmp_path / "next.cbor")
        assert made["successors"] == list(successors)
        (tmp_path / "next.cbor").replace(bundle)

    sign(1, first)
    old.start()
    caller = HttpCaller(old.address)
    person = Person(old.root.id, old.clock)
    caller.call(calls.STATEMENT, person.register())
    state = tmp_path / "new" / "state"
    joining = ("keyservice", "join", "--state", state, *common, following, "--bundle", bundle, "--from", old.address)
    assert main([*map(str, joining)]) == 1
    capsys.readouterr()
    sign(2, first, second, successors=(second["successor"],))
    until = time.monotonic() + 60
    while caller.get(BUNDLE_PATH, limit=MAX_BUNDLE) != bundle.read_bytes():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert said(*joining)["keyservice"] == old.root.id.hex()
    caller.close()
    assert old.stop() == 0
    for path in old.state.glob("store.sqlite*"):
        shutil.copy2(path, state)
    new = KeyServiceProcess(
        tmp_path / "new", settings=following.read_text(), arguments=("--bundle", str(bundle)), state=state
    )
    try:
        new.start()
        caller = HttpCaller(new.address)
        assert caller.call(calls.QUERY, person.query("whoami", {}))["id"] == person.id
        asked = said("keyservice", "status", "--address", new.address)
        assert asked["configuration"] == second["configuration"]
        assert asked["bundle"] == said("bundle", "show", bundle, "--bundle-root", _root(pinned))["digest"]
        items = caller.call(calls.QUERY, person.query("keyservice-events", {}))["items"]
        seen = [describe(item["index"], Entry.decode(item["entry"])) for item in items]
        assert [event["kind"] for event in seen][-2:] == [BUNDLE, HAND_OVER]
        assert seen[-1]["configuration_digest"] == second["configuration"]
        caller.close()
    finally:
        new.kill()


def _root(line: str) -> str:
    return line.split('"')[1]
