"""Two persons of a hospital, by the commands: one says it, the other sees what it would do and says it too."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cloister.base.errors import Refused
from cloister.base.ids import ModelId
from cloister.cli.main import main
from cloister.client.client import Client
from cloister.client.identity import create_identity, identity_id_of
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.models.small import sum_difference
from cloister.wire.statements import FOREVER

INPUTS = {"a": np.array([[1.0, 2.0, 3.0]], np.float32), "b": np.array([[10.0, 20.0, 30.0]], np.float32)}
Command = Callable[..., dict[str, Any]]


@pytest.fixture
def command(cloud: LocalCloud, capsys: pytest.CaptureFixture[str]) -> Command:
    """``command("anna", "grant", ...)``: what it says; ``error`` where it failed; ``text`` for people."""

    def run(who: str, *words: str, as_json: bool = True) -> dict[str, Any]:
        capsys.readouterr()
        status = main([*words, "--home", str(cloud.home), "--as", who, *(["--json"] if as_json else [])])
        said = capsys.readouterr()
        if not as_json:
            return {"status": status, "text": said.out or said.err}
        found: dict[str, Any] = json.loads(said.out or said.err)
        return {"status": status, **found}

    return run


@pytest.fixture(scope="module")
def hospital(cloud: LocalCloud, tmp_path_factory: pytest.TempPathFactory) -> ModelId:
    """Its model, published, and its two delegates; from then on it takes two."""
    folder = tmp_path_factory.mktemp("hospital")
    (folder / "sums.onnx").write_bytes(sum_difference())
    for name in ("hospital", "anna", "ben", "doctor", "nurse"):
        create_identity(cloud.home, name)
        with Client.open(cloud.home, name) as client:
            client.register()
    with Client.open(cloud.home, "hospital") as client:
        client.pack(folder / "sums.onnx", folder / "packed", name="sums", version=1)
        client.publish(folder / "packed")
        beside = [identity_id_of(cloud.home, name) for name in ("anna", "ben")]
        for delegate in beside:
            client.delegate(delegate, FOREVER)
        assert client.require_approval(tuple(beside))["pending"] == 0
        return client.own_model("sums")


def test_grants_of_a_hospital_take_two(cloud: LocalCloud, hospital: ModelId, command: Command) -> None:
    policy = str(cloud.policy_file)
    assert command("doctor", "consent", str(hospital), "--policy", policy)["pending"] == 0

    granted = command("anna", "grant", "sums", "--for", "hospital", "--to", "doctor", "--policy", policy)
    assert granted["status"] == 0
    assert granted["pending"] > 0
    entry = str(granted["entry"])
    again = command("anna", "grant", "sums", "--for", "hospital", "--to", "ben", "--policy", policy, as_json=False)
    assert "waits for a second person until" in again["text"]
    assert "Nothing has changed yet" in again["text"]
    with Client.open(cloud.home, "doctor") as doctor:
        with pytest.raises(Refused) as caught:
            doctor.infer(hospital, INPUTS)
        assert caught.value.code == "refused-by-owner"

        own = command("anna", "approvals", "list", "--for", "hospital", as_json=False)["text"]
        assert "somebody else has to approve it" in own
        shown = command("ben", "approvals", "approve", entry, "--for", "hospital", as_json=False)
        assert shown["status"] == 1
        assert doctor.account.identity.text in shown["text"]
        assert "use model 'sums' for ever" in shown["text"]
        assert "warning:" in shown["text"], "what the policy leaves open"
        code = command("ben", "approvals", "approve", entry, "--for", "hospital")["code"]
        wrong = command("ben", "approvals", "approve", entry, "--for", "hospital", "--code", "0" * 16)
        assert wrong["error"] == "approval-other"
        own_try = command("anna", "approvals", "approve", entry, "--for", "hospital", "--code", code)
        assert own_try["error"] == "approval-same-person"
        waiting = command("hospital", "access", "why", "sums", "--user", "doctor", as_json=False)["text"]
        assert f"log entry {entry}" in waiting
        done = command("ben", "approvals", "approve", entry, "--for", "hospital", "--code", code)
        assert done["approved"] is True
        assert np.array_equal(doctor.infer(hospital, INPUTS)["sum"], INPUTS["a"] + INPUTS["b"])

    (left,) = command("hospital", "approvals", "list")["waiting"]
    assert command("hospital", "approvals", "decline", str(left["entry"]))["declined"] == left["entry"]
    assert command("hospital", "approvals", "list")["waiting"] == []
    gone = command("ben", "approvals", "approve", str(left["entry"]), "--for", "hospital", "--code", left["code"])
    assert gone["error"] == "approval-unknown"
    assert command("anna", "revoke", "sums", "--for", "hospital", "--from", "doctor")["status"] == 0
    log = command("doctor", "access", "log")["events"]
    assert [row["statement"] for row in log if "statement" in row][-2:] == ["Approve", "RevokeGrant"]


def test_a_consent_that_waits_is_used_once_a_second_person_says_it_too(
    cloud: LocalCloud, hospital: ModelId, command: Command
) -> None:
    policy = str(cloud.policy_file)
    assert command("nurse", "consent", str(hospital), "--policy", policy)["pending"] == 0
    assert command("nurse", "approvals", "require", "--yes")["error"] == "approval-nobody"
    assert command("nurse", "identity", "delegate", "--to", "ben", "--until", "3650d")["pending"] == 0
    asked = command("nurse", "approvals", "require")
    assert asked["error"] == "not-confirmed"
    assert identity_id_of(cloud.home, "ben").hex() in asked["details"]
    one = command("nurse", "approvals", "require", "--yes", as_json=False)["text"]
    assert "one delegate only" in one
    shown = command("nurse", "identity", "show")
    assert (shown["approvals"], list(shown["delegates"])) == (2, [identity_id_of(cloud.home, "ben").hex()])
    assert "delegate: " in command("nurse", "identity", "show", as_json=False)["text"]
    granted = command("anna", "grant", "sums", "--for", "hospital", "--to", "nurse", "--policy", policy)
    shown = command("hospital", "approvals", "approve", str(granted["entry"]))
    command("hospital", "approvals", "approve", str(granted["entry"]), "--code", shown["code"])
    with Client.open(cloud.home, "nurse") as nurse:
        before = nurse.infer(hospital, INPUTS)["sum"]
        waits = nurse.rotate_request_key(hospital)
        assert waits["pending"]
        consent = nurse.consent(hospital, cloud.runtime_policy())
        assert (consent.pending > 0, consent.entry > waits["entry"]) == (True, True)
        assert np.array_equal(nurse.infer(hospital, INPUTS)["sum"], before), "the old key goes on"
        entry = str(consent.entry)
        shown = command("ben", "approvals", "approve", entry, "--for", "nurse")
        assert "see requests to model" in shown["words"]
        assert command("ben", "approvals", "approve", entry, "--for", "nurse", "--code", shown["code"])["approved"]
    with Client.open(cloud.home, "nurse") as nurse:
        assert np.array_equal(nurse.infer(hospital, INPUTS)["sum"], before)
        assert nurse.account.keyring.waiting_entries(str(hospital)) == []
        assert nurse.waiting() == []
        key = nurse.keys.consented(hospital)
        assert key.key == consent.key
    ended = command("nurse", "approvals", "end")
    shown = command("ben", "approvals", "approve", str(ended["entry"]), "--for", "nurse")
    command("ben", "approvals", "approve", str(ended["entry"]), "--for", "nurse", "--code", shown["code"])
    with Client.open(cloud.home, "nurse") as nurse:
        assert nurse.whoami()["approvals"] == 1
        assert nurse.rotate_request_key(hospital)["pending"] == 0
        assert np.array_equal(nurse.infer(hospital, INPUTS)["sum"], before)
