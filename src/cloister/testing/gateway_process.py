"""A real ``cloister gateway`` whose instances are real processes: stand-ins (``cloister.testing.instance``)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloister.adapters.http.client import AsyncHttpClient
from cloister.base.errors import CloisterError, Unavailable
from cloister.testing.gateway import MODEL, answered, sealed, toml

STAND_IN = (sys.executable, "-m", "cloister.testing.instance")


class GatewayProcess:
    """One gateway process.

    :param state: its folder. :param arguments: of each stand-in.
    :ivar journal: where stand-ins write the nonce of each request that they answered.
    """

    def __init__(self, state: Path, *arguments: str) -> None:
        self.state = state
        self.journal = state / "journal"
        self.file = state / "gateway.toml"
        self._command = [*STAND_IN, "--journal", str(self.journal), *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._listen = "127.0.0.1:0"
        self.address = ""

    def configure(self, pool: str, **sections: str) -> None:
        """Write the configuration; a running gateway reads it when told to."""
        self.file.write_text(toml(sections, command=self._command, pool=pool))

    def start(self) -> None:
        """Start it, at the same address as before, and wait until it listens.

        :raises AssertionError: it ended instead.
        """
        with (self.state / "gateway.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                [*self.command(), "--listen", self._listen],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert process.stdout is not None  # noqa: S101
        line = process.stdout.readline().decode()
        process.stdout.close()
        self._process = process
        assert line, (self.state / "gateway.log").read_text()[-2000:]  # noqa: S101
        self.address = line.split()[-1]
        self._listen = self.address.removeprefix("http://")

    def command(self) -> list[str]:
        """Its command line, but for where it listens."""
        return [
            *(sys.executable, "-m", "cloister", "gateway"),
            *("--config", str(self.file), "--state", str(self.state)),
        ]

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None  # noqa: S101
        self._process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Until it ended; returns its status."""
        assert self._process is not None  # noqa: S101
        status = self._process.wait(60)
        self._process = None
        return status

    def stop(self) -> None:
        """SIGTERM, unless it ended; then nothing of it may be left.

        :raises AssertionError: an instance still runs.
        """
        if self._process is not None:
            self.signal(signal.SIGTERM)
            self.wait()
        left = [pid for pid in self.instances().values() if alive(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, left  # noqa: S101

    def instances(self) -> dict[str, int]:
        """Process ids of its instances."""
        found = {}
        for record in (self.state / "instances").glob("*.json"):
            try:
                found[record.stem] = int(json.loads(record.read_text())["pid"])
            except (OSError, ValueError):
                continue  # it ended meanwhile
        return {name: pid for name, pid in found.items() if pid}

    def log(self) -> list[dict[str, Any]]:
        """Its events."""
        lines = (self.state / "gateway.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def executed(self) -> list[str]:
        """Nonces of requests that instances answered."""
        return self.journal.read_text().split() if self.journal.exists() else []


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Load:
    """Callers that ask one request after the other and check every answer.

    :param again: errors after which a caller asks once more, as a client whose gateway is away does.
    :ivar answers: of requests answered right. :ivar failures: codes or statuses of the others.
    """

    def __init__(
        self, gateway: GatewayProcess, *, callers: int = 8, size: int = 4096, again: Sequence[str] = ()
    ) -> None:
        self._gateway = gateway
        self._again = frozenset(again)
        self._size = size
        self._client = AsyncHttpClient()
        self._going = True
        self._tasks = [asyncio.ensure_future(self._caller(bytes([n]) * 32)) for n in range(callers)]
        self.answers = 0
        self.pids: set[int] = set()
        self.failures: list[str] = []
        self.sent = 0

    async def until(self, answers: int) -> None:
        """Wait until so many more were answered."""
        wanted = self.answers + answers
        async with asyncio.timeout(60):
            while self.answers < wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def end(self) -> None:
        """Let the last answers come."""
        self._going = False
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks)
        await self._client.close()

    async def _caller(self, user: bytes) -> None:
        while self._going:
            content = sealed(size=self._size, user=user)
            self.sent += 1
            try:
                await self._ask(content)
            except CloisterError as error:
                self.failures.append(error.code)

    async def _ask(self, content: bytes) -> None:
        while True:
            try:
                answer = await self._client.request(
                    "POST", self._gateway.address, f"/v1/models/{MODEL}/infer", content=content, deadline_s=30
                )
            except Unavailable as error:
                if error.code not in self._again:
                    raise
                await asyncio.sleep(0.01)
                continue
            if answer.status != 200:
                self.failures.append(f"{answer.status} {answer.body[:200]!r}")
                return
            self.pids.add(int(answered(content, answer)["pid"]))
            self.answers += 1
            return
