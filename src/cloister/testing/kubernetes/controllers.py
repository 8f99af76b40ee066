"""Controllers: a Deployment gets its pods, by the rules of the ReplicaSet's; a Knative Service gets one."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import secrets
import socket
from typing import Any, Final

from cloister.testing.kubernetes.server import leave
from cloister.testing.kubernetes.store import Object, Refusal, Store

COST: Final = "controller.kubernetes.io/pod-deletion-cost"
KNATIVE_SERVICE: Final = "serving.knative.dev/service"


class Controllers:
    """See the module.

    :ivar quota: how many pods may be made; beyond, none is, and nothing says so but events.
    :ivar paused: while set, nothing is done: a controller manager that is away.
    """

    def __init__(self, store: Store) -> None:
        self.quota = 1_000
        self.paused = False
        self._store = store
        self._ports: dict[str, int] = {}  # of Services, by uid: their addresses stay while pods come and go
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            moved = self._store.moved
            if not self.paused:
                for deployment in self._store.all_of("deployments"):
                    self._replicate(deployment)
                for service in self._store.all_of("services"):
                    self._serve(service)
                self._collect()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):  # wait_for loses a cancellation that comes with the event
                    await moved.wait()

    # --- Deployments ---

    def _replicate(self, deployment: Object) -> None:
        name = deployment["metadata"]["name"]
        pods = [pod for pod in self._store.all_of("pods") if _owner(pod) == deployment["metadata"]["uid"]]
        active = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        wanted = deployment["spec"].get("replicas", 1)
        for _ in range(wanted - len(active)):
            if len(self._store.all_of("pods")) < self.quota:
                self._make(f"{name}-7d9c5b8f6-{_suffix()}", deployment, deployment["spec"]["template"])
        for pod in sorted(active, key=lambda pod: rank(pod, self._store.born[pod["metadata"]["uid"]]))[
            : max(0, len(active) - wanted)
        ]:
            _go(self._store, pod)
        self._store.change("deployments", name, lambda one: one.setdefault("status", {}).update(replicas=len(active)))

    def _make(self, name: str, owner: Object, template: Object) -> None:
        pod = copy.deepcopy(template)
        pod.update(kind="Pod", apiVersion="v1", status={"phase": "Pending"})
        meta = pod.setdefault("metadata", {})
        meta["name"] = name
        # A Deployment's pods belong to its ReplicaSet, which is not in this API; the id is the Deployment's.
        kind, group = (
            ("ReplicaSet", "apps/v1") if owner["kind"] == "Deployment" else (owner["kind"], owner["apiVersion"])
        )
        meta["ownerReferences"] = [
            {
                "apiVersion": group,
                "kind": kind,
                "name": name.rpartition("-")[0],
                "uid": owner["metadata"]["uid"],
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
        self._store.create("pods", pod)

    # --- Knative ---

    def _serve(self, service: Object) -> None:
        name, meta = service["metadata"]["name"], service["metadata"]
        pods = [pod for pod in self._store.all_of("pods") if _owner(pod) == meta["uid"]]
        if "deletionTimestamp" in meta:  # in the foreground: what belongs to it first
            for pod in pods:
                _go(self._store, pod)
            if not pods:
                self._store.remove("services", name)
            return
        if not pods:
            port = self._ports.setdefault(meta["uid"], _free_port())
            self._make(f"{name}-00001-deployment-{_suffix()}", service, _template(name, service, port))
            return
        status = _service_status(self._store.namespace, service, pods[0])
        self._store.change("services", name, lambda one: one.update(status=status))

    def _collect(self) -> None:
        """Pods whose owner is gone."""
        owners = {
            one["metadata"]["uid"] for plural in ("deployments", "services") for one in self._store.all_of(plural)
        }
        for pod in self._store.all_of("pods"):
            if _owner(pod) not in owners:
                _go(self._store, pod)


def rank(pod: Object, born: int) -> tuple[Any, ...]:
    """Which goes first when there are too many: controller_utils.go, ActivePodsWithRanks; of equals the youngest."""
    status = pod.get("status", {})
    phase = {"Pending": 0, "Unknown": 1}.get(status.get("phase", ""), 2)
    cost = int((pod["metadata"].get("annotations") or {}).get(COST, "0"))
    restarts = sum(one.get("restartCount", 0) for one in status.get("containerStatuses", ()))
    return ("nodeName" in pod["spec"], phase, _ready(pod), cost, -restarts, -born)


def _ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _owner(pod: Object) -> str:
    return next((str(one["uid"]) for one in pod["metadata"].get("ownerReferences", ()) if one.get("controller")), "")


def _go(store: Store, pod: Object) -> None:
    grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
    with contextlib.suppress(Refusal):
        store.change("pods", pod["metadata"]["name"], lambda one: leave(one, grace, store.now()))


def _suffix() -> str:
    return "".join(secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5))


def _free_port() -> int:
    """One on which nothing listens, outside the range from which Linux takes ports for connections meanwhile."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))  # as the container will
            return port


def _template(name: str, service: Object, port: int) -> Object:
    """The pod of a revision. The port it is told is one that is free here: it listens on all addresses."""
    template: Object = copy.deepcopy(service["spec"]["template"])
    labels = template.setdefault("metadata", {}).setdefault("labels", {})
    labels.update({KNATIVE_SERVICE: name})
    container = template["spec"]["containers"][0]
    container.setdefault("name", "user-container")
    container["env"] = [*container.get("env", ()), {"name": "PORT", "value": str(port)}]
    template["spec"]["terminationGracePeriodSeconds"] = template["spec"].get("timeoutSeconds", 300)
    return template


def _service_status(namespace: str, service: Object, pod: Object) -> Object:
    name = service["metadata"]["name"]
    state: Object = {"status": "Unknown", "reason": "RevisionMissing"}
    for one in pod.get("status", {}).get("containerStatuses", ()):
        waiting = one.get("state", {}).get("waiting", {})
        if waiting.get("reason") in ("ImagePullBackOff", "CrashLoopBackOff"):
            words = f'Revision "{name}-00001" failed with message: {waiting.get("message", "")}'
            last = one.get("lastState", {}).get("terminated")
            words += f" {last['message']}" if last else ""
            state = {"status": "False", "reason": "RevisionFailed", "message": words}
    found: Object = {"observedGeneration": service["metadata"]["generation"]}
    if _ready(pod) or "address" in service.get("status", {}):
        port = next(one["value"] for one in pod["spec"]["containers"][0]["env"] if one["name"] == "PORT")
        found["url"] = f"http://{name}.{namespace}.example.com"
        found["address"] = {"url": f"http://127.0.0.1:{port}"}
        state = {"status": "True"} if _ready(pod) else state
    found["conditions"] = [{"type": kind, **state} for kind in ("ConfigurationsReady", "Ready", "RoutesReady")]
    return found
