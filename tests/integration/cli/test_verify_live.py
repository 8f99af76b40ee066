"""``cloister verify --url``: a live KeyService, a live runtime, and whoever stands between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.attest.bundle import TrustBundle
from cloister.attest.policy import Policy
from cloister.attest.policy_toml import format_policy
from cloister.base.errors import InvalidInput
from cloister.cli.main import main
from cloister.crypto.sign import SigningKey
from cloister.keyservice.server import KeyServiceServer
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.logs import MemoryLog
from cloister.testing.runtime import MEASUREMENT, RuntimeBench
from cloister.testing.tee import SimulatedTee
from cloister.wire.calls import Description, WireEvidence
from cloister.wire.presence import Presence

App = Callable[[Request], Awaitable[Response]]
ROOT = SigningKey.generate()


@dataclass
class HostedKeyService:
    """The real one, behind its real server."""

    embedded: EmbeddedKeyService

    def server(self) -> KeyServiceServer:
        return KeyServiceServer(self.embedded.service, self.embedded.assembled.telemetry, log=MemoryLog())


@contextlib.contextmanager
def served(*apps: App | HostedKeyService) -> Iterator[list[str]]:
    """Each on a loopback port, on a loop of its own; the addresses."""
    ready, addresses = threading.Event(), []
    stop: list[Callable[[], object]] = []

    async def life() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(stopping.set))
        async with contextlib.AsyncExitStack() as stack:
            for app in apps:
                if isinstance(app, HostedKeyService):
                    server: Any = app.server()
                    stack.push_async_callback(server.stop, 5.0)
                else:
                    server = HttpServer(app, log=MemoryLog())
                    stack.push_async_callback(server.drain, 5.0)
                await server.start("127.0.0.1", 0)
                addresses.append(server.address)
            ready.set()
            await stopping.wait()

    thread = threading.Thread(target=asyncio.run, args=(life(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield addresses
    finally:
        stop[0]()
        thread.join(30)


@dataclass
class Scene:
    """A KeyService, a runtime, and files that a caller has."""

    folder: Path
    keyservice: EmbeddedKeyService
    runtime: RuntimeBench
    trusted: TrustBundle
    urls: list[str]
    capture: pytest.CaptureFixture[str]

    def policy(self, tee: SimulatedTee, **changed: object) -> str:
        rule = tee.rule()
        path = self.folder / "policy.toml"
        path.write_text(format_policy(Policy((type(rule).of(rule.name, rule.tee, rule.plain() | changed),))))
        return str(path)

    def bundle(self, **changed: Any) -> list[str]:
        bundle = replace(self.trusted, **changed)
        path = self.folder / "bundle.cbor"
        path.write_bytes(bundle.sign(ROOT))
        return ["--bundle", str(path), "--bundle-root", ROOT.public_key.hex()]

    @property
    def runtime_tee(self) -> SimulatedTee:
        """As the policy of the runtime names it."""
        return SimulatedTee("any", self.runtime.options.measured().values, self.runtime.simulation, SystemClock())

    def runtime_policy(self, **changed: object) -> list[str]:
        policy = self.policy(self.runtime_tee, **({"measurement": [MEASUREMENT]} | changed))
        return ["--policy", policy, "--insecure-simulation-key", self.runtime.simulation.public_key.hex()]

    def verify(self, url: str, *arguments: str) -> tuple[int, dict[str, Any]]:
        status = main(["verify", "--url", url, "--json", *arguments])
        captured = self.capture.readouterr()
        return status, json.loads(captured.out or captured.err)


def failures(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(step["step"], step["code"]) for step in report["steps"] if step["verdict"] == "FAIL"]


@pytest.fixture
def scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Scene]:
    clock, digest = SystemClock(), [bytes(32)]
    keyservice = EmbeddedKeyService(clock=clock, bundle_digest=lambda: digest[0])
    trusted = keyservice.tee.bundle(ROOT)
    digest[0] = trusted.digest
    keyservice.restart()
    runtime = RuntimeBench(clock)
    with served(HostedKeyService(keyservice), runtime.runtime.app) as urls:
        yield Scene(tmp_path, keyservice, runtime, trusted, urls, capsys)
    runtime.runtime.stop()


def test_a_keyservice_under_its_trust_bundle(scene: Scene) -> None:
    status, report = scene.verify(scene.urls[0], *scene.bundle())
    assert (status, report["verdict"], report["service"]) == (0, "accepted", "keyservice"), failures(report)
    assert report["tee"] == "insecure-simulation"
    assert report["keyservice"] == scene.keyservice.id.hex()
    assert report["log"]["entries"] == 1
    assert report["configuration"]["digest"] == scene.keyservice.settings.measured().digest.hex()
    assert report["configuration"]["values"]["rollback_protection"] == "none"
    names = [step["step"] for step in report["steps"]]
    assert names[-4:] == ["freshness", "collateral-age", "bundle-in-use", "rollback-protection"]
    assert [step["code"] for step in report["steps"] if step["verdict"] == "SKIP"] == ["left-out"]  # any isolation


def test_a_keyservice_under_ones_own_policy(scene: Scene) -> None:
    key = ["--insecure-simulation-key", scene.keyservice.tee.key.public_key.hex()]
    policy = ["--policy", scene.policy(scene.keyservice.tee)]
    status, report = scene.verify(scene.urls[0], *policy, *key, "--tee", "simulation")
    assert (status, failures(report)) == (0, [])
    assert [step["step"] for step in report["steps"]][-1] == "freshness"
    status, report = scene.verify(scene.urls[0], *policy)
    assert (status, failures(report)) == (1, [("simulation-key", "simulation-refused")])
    policy = ["--policy", scene.policy(scene.keyservice.tee, configuration=[b"c" * 32])]
    status, report = scene.verify(scene.urls[0], *policy, *key)
    assert (status, failures(report)) == (1, [("simulated/configuration", "configuration-not-allowed")])
    assert "freshness" not in [step["step"] for step in report["steps"]]
    # with a bundle beside it, both must accept
    status, report = scene.verify(scene.urls[0], *policy, *scene.bundle())
    assert (status, failures(report)) == (1, [("simulated/configuration", "configuration-not-allowed")])


@pytest.mark.parametrize(
    ("changed", "step", "code"),
    [
        ({"version": 2}, "bundle-in-use", "keyservice-bundle-differs"),
        ({"simulation_keys": (ROOT.public_key,)}, "simulation-key", "simulation-refused"),
    ],
)
def test_a_keyservice_under_another_bundle(scene: Scene, changed: dict[str, Any], step: str, code: str) -> None:
    status, report = scene.verify(scene.urls[0], *scene.bundle(**changed))
    assert (status, report["verdict"], failures(report)) == (1, "refused", [(step, code)])


def test_a_keyservice_without_rollback_protection_must_be_accepted_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = [bytes(32)]
    keyservice = EmbeddedKeyService(clock=SystemClock(), bundle_digest=lambda: digest[0])
    trusted = keyservice.tee.bundle(ROOT, accept_rollback_unsafe=False)
    digest[0] = trusted.digest
    keyservice.restart()
    with served(HostedKeyService(keyservice)) as urls:
        scene = Scene(tmp_path, keyservice, RuntimeBench(), trusted, urls, capsys)
        status, report = scene.verify(urls[0], *scene.bundle())
    scene.runtime.runtime.stop()
    assert (status, failures(report)) == (1, [("rollback-protection", "keyservice-rollback-unsafe")])


def test_a_runtime_under_a_policy(scene: Scene) -> None:
    status, report = scene.verify(scene.urls[1], *scene.runtime_policy())
    assert (status, report["verdict"], report["service"]) == (0, "accepted", "runtime"), failures(report)
    assert report["configuration"]["digest"] == scene.runtime.options.measured().digest.hex()
    assert report["configuration"]["values"]["role"] == "runtime"
    status, report = scene.verify(scene.urls[1], *scene.runtime_policy(isolation=["strict"]))
    assert (status, failures(report)) == (1, [("simulated/isolation", "isolation-not-allowed")])
    status, report = scene.verify(scene.urls[1], *scene.runtime_policy(), "--tee", "tdx")
    assert (status, failures(report)) == (1, [("answer", "tee-unexpected")])


def test_a_trust_bundle_alone_says_nothing_of_a_runtime(scene: Scene) -> None:
    status, report = scene.verify(scene.urls[1], *scene.bundle(simulation_keys=(scene.runtime.simulation.public_key,)))
    assert (status, failures(report)) == (1, [("answer", "policy-missing")])


def test_a_runtime_under_another_bundle(scene: Scene) -> None:
    policy = scene.runtime_policy()[:2]
    bundle = scene.bundle(simulation_keys=(scene.runtime.simulation.public_key,))
    status, report = scene.verify(scene.urls[1], *policy, *bundle)
    assert (status, failures(report)) == (1, [("bundle-in-use", "keyservice-bundle-differs")])


def test_people_read_lines(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--url", scene.urls[0], *scene.bundle()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("PASS  ask ")
    assert "a keyservice answers" in lines[0]
    assert lines[-1] == "accepted: insecure-simulation, by rule simulated"
    assert any("insecure-simulation" in line for line in lines if line.startswith("warning: "))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--bundle", "BUNDLE"],
        ["--bundle-root", "00" * 32],
        ["--bundle", "BUNDLE", "--bundle-root", "00" * 32],
        ["--bundle", "BUNDLE", "--bundle-root", "00"],
        ["--bundle", "/absent", "--bundle-root", "00" * 32],
        ["--policy", "/absent"],
        ["--policy", "BUNDLE"],
        ["--bundle", "BUNDLE", "--bundle-root", "ROOT", "--bundle-version", "9"],
        ["--bundle", "BUNDLE", "--bundle-root", "ROOT", "--evidence", "BUNDLE"],
        ["--bundle", "BUNDLE", "--bundle-root", "ROOT", "--at", "1"],
        ["--bundle", "BUNDLE", "--bundle-root", "ROOT", "--report-data", "00"],
        ["--bundle", "BUNDLE", "--bundle-root", "ROOT", "--collateral", "/absent"],
        ["--bundle", "BUNDLE", "--bundle-root", "ROOT", "--insecure-simulation-key", "00" * 32],
    ],
)
def test_unusable_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    path = tmp_path / "bundle.cbor"
    path.write_bytes(SimulatedTee(clock=SystemClock()).bundle(ROOT).sign(ROOT))
    words = {"BUNDLE": str(path), "ROOT": ROOT.public_key.hex()}
    given = [words.get(word, word) for word in arguments]
    assert main(["verify", "--url", "http://127.0.0.1:9", *given]) == 2
    assert capsys.readouterr().out == ""
    assert main(["verify", "--url", "ftp://x", *given]) == 2


def test_nobody_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bundle.cbor"
    path.write_bytes(SimulatedTee(clock=SystemClock()).bundle(ROOT).sign(ROOT))
    words = ["--bundle", str(path), "--bundle-root", ROOT.public_key.hex(), "--json"]
    assert main(["verify", "--url", f"unix:{tmp_path}/absent", *words]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], failures(report)) == ("refused", [("ask", "connect-failed")])


# --- whoever stands between ---


def answering(get: bytes | None, post: bytes | None, *, status: int = 200) -> App:
    """A service that says the same to everybody; ``None`` is 404."""

    async def app(request: Request) -> Response:
        body = {"GET": get, "POST": post}.get(request.method)
        if request.method == "POST":
            await request.body(1 << 20)
        if body is None:
            raise InvalidInput("not-found", "there is nothing here")
        return Response(status, (("content-type", "application/octet-stream"),), body)

    return app


def test_an_old_answer_to_another_nonce_is_not_fresh(scene: Scene) -> None:
    """A4: the description and the status of a KeyService that is no more; a runtime's evidence of yesterday."""
    service = scene.keyservice.service
    presence = asyncio.run(scene.runtime.runtime.presence.answer(b"n" * 32))
    recorded = answering(service.description(), service.status(b"n" * 32))
    with served(recorded, answering(None, presence)) as urls:
        status, report = scene.verify(urls[0], *scene.bundle())
        assert (status, failures(report)) == (1, [("freshness", "status-not-fresh")])
        status, report = scene.verify(urls[1], *scene.runtime_policy())
        assert (status, failures(report)) == (1, [("report-data", "report-data-mismatch")])


def test_a_keyservice_that_signs_with_another_key_is_not_the_attested_one(scene: Scene) -> None:
    """A8: genuine evidence of one KeyService, the keys of another."""
    genuine = Description.decode(scene.keyservice.service.description())
    other = EmbeddedKeyService(clock=SystemClock(), seed=b"o" * 32, runtime_tee=scene.keyservice.runtime_tee)
    theirs = Description.decode(other.service.description())
    for changed in (
        replace(theirs, evidence=genuine.evidence),
        replace(genuine, keyservice=theirs.keyservice, log_keys=theirs.log_keys),
        replace(genuine, call_key=theirs.call_key),
        replace(genuine, epoch=theirs.epoch),
        replace(genuine, bundle_digest=theirs.bundle_digest),
    ):
        with served(answering(changed.encode(), other.service.status(b"n" * 32))) as urls:
            status, report = scene.verify(urls[0], *scene.bundle())
        assert (status, failures(report)) == (1, [("report-data", "report-data-mismatch")])


def test_evidence_for_one_purpose_is_none_for_another(scene: Scene) -> None:
    """S9: a KeyService's evidence in the place of a runtime's presence, and the reverse."""
    genuine = Description.decode(scene.keyservice.service.description())
    presence = Presence.decode(asyncio.run(scene.runtime.runtime.presence.answer(b"n" * 32)))
    swapped = Presence(genuine.configuration, genuine.bundle_digest, genuine.evidence)
    with served(
        answering(None, swapped.encode()),
        answering(replace(genuine, evidence=presence.evidence).encode(), b""),
    ) as urls:
        key = ["--insecure-simulation-key", scene.keyservice.tee.key.public_key.hex()]
        status, report = scene.verify(urls[0], "--policy", scene.policy(scene.keyservice.tee), *key)
        assert (status, failures(report)) == (1, [("report-data", "report-data-mismatch")])
        status, report = scene.verify(urls[1], *scene.bundle())
        assert (status, report["verdict"]) == (1, "refused")


def test_whatever_answers_the_verdict_is_one(scene: Scene) -> None:
    genuine = Description.decode(scene.keyservice.service.description())
    nameless = replace(genuine, evidence=WireEvidence("nameless", b"", {}))
    apps = {
        "service-unknown": answering(None, None),
        "cbor-malformed": answering(b"<html>", b"<html>"),
        "bad-gateway-answer": answering(b"", b"", status=502),
        "evidence-unknown-tee": answering(nameless.encode(), b"x" * 64),
        "answer-too-large": answering(bytes(1 << 20), b""),
    }
    for code, app in apps.items():
        with served(app) as urls:
            status, report = scene.verify(urls[0], *scene.bundle())
        assert (status, report["verdict"]) == (1, "refused")
        assert [found for _, found in failures(report)] == [code]
