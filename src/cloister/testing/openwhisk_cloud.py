"""A whole Cloister whose runtimes are actions of :class:`FakeOpenWhisk`: everything real but the platform."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from cloister.testing.action import ACTION
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.openwhisk_server import AUTH, FakeOpenWhisk


class Beside:
    """An event loop in a thread of its own, for a fake platform beside blocking tests."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="beside")
        self._thread.start()

    def run(self, work: Any) -> Any:
        """Run a coroutine there, and wait."""
        found: Future[Any] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return found.result(120)

    def close(self) -> None:
        """End the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class OpenWhiskCloud(LocalCloud):
    """``LocalCloud`` with a gateway that drives OpenWhisk.

    :param platform: open already, or a real one's address in ``api``.
    """

    def __init__(
        self, folder: Path, platform: FakeOpenWhisk, *, payloads: str = "", concurrency: int = 4, **settings: Any
    ) -> None:
        super().__init__(folder, concurrency=concurrency, **settings)
        self.platform = platform
        self.payloads = payloads

    def _gateway_configuration(self, keyservice: str) -> str:
        auth = self.folder / "openwhisk.auth"
        auth.write_text(AUTH + "\n")
        parameters = self.action_environment(keyservice)
        local = super()._gateway_configuration(keyservice)
        return "\n".join(
            [
                "[platform]",
                'kind = "openwhisk"',
                "[platform.openwhisk]",
                f'api = "{self.platform.address}"',
                f"auth_file = {json.dumps(str(auth))}",
                'image = "example/cloister:1"',
                f"concurrency = {self.concurrency}",
                f'payloads = "{self.payloads}"',
                "[platform.openwhisk.parameters]",
                *(f"{name} = {json.dumps(value)}" for name, value in parameters.items()),
                "",
                local[local.index("[store]") :],
            ]
        )


def real_actions(**settings: Any) -> FakeOpenWhisk:
    """An OpenWhisk whose containers run ``cloister openwhisk-action``."""
    return FakeOpenWhisk(ACTION, **settings)
