"""A whole Cloister whose KeyService and actions run in containers of the image, before a fake OpenWhisk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloister.testing.containers import Engine, RunningContainer
from cloister.testing.image_cloud import ImageCloud
from cloister.testing.openwhisk_cloud import OpenWhiskCloud
from cloister.testing.openwhisk_server import FakeOpenWhisk


class ContainerCloud(ImageCloud, OpenWhiskCloud):
    """``OpenWhiskCloud``; gateway and clients are processes of this machine, as OpenWhisk itself is."""

    def __init__(self, folder: Path, engine: Engine, image: str, **settings: Any) -> None:
        platform = FakeOpenWhisk(spawn=self.start_action)
        super().__init__(folder, platform, engine=engine, image=image, witnesses=0, **settings)

    def start_action(self) -> RunningContainer:
        """One container as the platform's invoker starts it, with the model store in it."""
        mount = f"{self.store}:{self.store}:ro"
        memory = ("--memory", "768m", "--memory-swap", "768m")
        return self.engine.start(self.image, (), ("--network", self.network, *memory, "--volume", mount))
