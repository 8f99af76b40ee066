"""One action container as an OpenWhisk invoker sees it: posts to ``/init`` and ``/run``, and both log streams.

A child process stands in for the container (:class:`ActionProcess`); the tests of the image run the same checks on
a real one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.base.errors import CloisterError
from cloister.base.limits import MIB

SENTINEL: Final = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"
STAND_IN: Final = (sys.executable, "-m", "cloister.testing.instance", "--openwhisk")
ACTION: Final = (sys.executable, "-m", "cloister", "openwhisk-action")
_POLL_S: Final = 0.01


class Container(Protocol):
    """A started action container."""

    @property
    def address(self) -> str:
        """Where ``/init`` and ``/run`` are."""

    @property
    def alive(self) -> bool:
        """Whether it runs."""

    def kill(self) -> None:
        """As the platform destroys a container."""

    def output(self) -> tuple[str, str]:
        """What it has written to stdout and stderr so far."""

    def stop(self) -> int:
        """SIGTERM, and wait; its exit status."""


class ActionProcess:
    """``Container``: a child process with a Unix socket.

    :param command: takes ``--listen``. :param environment: beside this process's own.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="cloister-action-"))
        self.socket = self._folder / "s"
        streams = [(self._folder / name).open("wb") for name in ("stdout", "stderr")]
        try:
            self.process = subprocess.Popen(  # noqa: S603
                [*command, "--listen", f"unix:{self.socket}"],
                stdin=subprocess.DEVNULL,
                stdout=streams[0],
                stderr=streams[1],
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        finally:
            for stream in streams:
                stream.close()

    @property
    def address(self) -> str:
        """See the port."""
        return f"unix:{self.socket}"

    @property
    def alive(self) -> bool:
        """See the port."""
        return self.process.poll() is None

    def output(self) -> tuple[str, str]:
        """See the port."""
        return (self._folder / "stdout").read_text("utf-8"), (self._folder / "stderr").read_text("utf-8")

    def stop(self) -> int:
        """See the port."""
        self.process.send_signal(signal.SIGTERM)
        return self._wait()

    def kill(self) -> None:
        """See the port."""
        if self.alive:
            self.process.kill()
        self._wait()

    def _wait(self) -> int:
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


class Invoker:
    """What the platform's invoker does with one container: ``ActionContainer`` of the platform's own tests."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self._client = HttpClient(SystemClock())

    def close(self) -> None:
        """Let connections go; the container stays."""
        self._client.close()

    def wait(self, timeout_s: float = 60.0) -> None:
        """Until it listens: the platform repeats ``/init`` while connections are refused."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                self._client.request("GET", self.container.address, "/healthz", deadline_s=5.0)
            except CloisterError:
                if time.monotonic() > end:
                    raise
                time.sleep(_POLL_S)
            else:
                return

    def post(self, path: str, body: object) -> tuple[int, dict[str, Any]]:
        """(status, JSON object) of one post."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = self._client.request(
            "POST",
            self.container.address,
            path,
            headers=(("content-type", "application/json"),),
            content=content,
            deadline_s=60.0,
            max_answer=128 * MIB,
        )
        found = json.loads(answer.body)
        assert isinstance(found, dict)  # noqa: S101
        return answer.status, found

    def init(self, environment: Mapping[str, str] | None = None, code: str | None = "") -> tuple[int, dict[str, Any]]:
        """As the platform initialises a container of an action without code."""
        value = {"name": "test", "main": "main", "binary": False, "code": code, "env": environment}
        return self.post("/init", {"value": value})

    def run(self, value: object, **context: object) -> tuple[int, dict[str, Any]]:
        """One activation."""
        return self.post("/run", {"value": value, **context})
