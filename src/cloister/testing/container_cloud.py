"""A whole Cloister whose KeyService and actions run in containers of the image, before a fake OpenWhisk."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.base.errors import CloisterError, Unavailable
from cloister.testing.containers import STRICT, Engine, RunningContainer
from cloister.testing.openwhisk_cloud import OpenWhiskCloud
from cloister.testing.openwhisk_server import FakeOpenWhisk

_START_S = 60.0


class ContainerCloud(OpenWhiskCloud):
    """``OpenWhiskCloud``; only gateway and clients are processes of this machine, as they are in no image.

    The KeyService's container runs as this folder's owner, since its state is here; actions run as the image's user.
    """

    def __init__(self, folder: Path, engine: Engine, image: str, **settings: Any) -> None:
        self.engine = engine
        self.image = image
        self.keyservice: RunningContainer | None = None
        number = secrets.randbelow(250)
        self.network = f"cloister-{secrets.token_hex(4)}"
        self._subnet = f"10.213.{number}"
        folder = folder.resolve()
        super().__init__(folder, FakeOpenWhisk(spawn=self.start_action), witnesses=0, **settings)

    def prepare(self) -> None:
        """As before, and the private network of all containers."""
        self.engine.call("network", "create", "--subnet", f"{self._subnet}.0/24", self.network)
        super().prepare()

    def start_action(self) -> RunningContainer:
        """One container as the platform's invoker starts it, with the model store in it."""
        mount = f"{self.store}:{self.store}:ro"
        memory = ("--memory", "768m", "--memory-swap", "768m")
        return self.engine.start(self.image, (), ("--network", self.network, *memory, "--volume", mount))

    def measurement(self) -> bytes:
        """Of the image."""
        told = self.engine.call("run", "--rm", "--network", "none", *STRICT, self.image, "version", "--json").stdout
        return bytes.fromhex(json.loads(told)["insecure-simulation-measurement"])

    def start_keyservice(self) -> str:
        """Returns its address on the engine's network."""
        bundle = ("--bundle", str(self.folder / "bundle.cbor"))
        words = ("keyservice", "run", *self._keyservice_arguments(), *bundle, "--listen", "0.0.0.0:8080")
        place = ("--network", self.network, "--ip", f"{self._subnet}.10")
        self.keyservice = self.engine.start(self.image, words, (*place, *self._as_owner()))
        return self._answers(self.keyservice)

    def restart_keyservice(self) -> None:
        """Kill it and start it again, at the same address."""
        old = self.keyservice
        assert old is not None  # noqa: S101
        self.engine.call("kill", old.id)
        self.engine.call("start", old.id)
        again = RunningContainer(self.engine, old.id)
        if again.ip != old.ip:
            raise Unavailable("container-engine-failed", f"{old.ip} became {again.ip}")
        self._answers(again)

    def stop(self) -> None:
        """Stop everything; removes the containers."""
        super().stop()
        if self.keyservice is not None:
            self.keyservice.kill()
            self.keyservice = None

    def remove_network(self) -> None:
        """At the very end, when no container is left."""
        self.engine.call("network", "rm", "--force", self.network, check=False)

    def _answers(self, container: RunningContainer) -> str:
        client = HttpClient(SystemClock())
        end = time.monotonic() + _START_S
        try:
            while container.alive and time.monotonic() < end:
                try:
                    client.request("GET", container.address, "/healthz", deadline_s=5.0).checked()
                except CloisterError:
                    time.sleep(0.05)
                else:
                    return container.address
        finally:
            client.close()
        raise Unavailable("service-not-started", f"the KeyService did not start: {container.output()[1][-400:]}")

    def _as_owner(self) -> tuple[str, ...]:
        return ("--user", "0:0", "--volume", f"{self.folder}:{self.folder}")

    def _run(self, *arguments: str) -> str:
        words = ("run", "--rm", "--network", "none", *STRICT, *self._as_owner(), self.image, *arguments)
        return self.engine.call(*words).stdout
