"""Scheduler and kubelet: a pod becomes a child process with an address of its own, and its status says how it goes."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cloister.adapters.http.client import AsyncHttpClient
from cloister.base.errors import CloisterError
from cloister.testing.kubernetes.store import Change, Object, Refusal, Store

TICK_S: Final = 0.02
PROBE_S: Final = 0.05
_MESSAGE: Final = 2048  # bytes of a container's last words


class Kubelet:
    """All nodes of a cluster.

    :param images: what an image runs; one that is not here cannot be pulled. A container's ``args`` follow, in which
        ``0.0.0.0`` is the pod's own address.
    :ivar room: how many pods the nodes take; further ones wait without a node.
    :ivar lost_nodes: nothing on these is confirmed any more, not even a pod's end.
    :ivar backoff_s: before a container that ended is started again.
    """

    def __init__(self, store: Store, images: Mapping[str, Sequence[str]], nodes: Sequence[str]) -> None:
        self.images = dict(images)
        self.room = 1_000
        self.lost_nodes: set[str] = set()
        self.backoff_s = 0.5
        self._store = store
        self._nodes = tuple(nodes)
        self._net = (
            64 + secrets.randbelow(64),
            secrets.randbelow(256),
        )  # 127.a.b.x: beside other tests on this machine
        self._count = 0
        self._client = AsyncHttpClient()
        self._folder = tempfile.TemporaryDirectory(prefix="cloister-kubelet-")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        store.listeners.append(self._heard)

    async def close(self) -> None:
        """End everything at once."""
        self._store.listeners.remove(self._heard)
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._processes.clear()
        await self._client.close()
        self._folder.cleanup()

    def process(self, pod: str) -> subprocess.Popen[bytes]:
        """Of a pod's container."""
        return self._processes[pod]

    @property
    def running(self) -> int:
        """Processes."""
        return len(self._processes)

    def _heard(self, change: Change) -> None:
        if change.plural == "pods" and change.before is None and change.after is not None:
            name = change.after["metadata"]["name"]
            task = asyncio.get_running_loop().create_task(self._live(name))
            self._tasks[name] = task
            task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def _live(self, name: str) -> None:
        """A pod, from when it is there until it is gone."""
        try:
            node = await self._schedule(name)
            await self._run(name, node)
        except Refusal:  # somebody removed it for good
            self._end(name)

    async def _schedule(self, name: str) -> str:
        while sum("nodeName" in pod["spec"] for pod in self._store.all_of("pods")) >= self.room:
            count = len(self._nodes)
            words = f"0/{count} nodes are available: {count} Insufficient memory."
            self._condition(name, "PodScheduled", False, "Unschedulable", words)
            moved = self._store.moved
            if "deletionTimestamp" in self._store.get("pods", name)["metadata"]:
                self._store.remove("pods", name)
            await moved.wait()
        self._count += 1
        nodes = [node for node in self._nodes if node not in self.lost_nodes]
        node = nodes[self._count % len(nodes)]
        self._store.change("pods", name, lambda pod: pod["spec"].update(nodeName=node))
        self._condition(name, "PodScheduled", True)
        return node

    async def _run(self, name: str, node: str) -> None:
        pod = self._store.get("pods", name)
        container = pod["spec"]["containers"][0]
        if container["image"] not in self.images:
            await self._never_pull(name, container)
            return
        environment = {one["name"]: one["value"] for one in container.get("env", ())}
        own = "PORT" not in environment  # with $PORT it listens everywhere, there
        ip = f"127.{self._net[0]}.{self._net[1]}.{1 + self._count % 250}" if own else "127.0.0.1"
        port = int(environment.get("PORT") or container["ports"][0]["containerPort"])
        self._status(name, podIP=ip, phase="Pending")
        restarts, last = 0, Object()
        while True:
            process = self._begin(name, container, ip, environment)
            self._status(name, phase="Running")
            self._container(name, container, {"running": {"startedAt": self._store.now()}}, restarts, last)
            if await self._watch(name, node, process, f"http://{ip}:{port}"):
                return
            over = {"exitCode": _exit_code(process), "reason": "Error", "message": self._last_words(name)}
            self._condition(name, "Ready", False, "ContainersNotReady")
            self._container(name, container, {"terminated": over}, restarts, last)
            restarts, last = restarts + 1, {"terminated": over}
            waiting = {"reason": "CrashLoopBackOff", "message": f"back-off restarting failed container in pod {name}"}
            self._container(name, container, {"waiting": waiting}, restarts, last)
            if await self._pause(name, self.backoff_s):
                self._end(name)
                self._store.remove("pods", name)
                return

    async def _watch(self, name: str, node: str, process: subprocess.Popen[bytes], address: str) -> bool:
        """Probe it until it ends; whether that was the end of its pod too."""
        loop = asyncio.get_running_loop()
        probe_at = loop.time()
        while process.poll() is None:
            pod = self._store.get("pods", name)
            if node in self.lost_nodes:
                await asyncio.sleep(TICK_S)
                continue
            if "deletionTimestamp" in pod["metadata"]:
                await self._terminate(name, process, pod["metadata"]["deletionGracePeriodSeconds"])
                return True
            if loop.time() >= probe_at:
                probe_at = loop.time() + PROBE_S
                self._condition(name, "Ready", await self._ready(address))
            await asyncio.sleep(TICK_S)
        return False

    async def _terminate(self, name: str, process: subprocess.Popen[bytes], grace: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        self._condition(name, "Ready", False, "PodTerminating")
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:
            if loop.time() >= end:
                process.kill()
            await asyncio.sleep(TICK_S)
        self._end(name)
        self._store.remove("pods", name)

    async def _never_pull(self, name: str, container: Object) -> None:
        for reason in ("ErrImagePull", "ImagePullBackOff"):
            words = f'Back-off pulling image "{container["image"]}": not found'
            self._container(name, container, {"waiting": {"reason": reason, "message": words}}, 0, {})
            if await self._pause(name, 0.05):
                break
        while not await self._pause(name, 1.0):
            pass
        self._store.remove("pods", name)

    async def _pause(self, name: str, seconds: float) -> bool:
        """Whether it is to go meanwhile."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            if "deletionTimestamp" in self._store.get("pods", name)["metadata"]:
                return True
            await asyncio.sleep(TICK_S)
        return False

    def _begin(self, name: str, container: Object, ip: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        args = [str(word).replace("0.0.0.0", ip) for word in container.get("args", ())]
        with (Path(self._folder.name) / name).open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                [*self.images[container["image"]], *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._processes[name] = process
        return process

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def _last_words(self, name: str) -> str:
        data = (Path(self._folder.name) / name).read_bytes()
        return data[-_MESSAGE:].decode("utf-8", "replace")

    async def _ready(self, address: str) -> bool:
        try:
            answer = await self._client.request("GET", address, "/readyz", deadline_s=1.0)
        except CloisterError:
            return False
        return answer.status == 200

    # --- status ---

    def _status(self, name: str, **fields: object) -> None:
        self._store.change("pods", name, lambda pod: pod.setdefault("status", {}).update(fields))

    def _condition(self, name: str, kind: str, good: bool, reason: str = "", message: str = "") -> None:
        condition: Object = {"type": kind, "status": "True" if good else "False"}
        condition.update({key: value for key, value in (("reason", reason), ("message", message)) if value})

        def edit(pod: Object) -> None:
            conditions = pod.setdefault("status", {}).setdefault("conditions", [])
            conditions[:] = [one for one in conditions if one["type"] != kind] + [condition]
            conditions.sort(key=lambda one: str(one["type"]))

        self._store.change("pods", name, edit)

    def _container(self, name: str, container: Object, state: Object, restarts: int, last: Object) -> None:
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": False,
            "restartCount": restarts,
            "state": state,
            "lastState": last,
        }
        self._status(name, containerStatuses=[status])


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """A signal is 128 and its number, as container engines say it."""
    code = process.wait()
    return 128 - code if code < 0 else code
