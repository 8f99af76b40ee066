"""A KeyService as its own process over HTTP, to be killed and started again on the same state directory."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any, final

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.keyservice import MAX_DESCRIPTION, MAX_REPLY
from cloister.base.errors import Unavailable
from cloister.base.limits import MAX_STATUS
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.keyservice.custody.upkeep import NO_CUSTODIANS, Custodians
from cloister.keyservice.offline import ROOT_FILE, initialise
from cloister.keyservice.opening import read_settings, simulated_tee
from cloister.keyservice.root import open_root
from cloister.keyservice.storage.place import store_place
from cloister.testing.plenty import plenty_of_everything
from cloister.wire import calls
from cloister.wire.calls import Description, LogHead, verify_status


@final
class KeyServiceProcess:
    """``cloister keyservice run`` on a state directory of its own.

    :param folder: where state, key and configuration are made. ``settings``: lines of TOML.
    :param state: one that there is already. :param log: where it says what it says to its operator.
    :param store: a database for its records, as ``--store`` takes it.
    :param platform: seed of the platform's key; another one cannot unseal. :param custodians: of a new one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: str = "",
        arguments: tuple[str, ...] = (),
        state: Path | None = None,
        log: Path | None = None,
        store: str | None = None,
        platform: bytes = b"p" * 32,
        custodians: Custodians = NO_CUSTODIANS,
    ) -> None:
        self.clock = SystemClock()
        self.state = state or folder / "state"
        self.key_file = folder / "platform.key"
        self.platform = SigningKey.from_seed(SecretBytes(platform))
        self.key_file.write_text(platform.hex(), encoding="ascii")
        self.configuration = folder / "keyservice.toml"
        self.configuration.write_text(settings, encoding="utf-8")
        self.settings = read_settings(self.configuration)
        self.tee = simulated_tee(self.key_file, self.settings, self.clock)
        if state is None:
            place = store_place(self.state, store)
            self.root = initialise(self.state, self.tee, self.settings, self.clock, place, custodians=custodians)
        else:
            if self.tee.sealer is None:
                raise AssertionError
            self.root = open_root(self.state / ROOT_FILE, self.tee.sealer)
        self.arguments = arguments if store is None else ("--store", store, *arguments)
        self.limits = plenty_of_everything(folder)
        self.log = log or folder / "log.jsonl"
        self.address = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Start it, and wait until it answers.

        :raises Unavailable: ``keyservice-not-started`` with what it said.
        """
        command = [sys.executable, "-m", "cloister", "keyservice", "run", "--json", "--listen", "127.0.0.1:0"]
        command += ["--state", str(self.state), "--simulation-key", str(self.key_file)]
        command += ["--configuration", str(self.configuration), "--limits", str(self.limits)]
        command += [*self.arguments, *arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)  # noqa: S603  # ourselves
        if self._process.stdout is None:
            raise AssertionError
        lines: list[bytes] = []
        while not lines or lines[-1] != b"}\n":
            line = self._process.stdout.readline()
            if not line:
                self.wait()
                said = self.log.read_text(encoding="utf-8").strip().splitlines()[-1:]
                raise Unavailable("keyservice-not-started", f"the KeyService ended: {' '.join(said)}")
            lines.append(line)
        self.address = str(json.loads(b"".join(lines))["address"])

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        if self._process is None:
            raise AssertionError
        return self._process.pid

    def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        if self._process is not None:
            self._process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        status = process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
        return status


@final
class HttpCaller:
    """Calls to a KeyService over HTTP without believing its evidence: for tests of what lies behind it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = HttpClient(SystemClock())
        try:
            self.description = Description.decode(self.get("/v1/description", limit=MAX_DESCRIPTION))
        except BaseException:
            self._client.close()
            raise

    def get(self, path: str, *, limit: int) -> bytes:
        """``Transport``."""
        return self._client.request("GET", self.address, path, max_answer=limit).checked().body

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        """``Transport``."""
        answer = self._client.request("POST", self.address, path, content=body, max_answer=limit, idempotent=False)
        return answer.checked().body

    def call(self, kind: str, body: bytes, keys: tuple[SecretBytes, ...] = ()) -> dict[str, Any]:
        """One sealed call."""
        pending = calls.seal_call(self.description, kind, body, keys)
        return calls.open_reply(pending, self.post("/v1/call", pending.data, limit=MAX_REPLY))

    def head(self) -> LogHead:
        """The log's head."""
        nonce = secrets.token_bytes(32)
        return verify_status(self.post("/v1/status", nonce, limit=MAX_STATUS), self.description, nonce)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()
