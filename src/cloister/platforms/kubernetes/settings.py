"""Where the cluster is, and which of its objects this gateway's instances are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# A DNS label (RFC 1123), as Kubernetes demands of names of Services and namespaces; Deployments may have longer names.
NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Cluster:
    """How the API is reached.

    :param kubeconfig: file; empty for the pod's own service account, and outside a pod for what kubectl would take.
    :param context: of the kubeconfig; empty for its current one.
    :param namespace: of everything that is asked for; empty for that of the service account or the context.
    :param poll_s: how long one watch lasts. After it everything is listed anew, so what a watch missed is found.
    """

    kubeconfig: str = ""
    context: str = ""
    namespace: str = ""
    poll_s: float = 30.0


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """Of one gateway.

    :param deployment: the Deployment whose pods are the instances. No other gateway may have the same one.
    :param container: of its pods; the one that runs a runtime. :param port: where that listens.
    :param start_timeout_s: until a pod must be ready.
    :param stop_grace_s: for requests that are under way, before the pod is deleted; its own grace period comes then.
    """

    deployment: str
    container: str = "runtime"
    port: int = 8080
    cluster: Cluster = Cluster()
    start_timeout_s: float = 120.0
    stop_grace_s: float = 20.0
