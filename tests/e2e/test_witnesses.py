"""A whole Cloister with three witnesses: infer, audit, kill witnesses, bring them back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.base.errors import CloisterError, Refused, Unavailable
from cloister.base.ids import ModelId
from cloister.client.client import Client
from cloister.client.identity import create_identity
from cloister.testing.local_cloud import LocalCloud
from cloister.wire.statements import RevokeConsent


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    folder = tmp_path_factory.mktemp("cloud") / "state"
    auditor = create_identity(folder / "home", "auditor")
    cloud = LocalCloud(folder, witnesses=3, keyservice_settings={"auditors": [auditor.id.hex()]})
    cloud.prepare()
    keyservice = cloud.start_keyservice()
    cloud.write_profile(keyservice, "http://127.0.0.1:1")
    yield cloud
    cloud.stop()


def cloister(*arguments: str) -> tuple[int, dict[str, object]]:
    command = [sys.executable, "-m", "cloister", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, json.loads(done.stdout or done.stderr)


def test_an_auditor_that_is_named_reads_and_replays_all_of_it(cloud: LocalCloud, tmp_path: Path) -> None:
    for name in ("auditor", "carol"):
        if name == "carol":
            create_identity(cloud.home, name)
        with Client.open(cloud.home, name) as client:
            client.account.register()
            client.account.define_policy(cloud.runtime_policy())
    home, file = ["--home", str(cloud.home)], tmp_path / "all.log"
    status, told = cloister("log", "export", "--all", "--out", str(file), "--as", "carol", *home)
    assert (status, told["error"]) == (1, "not-auditor")
    assert list(tmp_path.iterdir()) == []
    status, made = cloister("log", "export", "--all", "--out", str(file), "--as", "auditor", *home)
    assert status == 0, made
    assert made["opened"] == made["entries"]
    pinned = ["--bundle", str(cloud.folder / "bundle.cbor"), "--bundle-root", cloud.root.public_key.hex()]
    status, verdict = cloister("log", "verify", str(file), *pinned)
    assert (status, verdict["verdict"]) == (0, "genuine"), verdict
    audited = verdict["audit"]
    assert isinstance(audited, dict)
    assert audited["findings"] == []
    assert audited["statements"] >= 4
    assert cloister("log", "readers", str(file))[1]["readers"] == []
    status, told = cloister("log", "export", "--all", "--keyservice", "http://127.0.0.1:1", "--out", str(file))
    assert (status, told["error"]) == (1, "argument")


def test_say_export_verify_and_show(cloud: LocalCloud, tmp_path: Path) -> None:
    create_identity(cloud.home, "alice")
    with Client.open(cloud.home, "alice") as client:
        client.account.register()
        client.account.define_policy(cloud.runtime_policy())
        seen = client.account.keyring.newest(client.account.link.attested().description.keyservice)
        assert seen is not None
    own, whole = tmp_path / "alice.log", tmp_path / "whole.log"
    home = ["--home", str(cloud.home), "--as", "alice"]
    status, made = cloister("log", "export", "--out", str(own), *home)
    assert status == 0
    assert int(str(made["opened"])) >= 2  # its own, and that the trust bundle came into use, once that is written
    assert int(str(made["cosignatures"])) >= 2
    address = (cloud.folder / "keyservice" / "address").read_text().strip()
    assert cloister("log", "export", "--out", str(whole), "--keyservice", address)[0] == 0
    pinned = ["--bundle", str(cloud.folder / "bundle.cbor"), "--bundle-root", cloud.root.public_key.hex()]
    for file, earlier in ((own, whole), (whole, own)):
        status, verdict = cloister("log", "verify", str(file), "--earlier", str(earlier), *pinned)
        assert (status, verdict["verdict"]) == (0, "genuine"), verdict
    status, live = cloister("verify", "--url", address, *pinned)
    assert status == 0, live
    assert {"step": "witnesses", "verdict": "PASS"}.items() <= next(
        step
        for step in live["steps"]
        if step["step"] == "witnesses"  # type: ignore[attr-defined]
    ).items()
    status, shown = cloister("log", "show", str(own), *pinned)
    events = shown["events"]
    assert isinstance(events, list)
    said = [event["statement"] for event in events if event["kind"] == "statement"]
    assert said == ["register", "define-policy"]
    assert {event["kind"] for event in events} <= {"statement", "bundle"}
    data = bytearray(own.read_bytes())
    data[-40] ^= 1
    own.write_bytes(data)
    assert cloister("log", "verify", str(own), *pinned)[0] == 1


def test_without_witnesses_nothing_is_said_and_questions_are_answered(cloud: LocalCloud) -> None:
    create_identity(cloud.home, "bob")
    with Client.open(cloud.home, "bob") as client:
        client.account.register()
        cloud.stop_service("witness-1", kill=True)
        cloud.stop_service("witness-2", kill=True)
        with pytest.raises(Unavailable) as caught:
            client.account.define_policy(cloud.runtime_policy())
        assert caught.value.code == "keyservice-unconfirmed"
        assert client.account.ask("whoami")["id"] == client.account.identity.id
        assert client.account.confirmed_s is not None
        cloud.start_witnesses()
        for _ in range(100):
            try:
                client.account.say(RevokeConsent(ModelId(client.account.identity.id, "none")))
            except Unavailable as error:
                threading.Event().wait(error.retry_after)
                continue
            break
        assert client.account.define_policy(cloud.runtime_policy()) == cloud.runtime_policy().digest


def test_the_number_of_witnesses_is_measured(cloud: LocalCloud) -> None:
    with pytest.raises(Refused) as caught:
        LocalCloud(cloud.folder, witnesses=0).prepare()
    assert caught.value.code == "state-of-another-kind"
    LocalCloud(cloud.folder).prepare()
    assert issubclass(Refused, CloisterError)
