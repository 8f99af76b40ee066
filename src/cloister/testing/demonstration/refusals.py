"""Act two: what everybody tries who may not, and what the cloud tries. Each is refused, with its code."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np

import cloister
from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.base.errors import CloisterError, Refused, Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.client.client import Client
from cloister.client.inference import open_inference, seal_inference
from cloister.client.keyring import RequestKey
from cloister.testing.demonstration.report import Report
from cloister.testing.demonstration.serving import PATIENTS, offer
from cloister.testing.demonstration.stage import LEASE_S, Stage
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.models.patients import PatientModel
from cloister.wire import calls
from cloister.wire.statements import REQUEST_KEY, Grant, RevokeGrant, Statement, Validity, sign_statement

_DEADLINE_S: Final = 20.0


def try_everything(stage: Stage, report: Report, patients: PatientModel) -> None:
    """Each refusal; what depends on good order comes first, what breaks something last."""
    model = stage.alice.own_model(PATIENTS)
    row = {"measurements": patients.test_inputs[:1]}
    people_who_may_not(stage, report, model, row)
    changed_on_the_way(stage, report, model, row)
    said_again(stage, report)
    another_keyservice(stage, report)
    another_runtime(stage, report, model)
    swapped_model(stage, report, patients)
    revoked(stage, report, model, row)


def people_who_may_not(stage: Stage, report: Report, model: ModelId, row: dict[str, np.ndarray]) -> None:
    """Carol consents without a grant; dave has a grant and no consent, and forges one locally."""
    policy = stage.cloud.runtime_policy()
    carol, dave = stage.people["carol"], stage.people["dave"]
    carol.consent(model, policy)
    report.refused("a user without a grant", {"refused-by-owner"}, lambda: carol.infer(model, row))
    stage.alice.grant(PATIENTS, dave.account.identity.id, policy)
    forged = RequestKey(REQUEST_KEY, policy.digest, None, SecretBytes(os.urandom(32)))
    dave.account.keyring.put_request_key(str(model), forged)
    report.refused("a user without consent", {"consent-missing"}, lambda: dave.infer(model, row))


def changed_on_the_way(stage: Stage, report: Report, model: ModelId, row: dict[str, np.ndarray]) -> None:
    """The network flips a byte of a request and of a response, and answers one request with another's response."""
    bob, wire = stage.bob, stage.gateway_wire
    same = wire.change

    def flip(data: bytes, way: str, when: str) -> bytes:
        if way != when or len(data) < 200:
            return data
        return data[:-1] + bytes([data[-1] ^ 1])

    try:
        wire.change = lambda data, way: flip(data, way, "up")
        report.refused("a flipped byte in a request", {"request-refused"}, lambda: bob.infer(model, row))
        wire.change = lambda data, way: flip(data, way, "down")
        report.refused("a flipped byte in a response", {"chunk-open"}, lambda: bob.infer(model, row))
    finally:
        wire.change = same
    now = bob.clock.now()
    first, second = (seal_inference(bob.keys.key(model), bob.account.identity, row, (), now) for _ in range(2))
    answer = bob.exchange(first, _DEADLINE_S)
    bob.exchange(second, _DEADLINE_S)
    report.refused("a swapped response", {"chunk-open"}, lambda: open_inference(second, answer, None))


def said_again(stage: Stage, report: Report) -> None:
    """A replayed statement; a grant withheld by the network and delivered after its revocation."""
    account, link = stage.alice.account, stage.alice.account.link
    user, policy = stage.people["dave"].account.identity.id, stage.cloud.runtime_policy().digest

    def signed(body: Grant | RevokeGrant) -> bytes:
        keyservice = link.attested().description.keyservice
        return sign_statement(
            Statement(
                keyservice=keyservice,
                issuer=account.identity.id,
                subject=account.identity.id,
                sequence=account.keyring.next_sequence(keyservice, account.clock.now()),
                issued_at=int(account.clock.now()),
                lifetime=600,
                body=body,
            ),
            account.identity.key,
        )

    grant = Grant(PATIENTS, user, policy, Validity(), 0)
    said = signed(grant)
    link.call(calls.STATEMENT, lambda _: said)
    report.refused("a replayed statement", {"statement-replayed"}, lambda: link.call(calls.STATEMENT, lambda _: said))
    withheld = signed(grant)  # the network keeps it
    stage.alice.revoke(PATIENTS, user)
    report.refused(
        "a grant withheld by the network and delivered after its revocation",
        {"statement-replayed"},
        lambda: link.call(calls.STATEMENT, lambda _: withheld),
    )


def another_keyservice(stage: Stage, report: Report) -> None:
    """The genuine code, with the operator's own platform key among its roots."""
    other = LocalCloud(stage.folder / "other", keyservice_settings={"lease_s": LEASE_S + 1})
    shutil.copytree(
        stage.cloud.folder, other.folder, ignore=shutil.ignore_patterns("store", "keyservice*", "home", "gateway*")
    )
    (other.folder / "bundle.cbor").unlink()
    try:
        other.prepare()
        shutil.copy(stage.cloud.folder / "bundle.cbor", other.folder / "bundle.cbor")
        address = other.start_keyservice()
        profile = dataclasses.replace(stage.bob.profile, keyservice=address)
        with Client(profile, stage.bob.account.identity) as client:
            report.refused(
                "a KeyService started with another configuration", {"configuration-not-allowed"}, client.whoami
            )
    finally:
        other.stop()


def another_runtime(stage: Stage, report: Report, model: ModelId) -> None:
    """A runtime whose code differs by one byte, on the same platform, asks for bob's keys."""
    with tempfile.TemporaryDirectory(prefix="cloister-") as folder:
        package = Path(folder) / "cloister"
        shutil.copytree(Path(cloister.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        target = package / "runtime" / "serve.py"
        target.write_bytes(target.read_bytes() + b"#")
        socket = Path(folder) / "s"
        process = subprocess.Popen(  # noqa: S603
            [*stage.cloud.runtime_command(stage.keyservice_wire.address), "--listen", f"unix:{socket}"],
            env=os.environ | {"PYTHONPATH": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(socket)
            profile = dataclasses.replace(stage.bob.profile, gateway=f"unix:{socket}")
            with Client(profile, stage.bob.account.identity) as client:
                row = {"measurements": np.zeros((1, 30), np.float32)}
                report.refused(
                    "a runtime with another measurement",
                    {"measurement-not-allowed"},
                    lambda: client.infer(model, row, deadline_s=_DEADLINE_S),
                )
        finally:
            process.terminate()
            process.wait()


def swapped_model(stage: Stage, report: Report, patients: PatientModel) -> None:
    """The store answers for version 2 with the files of version 1."""
    name = "swapped"
    model = offer(stage, name, patients.onnx, "bob")
    base = stage.cloud.store / model.owner.hex() / name
    (old,) = (entry for entry in base.iterdir() if entry.is_dir())
    kept = {path.name: path.read_bytes() for path in old.iterdir()}
    offer(stage, name, patients.onnx, "bob")
    (new,) = (entry for entry in base.iterdir() if entry.is_dir() and entry != old)
    row = {"measurements": patients.test_inputs[:1]}
    for path in new.iterdir():
        if path.name != "manifest":
            path.write_bytes(kept[path.name])
    codes = {"model-chunk"}
    report.refused("a model's files swapped for those of another version", codes, lambda: stage.bob.infer(model, row))
    for file, content in kept.items():
        (new / file).write_bytes(content)
    codes = {"manifest-digest"}
    report.refused("a model swapped whole, manifest and all", codes, lambda: stage.bob.infer(model, row))


def revoked(stage: Stage, report: Report, model: ModelId, row: dict[str, np.ndarray]) -> None:
    """After its acknowledgement, running instances stop within the lease."""
    bob = stage.bob
    bob.infer(model, row)
    stage.alice.revoke(PATIENTS, bob.account.identity.id)
    clock = SystemClock()
    start = clock.monotonic()
    served = 0
    while clock.monotonic() - start < LEASE_S + 2:
        try:
            bob.infer(model, row)
            served += 1
        except Refused as error:
            after = clock.monotonic() - start
            report.add(
                "refusals",
                f"a revoked user, within the lease of {LEASE_S} s",
                holds=error.code == "refused-by-owner" and after <= LEASE_S + 1,
                found=f"refused {after:.1f} s after the revocation",
                code=error.code,
            )
            return
        time.sleep(0.1)
    report.add("refusals", "a revoked user", holds=False, found=f"still served {served} times")


def wait_for(socket: Path) -> None:
    """Until a service answers on a socket.

    :raises Unavailable: ``service-not-started``.
    """
    client, end = HttpClient(SystemClock()), SystemClock().monotonic() + 30
    try:
        while SystemClock().monotonic() < end:
            if socket.exists():
                try:
                    if client.request("GET", f"unix:{socket}", "/healthz", deadline_s=2.0).status == 200:
                        return
                except CloisterError:
                    pass
            time.sleep(0.02)
    finally:
        client.close()
    raise Unavailable("service-not-started", f"nothing answers on {socket}")
