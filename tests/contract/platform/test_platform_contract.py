"""What every platform does: instances start, answer, end, and are found again by whoever comes next."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from cloister.adapters.http.client import AsyncHttpClient
from cloister.base.errors import Unavailable
from cloister.platforms.knative.driver import KnativePlatform
from cloister.platforms.knative.settings import KnativeSettings
from cloister.platforms.kubernetes.driver import KubernetesPlatform
from cloister.platforms.kubernetes.settings import Cluster, KubernetesSettings
from cloister.platforms.local import LocalPlatform
from cloister.platforms.openwhisk.driver import OpenWhiskPlatform
from cloister.platforms.openwhisk.settings import OpenWhiskSettings
from cloister.platforms.port import Event, Gone, Leaving, Platform, Ready
from cloister.platforms.static.driver import StaticPlatform
from cloister.platforms.static.settings import StaticSettings
from cloister.testing.kubernetes.cluster import PORT, FakeKubernetes, manifest
from cloister.testing.logs import MemoryLog
from cloister.testing.openwhisk_server import AUTH, FakeOpenWhisk
from cloister.testing.platform import FakeCloud, FakePlatform

COMMAND = [sys.executable, "-m", "cloister.testing.instance"]
NEVER = [*COMMAND, "--ready-after-s", "3600"]


class Bench:
    """One deployment, driven by one driver at a time."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.cloud = FakeCloud()
        self.platform: Any = None
        self.events: AsyncIterator[Event]
        self.never_ready = False
        self.openwhisk: FakeOpenWhisk | None = None
        self.kubernetes: FakeKubernetes | None = None
        self.others: dict[str, subprocess.Popen[bytes]] = {}  # by address: instances that somebody else started

    @property
    def ends(self) -> bool:
        """Whether a stopped instance's process ends; one that somebody else started goes on."""
        return self.kind != "static"

    async def open(self) -> Platform:
        """A driver, in place of the one before, which ends without stopping anything."""
        if self.platform is not None:
            await self.platform.close()
        if self.kind == "fake":
            self.cloud.comes_up = not self.never_ready
            self.platform = FakePlatform(self.cloud)
        elif self.kind == "openwhisk":
            if self.openwhisk is None:
                self.openwhisk = FakeOpenWhisk()
                await self.openwhisk.open()
            self.platform = OpenWhiskPlatform(
                OpenWhiskSettings(
                    api=self.openwhisk.address,
                    auth=AUTH,
                    image="example/cloister:1",
                    deployment="contract",
                    parameters={"CLOISTER_FAIL": "not today"} if self.never_ready else {},
                    poll_s=0.05,
                ),
                MemoryLog(),
            )
        elif self.kind == "static":
            settings = StaticSettings(addresses=self._begin_others(), poll_s=0.05)
            self.platform = StaticPlatform(self.folder, settings, MemoryLog(), stop_grace_s=0.3)
            await self.platform.open()
        elif self.kind == "kubernetes":
            self.platform = KubernetesPlatform(
                KubernetesSettings("contract", port=PORT, cluster=await self.cluster()), MemoryLog()
            )
        elif self.kind == "knative":
            cluster = await self.cluster()
            args = ["--ready-after-s", "3600"] if self.never_ready else []
            self.platform = KnativePlatform(KnativeSettings("contract", manifest(args), cluster), MemoryLog())
        else:
            command = NEVER if self.never_ready else COMMAND
            self.platform = LocalPlatform(self.folder, command, stop_grace_s=5.0)
        self.events = self.platform.events()
        return self.platform

    async def cluster(self) -> Cluster:
        """How to reach the cluster, which outlives the drivers."""
        if self.kubernetes is None:
            self.kubernetes = FakeKubernetes()
            await self.kubernetes.open()
            self.kubernetes.deploy("contract")
        if self.never_ready:
            self.kubernetes.redeploy("contract", args=["--ready-after-s", "3600"])
        return Cluster(kubeconfig=self.kubernetes.kubeconfig(self.folder / "kubeconfig"), poll_s=1.0)

    def _begin_others(self) -> tuple[str, ...]:
        if self.never_ready:
            self._end_others()
        while len(self.others) < 3:
            address = f"unix:{tempfile.mkdtemp(prefix='cloister-')}/s"
            command = NEVER if self.never_ready else COMMAND
            self.others[address] = subprocess.Popen([*command, "--listen", address])
        return tuple(self.others)

    def _end_others(self) -> None:
        for address, process in self.others.items():
            process.kill()
            process.wait()
            socket = Path(address.removeprefix("unix:"))
            socket.unlink(missing_ok=True)
            socket.parent.rmdir()
        self.others.clear()

    async def next(self) -> Event:
        """The next event but :class:`Leaving`, which only announces another."""
        while True:
            event = await asyncio.wait_for(anext(self.events), 30)
            if not isinstance(event, Leaving):
                return event

    async def kill(self, instance: str) -> None:
        if self.kind == "fake":
            await self.cloud.kill(instance)
        elif (
            self.kind == "knative" and self.kubernetes is not None
        ):  # its pods come and go; the Service is the instance
            self.kubernetes.store.remove("services", f"contract-{instance}")
        elif self.kubernetes is not None:
            self.kubernetes.kill(instance)
        elif self.openwhisk is not None:  # there is no instance but the action: its containers come and go
            self.openwhisk.remove(f"contract-{instance}")
        elif self.others:
            (address,) = [there.address for there in await self.platform.running() if there.instance == instance]
            self.others[address].kill()
        else:
            process = self.platform._processes[instance]
            os.kill(process.pid, signal.SIGKILL)

    async def close(self) -> None:
        if self.platform is not None:
            if self.kind != "fake":
                await self.platform.stop_all()
            await self.platform.close()
        await self.cloud.close()
        self._end_others()
        if self.openwhisk is not None:
            assert not self.openwhisk.actions
            await self.openwhisk.close()
        if self.kubernetes is not None:
            with contextlib.suppress(TimeoutError):  # what somebody else deleted is cleaned up by the cluster
                await asyncio.wait_for(self.kubernetes.empty(), 10 if self.kind == "knative" else 0)
            left = (
                self.kubernetes.pods(),
                self.kubernetes.store.all_of("services"),
                self.kubernetes.replicas("contract"),
            )
            await self.kubernetes.close()
            assert left == ([], [], 0)


KINDS = (
    "fake",
    "local",
    "local-uvloop",
    "openwhisk",
    "static",
    "static-uvloop",
    "kubernetes",
    "kubernetes-uvloop",
    "knative",
)


@pytest.fixture(params=KINDS)
def scenario(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Callable[[Bench], Awaitable[None]]], None]:
    """Runs a coroutine function with a bench, and checks that nothing is left."""

    async def whole(body: Callable[[Bench], Awaitable[None]]) -> None:
        bench = Bench(request.param.partition("-")[0], tmp_path)
        try:
            await bench.open()
            await body(bench)
        finally:
            await bench.close()
        assert not list((tmp_path / "instances").glob("*")) if (tmp_path / "instances").exists() else True

    def run(body: Callable[[Bench], Awaitable[None]]) -> None:
        factory = uvloop.new_event_loop if request.param.endswith("uvloop") else None
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.sleep(0))  # the first loop of a process keeps descriptors for those after it
        before = len(list(Path("/proc/self/fd").iterdir()))
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(whole(body))
        assert len(list(Path("/proc/self/fd").iterdir())) <= before
        with contextlib.suppress(ChildProcessError):  # no child, or none that has ended
            assert os.waitpid(-1, os.WNOHANG)[0] == 0

    return run


async def _asks(address: str) -> int:
    client = AsyncHttpClient()
    try:
        return (await client.request("GET", address, "/v1/status", deadline_s=10)).status
    finally:
        await client.close()


def test_an_instance_starts_answers_and_stops(scenario: Any) -> None:
    async def body(bench: Bench) -> None:
        await bench.platform.start("i-1", "group/a")
        ready = await bench.next()
        assert isinstance(ready, Ready)
        assert (ready.instance, ready.group) == ("i-1", "group/a")
        assert await _asks(ready.address) == 200
        (there,) = await bench.platform.running()
        assert (there.instance, there.group, there.address, there.ready) == ("i-1", "group/a", ready.address, True)
        await bench.platform.stop("i-1")
        gone = await bench.next()
        assert isinstance(gone, Gone)
        assert gone.instance == "i-1"
        assert not await bench.platform.running()
        if bench.ends:
            with pytest.raises(Unavailable):
                await _asks(ready.address)

    scenario(body)


def test_starting_again_and_stopping_what_is_not_there_is_harmless(scenario: Any) -> None:
    async def body(bench: Bench) -> None:
        await bench.platform.start("i-1", "g")
        await bench.platform.start("i-1", "g")
        await bench.next()
        assert len(await bench.platform.running()) == 1
        await bench.platform.stop("unknown")
        await bench.platform.stop("i-1")
        await bench.platform.stop("i-1")
        assert isinstance(await bench.next(), Gone)

    scenario(body)


def test_a_killed_instance_is_reported(scenario: Any) -> None:
    async def body(bench: Bench) -> None:
        await bench.platform.start("i-1", "g")
        assert isinstance(await bench.next(), Ready)
        await bench.kill("i-1")
        gone = await bench.next()
        assert isinstance(gone, Gone)
        assert "died" in gone.reason
        await bench.platform.start("i-1", "g")
        assert isinstance(await bench.next(), Ready)

    scenario(body)


def test_a_new_driver_takes_over_what_runs_and_sees_it_die(scenario: Any) -> None:
    async def body(bench: Bench) -> None:
        for name in ("i-1", "i-2"):
            await bench.platform.start(name, f"group-{name}")
        for _ in range(2):
            assert isinstance(await bench.next(), Ready)
        await bench.open()
        found = {r.instance: r for r in await bench.platform.running()}
        assert {name: r.group for name, r in found.items()} == {"i-1": "group-i-1", "i-2": "group-i-2"}
        waiting = {name for name, r in found.items() if not r.ready}
        while waiting:
            event = await bench.next()
            assert isinstance(event, Ready)
            waiting.remove(event.instance)
        assert await _asks(found["i-1"].address) == 200
        await bench.kill("i-1")
        gone = await bench.next()
        assert isinstance(gone, Gone)
        assert gone.instance == "i-1"
        await bench.platform.stop("i-2")
        assert isinstance(await bench.next(), Gone)

    scenario(body)


def test_one_that_is_not_ready_has_not_been_announced_and_can_be_stopped(scenario: Any) -> None:
    async def body(bench: Bench) -> None:
        bench.never_ready = True
        await bench.open()
        await bench.platform.start("i-1", "g")
        (there,) = await bench.platform.running()
        assert not there.ready
        await bench.platform.stop("i-1")
        assert isinstance(await bench.next(), Gone)

    scenario(body)
