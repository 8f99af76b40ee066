"""A Cloister whose KeyService runs in a container of the image, on a network of its own."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any, Final

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.base.errors import CloisterError, Unavailable
from cloister.testing.containers import STRICT, Engine, RunningContainer
from cloister.testing.local_cloud import LocalCloud

START_S: Final = 60.0


class ImageCloud(LocalCloud):
    """``LocalCloud``, measured as the image is.

    The KeyService's container runs as this folder's owner, since its state is here; all else as the image's user.

    :param image: of KeyService and runtimes.
    """

    def __init__(self, folder: Path, *rest: Any, engine: Engine, image: str, **settings: Any) -> None:
        self.engine = engine
        self.image = image
        self.keyservice: RunningContainer | None = None
        self.network = f"cloister-{secrets.token_hex(4)}"
        self._subnet = f"10.213.{secrets.randbelow(250)}"
        super().__init__(folder.resolve(), *rest, **settings)

    def prepare(self) -> None:
        """As before, and the network of all containers, from which nothing leads outside."""
        self.engine.call("network", "create", "--internal", "--subnet", f"{self._subnet}.0/24", self.network)
        super().prepare()
        self.store.chmod(0o755)

    def measurement(self) -> bytes:
        """Of the image."""
        return self.engine.measurement(self.image)

    def start_keyservice(self) -> str:
        """Returns its address on the engine's network."""
        bundle = ("--bundle", str(self.folder / "bundle.cbor"))
        words = ("keyservice", "run", *self._keyservice_arguments(), *bundle, "--listen", "0.0.0.0:8080")
        place = ("--network", self.network, "--network-alias", "keyservice", "--ip", f"{self._subnet}.10")
        self.keyservice = self.engine.start(self.image, words, (*place, *self._as_owner()))
        return self.answers(self.keyservice, "KeyService")

    def restart_keyservice(self) -> None:
        """Kill it and start it again, at the same address."""
        old = self.keyservice
        assert old is not None  # noqa: S101
        self.engine.call("kill", old.id)
        again = old.restarted()
        if again.ip != old.ip:
            raise Unavailable("container-engine-failed", f"{old.ip} became {again.ip}")
        self.answers(again, "KeyService")

    def stop(self) -> None:
        """Stop everything; removes the containers."""
        super().stop()
        if self.keyservice is not None:
            self.keyservice.kill()
            self.keyservice = None

    def remove_network(self) -> None:
        """At the very end, when no container is left."""
        self.engine.call("network", "rm", "--force", self.network, check=False)

    def answers(self, container: RunningContainer, what: str) -> str:
        """Wait until a service lives; returns its address.

        :raises Unavailable: ``service-not-started``.
        """
        client = HttpClient(SystemClock())
        end = time.monotonic() + START_S
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
        raise Unavailable("service-not-started", f"the {what} did not start: {container.output()[1][-400:]}")

    def _as_owner(self) -> tuple[str, ...]:
        return ("--user", "0:0", "--volume", f"{self.folder}:{self.folder}")

    def _run(self, *arguments: str) -> str:
        words = ("run", "--rm", "--network", "none", *STRICT, *self._as_owner(), self.image, *arguments)
        return self.engine.call(*words).stdout
