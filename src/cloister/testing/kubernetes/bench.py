"""A cluster and drivers on it, for tests of bad days."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from cloister.adapters.http.answer import Answer
from cloister.adapters.http.client import AsyncHttpClient
from cloister.platforms.knative.driver import KnativePlatform
from cloister.platforms.knative.settings import KnativeSettings
from cloister.platforms.kubernetes.driver import KubernetesPlatform
from cloister.platforms.kubernetes.settings import Cluster, KubernetesSettings
from cloister.platforms.port import Event, Gone, Ready
from cloister.testing.gateway import MODEL
from cloister.testing.kubernetes.cluster import IMAGE, PORT, FakeKubernetes, manifest
from cloister.testing.logs import MemoryLog

INFER = f"/v1/models/{MODEL}/infer"


class Driver:
    """A driver with what it says."""

    def __init__(self, platform: Any) -> None:
        self.platform = platform
        self._events: AsyncIterator[Event] = platform.events()
        self._next: asyncio.Task[Event] | None = None

    async def next(self, seconds: float = 20) -> Event:
        """The next event; one that comes too late is the next one's answer."""
        if self._next is None:
            self._next = asyncio.ensure_future(_first(self._events))
        done, _ = await asyncio.wait({self._next}, timeout=seconds)
        if not done:
            raise TimeoutError
        found, self._next = self._next, None
        return found.result()

    async def close(self) -> None:
        """Let go of the cluster."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self.platform.close()

    async def up(self, *instances: str) -> dict[str, Ready]:
        """Start them, and wait until all are ready."""
        for instance in instances:
            await self.platform.start(instance, f"group-{instance}")
        found: dict[str, Ready] = {}
        while len(found) < len(instances):
            event = await self.next()
            if not isinstance(event, Ready):
                raise AssertionError(event)  # noqa: TRY004  # it is the test that fails
            found[event.instance] = event
        if set(found) != set(instances):
            raise AssertionError(found)
        return found

    async def gone(self, instance: str, seconds: float = 20) -> str:
        """The reason of the next event, which is the end of this instance."""
        event = await self.next(seconds)
        if not isinstance(event, Gone) or event.instance != instance:
            raise AssertionError(event)
        return event.reason

    async def quiet(self, seconds: float = 0.3) -> None:
        """Nothing more happens, for so long."""
        try:
            event = await self.next(seconds)
        except TimeoutError:
            return
        raise AssertionError(event)


class Bench:
    """One cluster with a Deployment ``d``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = FakeKubernetes()
        self.client = AsyncHttpClient()
        self.log = MemoryLog()
        self.drivers: list[Driver] = []

    def reach(self, poll_s: float = 1.0) -> Cluster:
        """How drivers reach it."""
        return Cluster(kubeconfig=self.cluster.kubeconfig(self.folder / "kubeconfig"), poll_s=poll_s)

    async def open(self, deployment: str = "d", *, poll_s: float = 1.0, **settings: Any) -> Driver:
        """One more driver, open."""
        defaults = {"port": PORT, "start_timeout_s": 20.0, "stop_grace_s": 5.0}
        if "cluster" not in settings:
            settings["cluster"] = self.reach(poll_s)
        wanted = KubernetesSettings(deployment, **{**defaults, **settings})
        driver = Driver(KubernetesPlatform(wanted, self.log))
        self.drivers.append(driver)
        await driver.platform.open()
        return driver

    async def open_knative(self, name: str, *args: str, image: str = IMAGE, **settings: Any) -> Driver:
        """One more driver of Knative's, open. ``args`` are the container's."""
        defaults = {"start_timeout_s": 20.0, "stop_grace_s": 5.0}
        wanted = KnativeSettings(name, manifest(args, image=image), self.reach(), **{**defaults, **settings})
        driver = Driver(KnativePlatform(wanted, self.log))
        self.drivers.append(driver)
        await driver.platform.open()
        return driver

    async def infer(self, address: str, content: bytes) -> Answer:
        """A request to an instance."""
        return await self.client.request("POST", address, INFER, content=content, idempotent=False, deadline_s=30)

    async def until(self, done: Callable[[], bool], seconds: float = 15) -> None:
        """Wait for it."""
        async with asyncio.timeout(seconds):
            while not done():  # noqa: ASYNC110  # it is looked at
                await asyncio.sleep(0.02)

    def logged(self, name: str) -> int:
        """How often drivers logged it."""
        return sum(event[0] == name for event in self.log.events)


async def _first(events: AsyncIterator[Event]) -> Event:
    return await anext(events)


def run(folder: Path, body: Callable[[Bench], Awaitable[None]], **deployment: Any) -> None:
    """With a bench; afterwards nothing may be left, and the API server saw no fault of its own."""

    async def whole() -> None:
        bench = Bench(folder)
        await bench.cluster.open()
        bench.cluster.deploy("d", **deployment)
        try:
            await body(bench)
        finally:
            for driver in bench.drivers:
                await driver.close()
            await bench.client.close()
            await bench.cluster.close()
        if bench.cluster.kubelet.running or bench.cluster.api.log.events:
            raise AssertionError(bench.cluster.api.log.events)

    async def bounded() -> None:
        async with asyncio.timeout(90):
            await whole()

    asyncio.run(bounded())
