"""A whole Cloister in containers: KeyService, gateway and a fixed number of runtimes on a network of their own.

What deploy/compose describes, started by hand, so that one container after the other can be stopped, killed, cut off
and brought back. Owners and users are processes of this machine.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from cloister.testing.compose_folder import static_gateway
from cloister.testing.containers import Engine, RunningContainer
from cloister.testing.image_cloud import ImageCloud
from cloister.testing.local_cloud import COMMAND

ALIAS: Final = "runtime"  # the name that leads to every runtime


class FleetCloud(ImageCloud):
    """See the module.

    :param gateway_image: of the gateway. :param runtimes: how many.
    """

    def __init__(
        self, folder: Path, engine: Engine, image: str, gateway_image: str, *, runtimes: int = 2, **settings: Any
    ) -> None:
        super().__init__(folder, engine=engine, image=image, witnesses=0, instances=runtimes, **settings)
        self.gateway_image = gateway_image
        self.gateway: RunningContainer | None = None
        self.runtimes: list[RunningContainer] = []

    # --- starting and ending ---

    def start_gateway(self, keyservice: str) -> str:
        """The runtimes, and a gateway before them; returns its address."""
        del keyservice  # runtimes know it by its name
        self.share_trust()
        while len(self.runtimes) < self.instances:
            self.runtimes.append(self.start_runtime())
        file = self.folder / "gateway.toml"
        file.write_text(self._gateway_configuration(""))
        mounts = ("--volume", f"{file}:/etc/cloister/gateway.toml:ro", "--volume", f"{self.store}:/store:ro")
        words = ("gateway", "--config", "/etc/cloister/gateway.toml", "--state", "/state", "--listen", "0.0.0.0:8080")
        options = ("--network", self.network, *mounts, "--volume", "/state")  # a new one, its user's as the image's is
        self.gateway = self.engine.start(self.gateway_image, words, options)
        return self.answers(self.gateway, "gateway")

    def share_trust(self) -> None:
        """What runtimes need, where the image's user may read it; a simulated platform's key protects nothing."""
        trust = self.folder / "trust"
        trust.mkdir(exist_ok=True)
        for name in ("bundle.cbor", "simulation.key"):
            shutil.copyfile(self.folder / name, trust / name)
            (trust / name).chmod(0o644)

    def start_runtime(self) -> RunningContainer:
        """One more."""
        trust = ("--volume", f"{self.folder / 'trust'}:/trust:ro", "--volume", f"{self.store}:/store:ro")
        place = ("--network", self.network, "--network-alias", ALIAS)
        return self.engine.start(self.image, self._runtime_words(), (*place, *trust))

    def stop(self) -> None:
        """Stop everything; removes the containers."""
        for container in (self.gateway, *self.runtimes):
            if container is not None:
                container.kill()
        self.gateway = None
        self.runtimes.clear()
        super().stop()

    # --- what may happen to a runtime ---

    def stop_runtime(self, number: int) -> int:
        """SIGTERM, and wait until it has drained; returns its status."""
        container = self.runtimes[number]
        self.engine.call("stop", "--time", "60", container.id)
        return int(container.inspect("State.ExitCode"))

    def restart_runtime(self, number: int) -> None:
        """Start one that was stopped or killed."""
        self.runtimes[number] = self.runtimes[number].restarted()

    def cut_off(self, number: int) -> None:
        """Take a runtime off the network, in the middle of everything: it runs on, and nothing reaches it."""
        self.engine.call("network", "disconnect", self.network, self.runtimes[number].id)

    def mend(self, number: int) -> None:
        """Put it on the network again."""
        container = self.runtimes[number]
        self.engine.call("network", "connect", "--alias", ALIAS, self.network, container.id)
        self.runtimes[number] = RunningContainer(self.engine, container.id)

    # --- inside ---

    def _runtime_words(self) -> list[str]:
        words = self.runtime_command("http://keyservice:8080")[len(COMMAND) :]
        inside = {
            str((self.folder / "bundle.cbor").resolve()): "/trust/bundle.cbor",
            str((self.folder / "simulation.key").resolve()): "/trust/simulation.key",
            str(self.store.resolve()): "/store",
        }
        return [*(inside.get(word, word) for word in words), "--listen", "0.0.0.0:8080"]

    def _gateway_configuration(self, keyservice: str) -> str:
        return static_gateway(super()._gateway_configuration(keyservice), self.store)
