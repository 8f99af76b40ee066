"""A whole Cloister whose runtimes are in :class:`FakeKubernetes`: everything real but the cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from cloister.testing.kubernetes.cluster import IMAGE, PORT, FakeKubernetes, manifest
from cloister.testing.local_cloud import COMMAND, LocalCloud
from cloister.testing.openwhisk_cloud import Beside

DEPLOYMENT: Final = "cloister-runtime"


class KubernetesCloud(LocalCloud):
    """``LocalCloud`` with a gateway that drives a cluster.

    :param kind: ``kubernetes`` or ``knative``. :param cluster: open already, on ``beside``'s loop.
    """

    def __init__(self, folder: Path, kind: str, cluster: FakeKubernetes, beside: Beside, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self.kind = kind
        self.cluster = cluster
        self.beside = beside
        self.on_exit = "stop"

    def _gateway_configuration(self, keyservice: str) -> str:
        args = self.runtime_command(keyservice)[len(COMMAND) + 1 :]
        kubeconfig = self.cluster.kubeconfig(self.folder / "kubeconfig")
        table = [f"kubeconfig = {json.dumps(kubeconfig)}", "poll_s = 1"]
        if self.kind == "kubernetes":
            self.beside.run(self._deploy(args))
            table += [f'deployment = "{DEPLOYMENT}"', f"port = {PORT}"]
        else:
            file = self.folder / "service.yaml"
            file.write_text(json.dumps(manifest(args)))
            table += [f"manifest = {json.dumps(str(file))}"]
        local = super()._gateway_configuration(keyservice)
        head = ["[platform]", f'kind = "{self.kind}"', f'on_exit = "{self.on_exit}"', f"[platform.{self.kind}]", *table]
        return "\n".join([*head, "", local[local.index("[store]") :]])

    async def _deploy(self, args: list[str]) -> None:
        if any(one["metadata"]["name"] == DEPLOYMENT for one in self.cluster.store.all_of("deployments")):
            self.cluster.redeploy(DEPLOYMENT, args=args)
        else:
            self.cluster.deploy(DEPLOYMENT, args=args, replicas=None)


def real_pods() -> FakeKubernetes:
    """A cluster whose image runs ``cloister runtime``."""
    return FakeKubernetes({IMAGE: (*COMMAND, "runtime")})
