"""What platforms count on, of real processes started as manifests start them: port, probes, cold answers, SIGTERM."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.answer import Answer
from cloister.adapters.http.blocking import HttpClient
from cloister.base.errors import CloisterError
from cloister.testing.gateway import MODEL, USER
from cloister.testing.local_cloud import LocalCloud
from cloister.wire.envelope import REQUEST_MAGIC, RequestHeader, frame_head
from cloister.wire.statements import REQUEST_KEY

AWAY = "http://127.0.0.1:1"


class Container:
    """One runtime, whose KeyService is away."""

    def __init__(self, folder: Path, *, by_environment: bool) -> None:
        cloud = LocalCloud(folder)
        cloud.prepare()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = cloud.runtime_command(AWAY)
        environment = {name: value for name, value in os.environ.items() if name != "PORT"}
        if by_environment:
            environment["PORT"] = str(self.port)
        else:
            command = [*command, "--listen", f"0.0.0.0:{self.port}"]
        self.http = HttpClient(SystemClock())
        self.process = subprocess.Popen(command, stdout=sys.stderr, env=environment)

    def until_live(self) -> None:
        """As a startup probe."""
        end = time.monotonic() + 60
        while True:
            assert self.process.poll() is None
            assert time.monotonic() < end
            try:
                self.get("/healthz")
            except CloisterError:
                time.sleep(0.02)
            else:
                return

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Answer:
        return self.http.request("GET", self.address, path, deadline_s=5)

    def ask(self) -> Answer:
        """A sealed request that is right in all that can be seen before its key is there."""
        now = int(SystemClock().now())
        header = RequestHeader(REQUEST_KEY, MODEL, USER, bytes(32), secrets.token_bytes(32), now).encode()
        body = REQUEST_MAGIC + len(header).to_bytes(2, "big") + header + frame_head(100, last=True) + bytes(116)
        return self.http.request("POST", self.address, f"/v1/models/{MODEL}/infer", content=body, deadline_s=60)

    def close(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=[True, False], ids=["by-PORT", "by-listen"])
def container(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Container]:
    found = Container(tmp_path, by_environment=request.param)
    try:
        found.until_live()
        yield found
    finally:
        found.close()


def test_a_cold_runtime_lives_is_not_ready_and_says_when_to_come_again(container: Container) -> None:
    assert container.get("/healthz").status == 200
    for answer in (container.get("/readyz"), container.ask()):
        assert answer.status == 503
        assert int(answer.headers.get("retry-after")) >= 1
        assert "json" in answer.headers.get("content-type")
    assert container.process.poll() is None
    container.process.send_signal(signal.SIGTERM)
    assert container.process.wait(30) == 0
