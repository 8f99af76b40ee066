"""A scene for tests of the whole: a local cloud of real processes, wiretaps where its network is, people, runtimes.

Everything in it is what ``cloister up`` starts; the attacker is whoever holds the scene: he owns the network, the
store, every folder but the people's own, and the processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.answer import Answer
from cloister.adapters.http.blocking import HttpClient
from cloister.attest.policy import Policy
from cloister.base.errors import CloisterError
from cloister.base.ids import ModelId
from cloister.client.client import Client
from cloister.client.exchange import SEALED_HEADERS
from cloister.client.identity import create_identity
from cloister.client.inference import SealedInference
from cloister.client.profile import Profile
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.wiretap import Wiretap
from cloister.wire.statements import REQUEST_KEY

PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Instance:
    """A runtime that the gateway started."""

    name: str
    pid: int
    address: str


@dataclass(slots=True)
class RuntimeProcess:
    """A runtime that the scene started by itself, beside the gateway."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


@dataclass(slots=True)
class Scene:
    """See the module; made by :func:`raised`."""

    folder: Path
    cloud: LocalCloud
    keyservice: str
    gateway: str
    keyservice_wire: Wiretap
    gateway_wire: Wiretap
    profile: Profile
    stack: ExitStack
    http: HttpClient
    people: dict[str, Client] = field(default_factory=dict)
    _count: int = 0

    # --- people and models ---

    def person(self, name: str) -> Client:
        """A registered identity, behind the wiretaps."""
        if name not in self.people:
            client = Client(self.profile, create_identity(self.cloud.home, name))
            self.stack.callback(client.close)
            client.register()
            self.people[name] = client
        return self.people[name]

    def at(self, client: Client, address: str) -> Client:
        """The same person, who sends his requests elsewhere: straight to an instance, say. Closed with the scene."""
        other = Client(dataclasses.replace(client.profile, gateway=address), client.account.identity)
        self.stack.callback(other.close)
        return other

    def offer(
        self,
        owner: Client,
        name: str,
        onnx: bytes,
        *users: Client,
        mode: str = REQUEST_KEY,
        policy: Policy | None = None,
        version: int = 1,
    ) -> ModelId:
        """Pack, publish, grant to and consent of each user."""
        self._count += 1
        source = self.folder / f"{name}-{self._count}.onnx"
        source.write_bytes(onnx)
        packed = self.folder / f"{name}-{self._count}.packed"
        owner.pack(source, packed, name=name, version=version, tuned=False)
        owner.publish(packed)
        model = owner.own_model(name)
        rules = policy or self.cloud.runtime_policy()
        for user in users:
            owner.grant(name, user.account.identity.id, rules)
            user.consent(model, rules, mode=mode)
        return model

    # --- processes ---

    def runtime(
        self,
        *,
        cloud: LocalCloud | None = None,
        keyservice: str | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        ready: bool = True,
    ) -> RuntimeProcess:
        """One more runtime, on a socket of its own.

        :param cloud: whose configuration it has. :param ready: wait until it has a session with the KeyService.
        """
        self._count += 1
        socket, log = self.folder / f"r{self._count}", self.folder / f"runtime-{self._count}.log"
        command = (cloud or self.cloud).runtime_command(keyservice or self.keyservice_wire.address)
        with log.open("wb") as stream:
            process = subprocess.Popen(  # noqa: S603  # ourselves
                [*command, *arguments, "--listen", f"unix:{socket}"],
                stdout=stream,
                stderr=stream,
                env=os.environ | dict(environment or {}),
            )
        made = RuntimeProcess(process, f"unix:{socket}", log)
        self.stack.callback(made.stop)
        path = "/readyz" if ready else "/healthz"
        self.until(lambda: process.poll() is not None or self.answers(made.address, path))
        if process.poll() is not None:
            raise AssertionError(log.read_text("utf-8", "replace"))
        return made

    def instances(self) -> list[Instance]:
        """Runtimes of the gateway, as it wrote them down."""
        found = []
        for record in sorted((self.cloud.folder / "gateway" / "instances").glob("*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError):
                fields = json.loads(record.read_text())
                if int(fields["pid"]) > 0:
                    found.append(Instance(record.stem, int(fields["pid"]), f"unix:{fields['socket']}"))
        return found

    def kill_instances(self) -> int:
        """``kill -9`` for each; how many there were."""
        found = self.instances()
        for instance in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(instance.pid, signal.SIGKILL)
        return len(found)

    def restart_keyservice(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """``kill -9``, do something, and start it again on its address."""
        listen = self.cloud.keyservice_listen
        self.cloud.keyservice_listen = self.keyservice.removeprefix("http://")
        try:
            self.cloud.stop_service("keyservice", kill=True)
            meanwhile()
            self.cloud.start_keyservice()
        finally:
            self.cloud.keyservice_listen = listen

    # --- what the attacker does and sees ---

    def send(self, address: str, sealed: SealedInference | bytes, target: str = "") -> Answer:
        """A sealed request as it is, once."""
        data, where = (sealed, target) if isinstance(sealed, bytes) else (bytes(sealed.data), sealed.target)
        return self.post(address, where, data, SEALED_HEADERS)

    def post(self, address: str, target: str, data: bytes, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
        """Any bytes to any address."""
        return self.http.request(
            "POST", address, target, headers=headers, content=data, deadline_s=30.0, idempotent=True
        )

    def get(self, address: str, target: str) -> Any:
        """JSON, or text."""
        answer = self.http.request("GET", address, target, deadline_s=10.0).checked()
        return json.loads(answer.body) if "json" in answer.headers.get("content-type") else bytes(answer.body).decode()

    def answers(self, address: str, path: str) -> bool:
        """Whether somebody answers 200 there."""
        try:
            return self.http.request("GET", address, path, deadline_s=2.0).status == 200
        except CloisterError:
            return False

    def until(self, condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
        """Wait for something that no event tells of.

        :raises AssertionError: it did not become true.
        """
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                raise AssertionError("waited in vain")
            time.sleep(0.01)

    def held(self) -> dict[str, bytes]:
        """Everything that the cloud holds or saw: both wires, store, states, logs, and what services tell operators."""
        found = {
            "wire to the KeyService": self.keyservice_wire.recorded(),
            "wire to users": self.gateway_wire.recorded(),
        }
        for name in ("store", "keyservice", "gateway"):
            files = sorted(path for path in (self.cloud.folder / name).rglob("*") if path.is_file())
            found[f"folder {name}"] = b"".join(path.read_bytes() for path in files)
        logs = [*self.cloud.log_files, *self.folder.glob("runtime-*.log")]
        found["logs"] = b"".join(path.read_bytes() for path in logs)
        pages = [(self.keyservice, "/metrics"), (self.gateway, "/metrics"), (self.gateway, "/v1/status")]
        for instance in self.instances():
            pages += [(instance.address, "/metrics"), (instance.address, "/v1/status")]
        found["pages"] = b"".join(bytes(self.http.request("GET", *page, deadline_s=10.0).body) for page in pages)
        return found


def pss_mb(pid: int) -> float:
    """Memory of a process, pages that are shared counted in part: ``/proc/PID/smaps_rollup``."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


@contextlib.contextmanager
def raised(folder: Path, **options: Any) -> Iterator[Scene]:
    """Start everything in a folder; nothing is left running.

    :param options: of :class:`LocalCloud`; one instance with all models unless they say otherwise.
    """
    chosen: dict[str, Any] = {"packer": "all-in-one", "instances": 1, "keep_alive_s": 120.0}
    cloud = LocalCloud(folder / "cloud", **(chosen | options))
    with ExitStack() as stack:
        stack.callback(cloud.stop)
        cloud.prepare()
        keyservice = cloud.start_keyservice()
        keyservice_wire = stack.enter_context(Wiretap.before(keyservice))
        gateway = cloud.start_gateway(keyservice_wire.address)
        gateway_wire = stack.enter_context(Wiretap.before(gateway))
        profile = cloud.write_profile(keyservice_wire.address, gateway_wire.address)
        http = HttpClient(SystemClock())
        stack.callback(http.close)
        yield Scene(folder, cloud, keyservice, gateway, keyservice_wire, gateway_wire, profile, stack, http)
