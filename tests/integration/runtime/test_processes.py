"""Real processes: a KeyService and a runtime, and the client's library speaking to both."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.base.errors import CloisterError, Refused
from cloister.base.ids import ModelId
from cloister.client.client import Client
from cloister.client.identity import create_identity
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.models import small, tflite
from cloister.wire.statements import SERVICE_KEY

SIDE = 2048
NAMES = ("one", "two", "three")


class Served:
    """A KeyService and one runtime, and an owner who is also the user."""

    def __init__(self, folder: Path, *, trace: Path | None = None) -> None:
        self.cloud = LocalCloud(folder, concurrency=4)
        self.cloud.prepare()
        self.address = f"unix:{folder / 'runtime.socket'}"
        keyservice = self.cloud.start_keyservice()
        self.tracer: subprocess.Popen[bytes] | None = None
        environment = dict(os.environ)
        command = [*self.cloud.runtime_command(keyservice), "--listen", self.address]
        if trace is not None:
            calls = "trace=socket,connect,bind,listen,open,openat,creat,rename,unlink,mkdir,execve,fork,vfork"
            environment["UV_USE_IO_URING"] = "0"  # or the event loop could do some of these unseen
            attach = ["strace", "-f", "-o", f"{trace}-keyservice", "-e", calls, "-p"]
            pid = str(self.cloud.processes["keyservice"].pid)
            self.tracer = subprocess.Popen([*attach, pid], stderr=subprocess.PIPE)
            assert self.tracer.stderr is not None
            assert b"attached" in self.tracer.stderr.readline()
            command = ["strace", "-D", "-f", "-qq", "-o", str(trace), "-e", calls, *command]
        self.log = (folder / "runtime.log").open("wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment)
        self.cloud.write_profile(keyservice, self.address)
        self.client = self._client()
        self.client.register()
        self._until_ready()

    def _client(self) -> Client:
        create_identity(self.cloud.home, "both")
        return Client.open(self.cloud.home, "both")

    def _until_ready(self) -> None:
        http = HttpClient(SystemClock())
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if http.request("GET", self.address, "/readyz").status == 200:
                    break
            except CloisterError:
                pass
            assert self.process.poll() is None, (self.cloud.folder / "runtime.log").read_text()
            time.sleep(0.02)
        http.close()

    def publish(self, name: str, model: bytes, *, suffix: str = ".onnx", mode: str = "request-key") -> ModelId:
        source = self.cloud.folder / (name + suffix)
        source.write_bytes(model)
        packed = self.cloud.folder / f"{name}-packed"
        self.client.pack(source, packed, name=name, version=1)
        self.client.publish(packed)
        policy = self.cloud.runtime_policy()
        self.client.grant(name, self.client.account.identity.id, policy)
        target = self.client.own_model(name)
        self.client.consent(target, policy, mode=mode)
        return target

    def pss_mb(self) -> float:
        """Of the runtime."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024

    def close(self) -> int:
        """Stop everything; the runtime's exit status."""
        self.client.close()
        try:
            self.process.send_signal(signal.SIGTERM)
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            self.log.close()
            self.cloud.stop()
            if self.tracer is not None:
                self.tracer.wait(30)
                assert self.tracer.stderr is not None
                self.tracer.stderr.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("served"))
    yield made
    assert made.close() == 0


def matrix_model(seed: int) -> tuple[bytes, Any]:
    weights = np.random.default_rng(seed).random((SIDE, SIDE), np.float32)
    return small.matrix(weights), weights


def test_sixteen_clients_three_models_one_copy_of_each(served: Served) -> None:
    models: list[tuple[ModelId, Any]] = []
    for seed, name in enumerate(NAMES):
        model, weights = matrix_model(seed)
        models.append((served.publish(name, model, mode=SERVICE_KEY if seed == 2 else "request-key"), weights))
    first = served.publish("small", small.matrix(np.eye(16, dtype=np.float32)))
    x = np.ones((1, 16), np.float32)
    assert np.array_equal(served.client.infer(first, {"x": x})["y"], x)
    before = served.pss_mb()

    def ask(number: int) -> None:
        generator = np.random.default_rng(1000 + number)
        for turn in range(4):
            target, weights = models[(number + turn) % 3]
            row = generator.random((1, SIDE), np.float32)
            found = served.client.infer(target, {"x": row})["y"]
            np.testing.assert_allclose(found, row @ weights, rtol=2e-3)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    grown = served.pss_mb() - before
    weights_mb = 3 * SIDE * SIDE * 4 / 2**20
    assert grown < 1.25 * weights_mb + 25, f"{grown:.0f} MB for {weights_mb:.0f} MB of weights"


def test_a_revoked_consent_stops_new_releases(served: Served) -> None:
    target = served.publish("revoked", small.matrix(np.eye(16, dtype=np.float32)))
    served.client.revoke_consent(target)
    with pytest.raises(Refused):
        served.client.infer(target, {"x": np.ones((1, 16), np.float32)}, deadline_s=5)


def test_status_and_metrics_say_nothing_secret(served: Served) -> None:
    http = HttpClient(SystemClock())
    try:
        status = http.request("GET", served.address, "/v1/status").checked().body
        metrics = http.request("GET", served.address, "/metrics").checked().body
        assert http.request("GET", served.address, "/healthz").status == 200
        assert http.request("GET", served.address, "/nothing").status == 404
        assert http.request("POST", served.address, "/metrics").status == 405
    finally:
        http.close()
    user = served.client.account.identity.id.hex()
    assert b"insecure-simulation" in status
    for text in (status, metrics):
        assert user.encode() not in text.replace(f"{user}/".encode(), b"")  # the owner part of a model id is public
    assert b"cloister_stage_seconds" in metrics


def test_sigterm_lets_what_is_under_way_end(tmp_path: Path) -> None:
    with Served(tmp_path) as made:
        _sigterm(made)


def _sigterm(made: Served) -> None:
    model, weights = matrix_model(9)
    target = made.publish("slow", model)
    x = np.ones((200, SIDE), np.float32)
    made.client.infer(target, {"x": x[:1]})
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(made.client.infer, target, {"x": x}, deadline_s=3) for _ in range(4)]
        http = HttpClient(SystemClock())
        while made.process.poll() is None:
            found = http.request("GET", made.address, "/v1/status").body
            if b'"in_flight":0' not in found:
                break
        http.close()
        assert made.close() == 0
        finished = 0
        for answer in answers:
            try:
                np.testing.assert_allclose(answer.result()["y"], x @ weights, rtol=2e-3)
                finished += 1
            except CloisterError:
                continue  # refused with a clear error: it came after the signal
        assert finished >= 1


def _strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    return (
        subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode == 0
    )


WRITES = re.compile(r'open(?:at)?\([^"]*"(?P<path>[^"]+)", (?P<flags>[A-Z_|]+)')


@pytest.mark.skipif(
    not _strace_works(), reason="strace is not installed, or may not trace here (apt-get install strace)"
)
def test_keyservice_and_runtime_talk_to_nobody_else_and_write_nothing_else(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with Served(tmp_path / "cloud", trace=trace) as made:
        _ask_both_engines(made)
    _check(trace)
    _check_keyservice(Path(f"{trace}-keyservice"), tmp_path / "cloud")


def _ask_both_engines(made: Served) -> None:
    onnx = made.publish("onnx", small.small_convnet())
    lite = made.publish("lite", tflite.sum_difference(), suffix=".tflite")
    asked: list[Callable[[], Any]] = [
        lambda: made.client.infer(onnx, {"input": np.ones((1, 32, 32, 3), np.float32)}),
        lambda: made.client.infer(lite, _ones(made.client.metadata(lite))),
    ]
    for ask in asked:
        ask()
        ask()
    time.sleep(1.5)  # a telemetry thread would wake up meanwhile
    assert made.close() == 0


def _check(trace: Path) -> None:
    lines = trace.read_text(errors="replace").splitlines()
    sockets = [line for line in lines if " socket(" in line]
    assert all("AF_UNIX" in line or "AF_INET," in line for line in sockets), sockets
    connects = {re.sub(r"^\d+ +", "", line) for line in lines if " connect(" in line}
    assert connects, "it spoke to the KeyService"
    assert all('sin_addr=inet_addr("127.0.0.1")' in line for line in connects), connects
    assert len({match[1] for line in connects if (match := re.search(r"sin_port=htons\((\d+)\)", line))}) == 1
    binds = [line for line in lines if " bind(" in line]
    assert len(binds) == 1
    assert "runtime.socket" in binds[0]
    for line in lines:
        found = WRITES.search(line)
        if found and re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", found["flags"]) and "= -1" not in line:
            assert found["path"].startswith(("/dev/null", "/proc/self", "/memfd")), line
    started = [line for line in lines if " execve(" in line and "= 0" in line]
    assert len(started) == 1, started


def _check_keyservice(trace: Path, folder: Path) -> None:
    """It runs already when it is traced: from then on it opens no socket at all."""
    lines = trace.read_text(errors="replace").splitlines()
    assert not [line for line in lines if re.search(r" (socket|connect|bind|listen|execve|v?fork)\(", line)]
    written = {found["path"] for line in lines if (found := WRITES.search(line)) and "O_RDONLY" not in found["flags"]}
    assert all(path.startswith(str(folder / "keyservice")) for path in written), written


def _ones(metadata: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: np.ones([max(1, d) for d in item["shape"]], np.float32) for item in metadata["inputs"]}
