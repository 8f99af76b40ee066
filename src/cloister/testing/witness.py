"""Witnesses for tests: real ones in this process, made to be away, slow or to lie; and as processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

from cloister.adapters.witness import WitnessPort
from cloister.base.clock import Clock
from cloister.base.errors import Unavailable
from cloister.crypto.sign import SigningKey
from cloister.keyservice.settings import WITNESSES
from cloister.witness.app import initialise
from cloister.witness.service import Witness
from cloister.witness.store import Disk, Record, WitnessStore

Answer = bytes | int


@final
class LocalWitness:
    """A real witness over a folder; ``WitnessPort``.

    :ivar away: while true, it does not answer.
    :ivar hold: when set, it answers only after this event.
    :ivar lie: applied to what it answers.
    :ivar seen: every request that reached it, with its answer.
    """

    def __init__(self, folder: Path, clock: Clock, disk: Disk | None = None) -> None:
        self.folder = folder
        self.clock = clock
        self.identity = initialise(folder)
        self.away = False
        self.hold: threading.Event | None = None
        self.lie: Callable[[Answer], Answer] = lambda answer: answer
        self.seen: list[tuple[bytes, Answer]] = []
        self.restart(disk)

    def restart(self, disk: Disk | None = None) -> None:
        """Forget what is in memory."""
        self.store = WitnessStore(self.folder, disk)
        self.witness = Witness(self.store, self.identity.key, self.identity.name, self.clock)

    @property
    def key(self) -> bytes:
        """Its public key."""
        return self.identity.key.public_key

    def add_checkpoint(self, body: bytes) -> Answer:
        """See the port."""
        return self._answer(self.witness.add_checkpoint, body)

    def follow_log_keys(self, body: bytes) -> Answer:
        """See the port."""
        return self._answer(self.witness.follow_log_keys, body)

    def _answer(self, cosign: Callable[[bytes], Answer], body: bytes) -> Answer:
        if self.hold is not None:
            self.hold.wait(60)
        if self.away:
            raise Unavailable("witness-away", "the witness gives no answer")
        answer = self.lie(cosign(body))
        self.seen.append((body, answer))
        return answer

    def newest(self, keyservice: bytes) -> bytes | None:
        """See the port."""
        if self.hold is not None:
            self.hold.wait(60)
        if self.away:
            raise Unavailable("witness-away", "the witness gives no answer")
        return self.witness.newest(keyservice)

    def record(self, keyservice: bytes) -> Record:
        """What it knows."""
        record = self.witness.record(keyservice)
        if record is None:
            raise AssertionError
        return record


def local_witnesses(folder: Path, clock: Clock, log_key: bytes, count: int) -> list[LocalWitness]:
    """So many of them, told of this log."""
    found = [LocalWitness(folder / f"w{number}", clock) for number in range(count)]
    for witness in found:
        witness.store.add(log_key)
    return found


def witnessed(witnesses: Sequence[LocalWitness], threshold: int) -> dict[str, Any]:
    """Settings of a KeyService (``EmbeddedKeyService``) that these witnesses confirm."""
    ports: Sequence[WitnessPort] = witnesses
    return {
        "witnesses": ports,
        "rollback_protection": WITNESSES,
        "witness_keys": tuple(witness.key for witness in witnesses),
        "witness_threshold": threshold,
    }


@final
class WitnessProcess:
    """``cloister witness run`` on a directory of its own, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.state = folder
        self.key: SigningKey = initialise(folder).key
        self.address = ""
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def add(self, log_key: bytes) -> None:
        """Tell it of a log; it may be running."""
        WitnessStore(self.state).add(log_key)

    def start(self) -> None:
        """Start it, on the same port as before, and wait until it answers.

        :raises Unavailable: ``witness-not-started``.
        """
        command = [sys.executable, "-m", "cloister", "witness", "run", "--json"]
        command += ["--listen", f"127.0.0.1:{self._port}", "--state", str(self.state)]
        with (self.state / "log.jsonl").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)  # noqa: S603  # ourselves
        if self._process.stdout is None:
            raise AssertionError
        lines: list[bytes] = []
        while not lines or lines[-1] != b"}\n":
            line = self._process.stdout.readline()
            if not line:
                self.kill()
                said = (self.state / "log.jsonl").read_text(encoding="utf-8").strip().splitlines()[-1:]
                raise Unavailable("witness-not-started", f"the witness ended: {' '.join(said)}")
            lines.append(line)
        self.address = str(json.loads(b"".join(lines))["address"])
        self._port = int(self.address.rpartition(":")[2])

    def kill(self) -> None:
        """``kill -9``."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(60)
            if process.stdout is not None:
                process.stdout.close()

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.terminate()
        status = process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
        return status
