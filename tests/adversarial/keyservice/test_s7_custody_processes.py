"""S2, S7 with real processes: the machine is lost with its disk, and custodians bring the KeyService back elsewhere."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.attest.bundle import TrustBundle
from cloister.base.errors import Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.client.custodian import public_file
from cloister.crypto.sign import SigningKey
from cloister.keyservice.custody.upkeep import Custodians
from cloister.keyservice.offline import ROOT_FILE
from cloister.keyservice.opening import read_settings, simulated_tee
from cloister.testing.embedded import attest_request
from cloister.testing.keyservice_clone import snapshot
from cloister.testing.keyservice_process import HttpCaller, KeyServiceProcess
from cloister.testing.people import Person, simulation_policy
from cloister.testing.postgres import PostgresServer
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import WitnessProcess
from cloister.wire import calls, provisioning
from cloister.wire.custody import custodian_id, read_public_key
from cloister.wire.provisioning import Release, ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Consent,
    DefinePolicy,
    Grant,
    PublishModel,
    RevokeGrant,
    Validity,
    key_commitment,
)

MODEL_KEY, REQUEST = SecretBytes(b"M" * 32), SecretBytes(b"Q" * 32)
HERE, ELSEWHERE = b"p" * 32, b"e" * 32  # platforms
ROOT = SigningKey.from_seed(SecretBytes(b"b" * 32))  # signs trust bundles


def cloister(*words: str, **environment: str) -> dict[str, Any]:
    """One command; what it printed, or its error."""
    done = subprocess.run(
        [sys.executable, "-m", "cloister", *words, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ | environment,
    )
    text = done.stdout if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
    return dict(json.loads(text))


# The command in a TEE that has no sealing key, as TDX and Nitro have none.
UNSEALED = """
import sys
from dataclasses import replace
from cloister.cli.keyservice import options
from cloister.cli.main import main
found = options.open_place
def unsealed(args):
    place = found(args)
    return replace(place, tee=replace(place.tee, sealer=None))
options.open_place = unsealed
sys.exit(main(sys.argv[1:]))
"""


class Waiting:
    """``cloister keyservice recover``, until it ends."""

    def __init__(self, *words: str, sealed: bool = True) -> None:
        command = [sys.executable, *(("-m", "cloister") if sealed else ("-c", UNSEALED))]
        command += ["keyservice", "recover", "--json", "--listen", "127.0.0.1:0", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.said = self.next()
        self.address = str(self.said.get("address", ""))

    def next(self) -> dict[str, Any]:
        """What it says next; nothing when it ended."""
        lines: list[str] = []
        assert self.process.stdout is not None
        while not lines or lines[-1] != "}\n":
            line = self.process.stdout.readline()
            if not line:
                return {}
            lines.append(line)
        return dict(json.loads("".join(lines)))

    def end(self) -> tuple[int, dict[str, Any], str]:
        """Status, what it said at last, its log."""
        out, log = self.process.communicate(timeout=60)
        return self.process.returncode, dict(json.loads(out)) if out.strip() else {}, log


class Scene:
    """A KeyService with a witness and three custodians, two of whom bring it back; a release succeeds."""

    def __init__(self, folder: Path, store: str | None = None) -> None:
        self.folder = folder
        self.store = store
        self.custodians = [folder / f"custodian{number}" / "key" for number in range(3)]
        self.passphrases = {self.custodians[2]: "correct horse"}
        made = [cloister("custodian", "keygen", "--key", str(key), **self._environment(key)) for key in self.custodians]
        self.ids = [str(each["custodian"]) for each in made]
        self.witness = WitnessProcess(folder / "w")
        self.witness.start()
        listed = ", ".join(f'"{each}"' for each in self.ids)
        (folder / "ks").mkdir()
        self.bundle = folder / "bundle.cbor"
        files = [word for key in self.custodians for word in ("--custodian", str(public_file(key)))]
        self.arguments = (*files, "--witness", self.witness.address, "--bundle", str(self.bundle))
        self.settings = (
            f'rollback_protection = "witnesses"\nwitnesses = ["{self.witness.key.public_key.hex()}"]\n'
            f'witness_threshold = 1\nsimulation_keys = ["{_public(HERE)}"]\nbundle_root = "{ROOT.public_key.hex()}"\n'
            f"custodians = [{listed}]\ncustodian_threshold = 2\n"
        )
        keys = [read_public_key(public_file(key).read_bytes()) for key in self.custodians]
        self.process = KeyServiceProcess(
            folder / "ks",
            settings=self.settings,
            arguments=self.arguments,
            custodians=Custodians({custodian_id(key): key for key in keys}),
            store=store,
        )
        self.processes = [self.process]
        self.callers: list[HttpCaller] = []
        self.witness.add(self.process.root.log_key.public_key)
        now = int(self.process.clock.now())
        measured = self.process.settings.measured().digest
        self.trust = TrustBundle(
            root=ROOT.public_key,
            version=1,
            name="test",
            issued_at=now - 60,
            expires_at=now + 86_400,
            keyservice=simulation_policy(self.process.tee.measurement, configuration=[measured]),
            accept_simulation=True,
            simulation_keys=(bytes.fromhex(_public(HERE)), bytes.fromhex(_public(ELSEWHERE))),
            witnesses=(self.witness.key.public_key,),
            witness_threshold=1,
        )
        self.bundle.write_bytes(self.trust.sign(ROOT))
        self.runtime = SimulatedTee("runtime", key=self.process.platform, clock=self.process.clock)
        self.process.start()
        caller = self.caller(self.process)
        self.owner, self.user = (Person(self.process.root.id, self.process.clock) for _ in range(2))
        policy = self.runtime.policy()
        for person in (self.owner, self.user):
            caller.call(calls.STATEMENT, person.register())
            caller.call(calls.STATEMENT, person.statement(DefinePolicy(policy.encode())))
        model = ModelId(self.owner.id, "model")
        published = PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))
        caller.call(calls.STATEMENT, self.owner.statement(published), (MODEL_KEY,))
        caller.call(calls.STATEMENT, self.owner.statement(Grant("model", self.user.id, policy.digest, Validity(), 0)))
        consent = Consent(model, policy.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
        caller.call(calls.STATEMENT, self.user.statement(consent), (REQUEST,))
        self.request = ReleaseRequest(self.user.id, model, REQUEST_KEY, key_commitment(REQUEST))

    def _environment(self, key: Path) -> dict[str, str]:
        return {"CLOISTER_PASSPHRASE": self.passphrases[key]} if key in self.passphrases else {}

    def caller(self, process: KeyServiceProcess) -> HttpCaller:
        self.callers.append(HttpCaller(process.address))
        return self.callers[-1]

    def release(self, caller: HttpCaller) -> Release:
        request, key = attest_request(self.runtime, caller.post("/v1/challenge", b"", limit=1024))
        session = provisioning.accept_session(caller.call(calls.ATTEST, request.encode()), request, key)
        data = provisioning.seal_session_call(session, 1, self.request.fields())
        reply = caller.post("/v1/session", data, limit=2**20)
        return Release.read(provisioning.open_session_reply(session, data, reply))

    def backup(self, name: str) -> Path:
        """The store only, as it lies on the disk; the root is of no use elsewhere."""
        folder = snapshot(self.process, self.folder / name)
        (folder / ROOT_FILE).unlink()
        return folder

    def lose(self) -> None:
        """``kill -9``, and the disk is gone."""
        self.process.kill()
        shutil.rmtree(self.process.state)

    def recover(
        self, state: Path, *more: str, platform: bytes = ELSEWHERE, settings: str = "", sealed: bool = True
    ) -> Waiting:
        place = self.folder / f"{state.name}-machine"
        place.mkdir(exist_ok=True)
        (place / "platform").write_text(platform.hex())
        (place / "keyservice.toml").write_text(settings or self.settings)
        return Waiting(
            *("--state", str(state), "--simulation-key", str(place / "platform"), "--bundle", str(self.bundle)),
            *("--configuration", str(place / "keyservice.toml"), "--keyservice", self.process.root.id.hex()),
            *(() if self.store is None else ("--store", self.store)),
            *more,
            sealed=sealed,
        )

    def answer(self, number: int, address: str, *more: str) -> dict[str, Any]:
        key = self.custodians[number]
        trust = ("--bundle", str(self.bundle), "--bundle-root", ROOT.public_key.hex())
        return cloister(
            "custodian", "answer", "--key", str(key), "--to", address, *trust, *more, **self._environment(key)
        )

    def run(self, state: Path) -> KeyServiceProcess:
        (self.folder / f"{state.name}-run").mkdir()
        process = KeyServiceProcess(
            self.folder / f"{state.name}-run",
            settings=self.settings,
            arguments=self.arguments,
            state=state,
            platform=ELSEWHERE,
            store=self.store,
        )
        self.processes.append(process)
        process.start()
        return process

    def close(self) -> None:
        for caller in self.callers:
            caller.close()
        for process in (*self.processes, self.witness):
            process.kill()


def _public(seed: bytes) -> str:
    return SigningKey.from_seed(SecretBytes(seed)).public_key.hex()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def test_s2_s7_the_machine_is_lost_and_two_of_three_custodians_bring_it_back_elsewhere(scene: Scene) -> None:
    assert scene.release(scene.caller(scene.process)).key == REQUEST
    file, state = scene.folder / "backup.cbor", scene.folder / "restored"
    assert "error" not in cloister("keyservice", "backup", "--state", str(scene.process.state), "--out", str(file))
    scene.lose()
    restored = cloister("keyservice", "restore", "--state", str(state), "--from", str(file))
    assert "error" not in restored
    assert not (state / ROOT_FILE).exists()
    waiting = scene.recover(state)
    assert (waiting.said["threshold"], sorted(waiting.said["custodians"])) == (2, sorted(scene.ids))

    checked = scene.answer(0, waiting.address, "--only-check")
    assert (checked["given"], checked["keyservice"]) == (False, scene.process.root.id.hex())
    assert checked["code"] == "the one that was lost"
    assert scene.answer(0, waiting.address)["error"] == "not-confirmed"
    assert scene.answer(0, waiting.address, "--yes", "--keyservice", "00" * 32)["error"] == "keyservice-other"
    for answered in (1, 1):  # again: he is one
        assert scene.answer(0, waiting.address, "--yes")["answered"] == answered
    assert scene.answer(2, waiting.address, "--yes")["answered"] == 2
    status, said, log = waiting.end()
    assert (status, said["recovered"], said["keyservice"]) == (0, True, scene.process.root.id.hex())
    assert [json.loads(line)["custodian"] for line in log.splitlines() if '"share"' in line] == [
        scene.ids[0],
        scene.ids[0],
        scene.ids[2],
    ]

    back = scene.run(state)
    caller = scene.caller(back)
    assert scene.release(caller).key == REQUEST  # which its witness confirmed
    caller.call(calls.STATEMENT, scene.owner.statement(RevokeGrant("model", scene.user.id)))
    shown = caller.call(calls.QUERY, scene.owner.query("whoami", {}))
    assert shown["confirmed"] >= 0
    refused = cloister("keyservice", "recover", "--state", str(state), *_same(scene, "restored"))
    assert refused["error"] in ("state-exists", "store-locked")


def _same(scene: Scene, name: str) -> tuple[str, ...]:
    place = scene.folder / f"{name}-machine"
    return (
        *("--simulation-key", str(place / "platform"), "--bundle", str(scene.bundle)),
        *("--configuration", str(place / "keyservice.toml")),
    )


def test_s7_where_nothing_can_be_sealed_it_is_brought_back_for_as_long_as_it_runs(scene: Scene) -> None:
    state = scene.backup("restored")
    scene.lose()
    waiting = scene.recover(state, *scene.arguments[:-2], sealed=False)
    for number in (0, 1):
        assert scene.answer(number, waiting.address, "--yes")["given"]
    assert waiting.next()["recovered"]
    caller = HttpCaller(waiting.next()["address"])
    scene.callers.append(caller)
    assert scene.release(caller).key == REQUEST
    assert not (state / ROOT_FILE).exists()
    waiting.process.terminate()
    assert waiting.end()[0] == 0


def test_s2_s7_the_machine_is_lost_just_after_its_root_was_rotated(scene: Scene) -> None:
    """The new root has shares before anything runs on it, and the old record opens nothing of the store."""
    shown = cloister("keyservice", "status", "--state", str(scene.process.state))["custody"]
    assert (shown["threshold"], sorted(shown["custodians"]), shown["entry"]) == (2, sorted(scene.ids), 1)
    assert shown["recoverable"]
    scene.process.stop()
    words = ("--state", str(scene.process.state), "--simulation-key", str(scene.process.key_file))
    words += ("--configuration", str(scene.process.configuration), "--witness", scene.witness.address)
    assert cloister("keyservice", "rotate-root", *words)["error"] == "custodian-keys"  # before anything was done
    every = [word for key in scene.custodians for word in ("--custodian", str(public_file(key)))]
    assert cloister("keyservice", "rotate-root", *words, *every)["generation"] == 1
    state = scene.backup("restored")
    scene.lose()
    waiting = scene.recover(state)
    for number in (1, 2):
        assert scene.answer(number, waiting.address, "--yes")["given"]
    assert waiting.end()[0] == 0
    back = scene.run(state)
    assert scene.release(scene.caller(back)).key == REQUEST
    assert cloister("keyservice", "status", "--state", str(state))["generation"] == 1


def test_s2_s7_only_the_database_is_left(tmp_path: Path, postgres: PostgresServer) -> None:
    """Nothing is restored: the machine is gone, and what it needs lies with its records."""
    schema = f"t{secrets.token_hex(6)}"
    scene = Scene(tmp_path, postgres.url(schema))
    try:
        scene.lose()
        waiting = scene.recover(tmp_path / "new")
        for number in (0, 2):
            assert scene.answer(number, waiting.address, "--yes")["given"]
        assert waiting.end()[0] == 0
        assert scene.release(scene.caller(scene.run(tmp_path / "new"))).key == REQUEST
    finally:
        scene.close()
        postgres.sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


def test_s7_a_backup_from_before_a_revocation_is_brought_back_and_releases_nothing(scene: Scene) -> None:
    state = scene.backup("old")
    scene.caller(scene.process).call(calls.STATEMENT, scene.owner.statement(RevokeGrant("model", scene.user.id)))
    scene.lose()
    waiting = scene.recover(state)
    for number in (1, 2):
        scene.answer(number, waiting.address, "--yes")
    assert waiting.end()[0] == 0
    caller = scene.caller(scene.run(state))
    for attempt in (
        lambda: scene.release(caller),
        lambda: caller.call(calls.STATEMENT, scene.owner.statement(RevokeGrant("model", scene.user.id))),
    ):
        with pytest.raises(Unavailable) as caught:
            attempt()
        assert caught.value.code == "keyservice-superseded"


def test_s2_s7_the_host_chooses_neither_configuration_nor_platform_nor_time(scene: Scene) -> None:
    """Before anybody is called, the command itself says so; and stopped half way, nothing is left of the shares."""
    state = scene.backup("restored")
    scene.lose()
    for change in (
        {"settings": scene.settings + "lease_s = 30\n"},
        {"platform": b"x" * 32},
        {"settings": scene.settings.replace("custodian_threshold = 2", "custodian_threshold = 3")},
    ):
        status, _, log = scene.recover(state, **change).end()  # type: ignore[arg-type]
        assert status == 1
        assert json.loads(log.splitlines()[-1])["error"] in ("configuration-not-allowed", "simulation-refused")
    waiting = scene.recover(state)
    scene.answer(0, waiting.address, "--yes")
    waiting.process.terminate()
    status, said, log = waiting.end()
    assert (status, said) == (1, {})
    assert json.loads(log.splitlines()[-1])["error"] == "recovery-stopped"
    assert not (state / ROOT_FILE).exists()
    again = scene.recover(state)  # he has to answer again: the key that his share was sealed to is gone
    assert scene.answer(1, again.address, "--yes")["answered"] == 1
    again.process.kill()
    again.end()


def test_s7_a_custodian_under_another_bundle_or_with_another_key_gives_nothing(scene: Scene) -> None:
    state = scene.backup("restored")
    scene.lose()
    waiting = scene.recover(state)
    other = scene.folder / "newer.cbor"
    other.write_bytes(replace(scene.trust, version=2).sign(ROOT))
    words = ("--key", str(scene.custodians[0]), "--to", waiting.address, "--yes", "--bundle")
    root = ("--bundle-root", ROOT.public_key.hex())
    assert cloister("custodian", "answer", *words, str(other), *root)["error"] == "keyservice-bundle-differs"
    key = scene.folder / "stranger"
    cloister("custodian", "keygen", "--key", str(key))
    words = ("--key", str(key), "--to", waiting.address, "--yes", "--bundle", str(scene.bundle))
    assert cloister("custodian", "answer", *words, *root)["error"] == "custodian-unknown"
    words = ("--key", str(scene.custodians[2]), "--to", waiting.address, "--yes", "--bundle", str(scene.bundle))
    assert cloister("custodian", "answer", *words, *root)["error"] == "passphrase-wrong"
    waiting.process.kill()
    assert "share" not in waiting.end()[2].replace("share-", "")


def test_s8_init_and_run_say_which_public_key_is_missing(scene: Scene) -> None:
    settings = read_settings(scene.process.configuration)
    tee = simulated_tee(scene.process.key_file, settings, scene.process.clock)
    assert tee.measurement == scene.process.tee.measurement
    configured = ("--configuration", str(scene.process.configuration), "--simulation-key", str(scene.process.key_file))
    one = ("--custodian", str(public_file(scene.custodians[0])))
    made = cloister("keyservice", "init", "--state", str(scene.folder / "new"), *configured, *one)
    assert made["error"] == "custodian-keys"
    assert not (scene.folder / "new" / ROOT_FILE).exists()
    bad = ("--custodian", str(scene.process.configuration))
    made = cloister("keyservice", "init", "--state", str(scene.folder / "new"), *configured, *bad)
    assert made["error"] == "custodian-key-malformed"
    every = [word for key in scene.custodians for word in ("--custodian", str(public_file(key)))]
    assert "keyservice" in cloister("keyservice", "init", "--state", str(scene.folder / "new"), *configured, *every)
