"""A whole cluster: the API server, controllers and nodes; outlives the drivers that use it."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cloister.platforms.kubernetes.pods import INSTANCE
from cloister.platforms.kubernetes.rbac import KNATIVE, KUBERNETES, Rule
from cloister.testing.kubernetes.controllers import Controllers
from cloister.testing.kubernetes.kubelet import Kubelet
from cloister.testing.kubernetes.server import ApiServer
from cloister.testing.kubernetes.store import Object, Store

IMAGE: Final = "example/cloister:1"
STAND_IN: Final = (sys.executable, "-m", "cloister.testing.instance")
NAMESPACE: Final = "serving"
PORT: Final = 18080


class FakeKubernetes:
    """See the module. ``await open()`` first, ``await close()`` last.

    :param images: what an image runs. :param role: what the gateway may do.
    """

    def __init__(
        self,
        images: Mapping[str, Sequence[str]] | None = None,
        *,
        role: Iterable[Rule] | None = (*KUBERNETES, *KNATIVE),
    ) -> None:
        self._images = {IMAGE: STAND_IN} if images is None else images
        self._role = role
        self.store: Store
        self.api: ApiServer
        self.kubelet: Kubelet
        self.controllers: Controllers

    async def open(self) -> None:
        """Begin."""
        self.store = Store(NAMESPACE)
        self.api = ApiServer(self.store, token=secrets.token_hex(16), role=self._role)
        self.kubelet = Kubelet(self.store, self._images, ("node-1", "node-2"))
        self.controllers = Controllers(self.store)
        await self.api.up()

    async def close(self) -> None:
        """End everything."""
        await self.api.down()
        await self.controllers.close()
        await self.kubelet.close()

    def kubeconfig(self, path: Path) -> str:
        """Written there: how to reach the API as the gateway. JSON is YAML."""
        value = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
            "clusters": [{"name": "c", "cluster": {"server": self.api.address}}],
            "users": [{"name": "u", "user": {"token": self.api.token}}],
        }
        path.write_text(json.dumps(value))
        return str(path)

    def deploy(
        self,
        name: str,
        *,
        image: str = IMAGE,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        replicas: int | None = 0,
        grace_s: int = 30,
    ) -> None:
        """A Deployment as the chart makes it. ``replicas`` None leaves them out, which makes one."""
        labels = {"app.kubernetes.io/name": "cloister-runtime", "app.kubernetes.io/instance": name}
        spec: Object = {"selector": {"matchLabels": labels}, "template": _template(image, args, env or {}, grace_s)}
        spec["template"]["metadata"] = {"labels": labels}
        if replicas is not None:
            spec["replicas"] = replicas
        self.store.create(
            "deployments", {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": name}, "spec": spec}
        )

    def redeploy(self, name: str, *, image: str = IMAGE, args: Sequence[str] = (), grace_s: int = 30) -> None:
        """Another template, for pods from now on (the fake rolls nothing out)."""
        template = _template(image, args, {}, grace_s)
        self.store.change("deployments", name, lambda one: one["spec"]["template"].update(template))

    def replicas(self, name: str) -> int:
        """What a Deployment is asked for."""
        return int(self.store.get("deployments", name)["spec"].get("replicas", 1))

    def pods(self) -> list[Object]:
        """All, those on their way out included."""
        return self.store.all_of("pods")

    async def empty(self) -> None:
        """Wait until there are no pods."""
        while True:
            moved = self.store.moved
            if not self.pods():
                return
            await moved.wait()

    def pod_of(self, instance: str) -> str:
        """The name of an instance's pod; the newest, if one is on its way out."""
        found = [pod for pod in self.pods() if (pod["metadata"].get("labels") or {}).get(INSTANCE) == instance]
        if not found:
            raise KeyError(instance)
        return str(max(found, key=lambda pod: "deletionTimestamp" not in pod["metadata"])["metadata"]["name"])

    def kill(self, instance: str) -> None:
        """As ``kill -9`` in its container."""
        self.kubelet.process(self.pod_of(instance)).kill()

    def vanish(self, plural: str, name: str) -> None:
        """An object is gone, and no watch is told."""
        self.store.remove(plural, name)
        self.api.lose(self.store.version)


def manifest(args: Sequence[str] = (), *, image: str = IMAGE, env: Mapping[str, str] | None = None) -> Object:
    """A Knative Service as an operator writes it down for the driver."""
    container = {
        "image": image,
        "args": list(args),
        "env": [{"name": name, "value": value} for name, value in (env or {}).items()],
        "readinessProbe": {"httpGet": {"path": "/readyz"}},
    }
    spec = {"containerConcurrency": 4, "timeoutSeconds": 30, "containers": [container]}
    return {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "spec": {"template": {"spec": spec}}}


def _template(image: str, args: Sequence[str], env: Mapping[str, str], grace_s: int) -> dict[str, Any]:
    container = {
        "name": "runtime",
        "image": image,
        "args": ["--listen", f"0.0.0.0:{PORT}", *args],
        "ports": [{"name": "http", "containerPort": PORT}],
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    return {"spec": {"containers": [container], "terminationGracePeriodSeconds": grace_s}}
