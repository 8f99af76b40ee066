"""What the chart renders, and the manifests for Knative, run: in a stand-in for a cluster, with real processes.

The API server enforces the Roles as they are deployed. Only what a cluster would resolve is put in by the test: mounts
and names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister import Client
from cloister.client.identity import create_identity
from cloister.platforms.kubernetes.pods import INSTANCE
from cloister.platforms.kubernetes.rbac import Rule
from cloister.testing.kubernetes.cloud import KubernetesCloud
from cloister.testing.kubernetes.cluster import NAMESPACE, FakeKubernetes
from cloister.testing.local_cloud import COMMAND
from cloister.testing.models.small import sum_difference
from cloister.testing.openwhisk_cloud import Beside

helm = pytest.importorskip("helm_python", reason="no Helm: uv sync --inexact --group deploy")
yaml = pytest.importorskip("yaml", reason="no YAML: uv sync --inexact --group deploy")

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "cloister"
KNATIVE = Path(__file__).parents[3] / "deploy" / "knative"
IMAGE, KNATIVE_IMAGE = "example/cloister:1", "registry.example/cloister:0.1.0"
STORE = "http://store.invalid/models"
RUNTIMES, GATEWAY = "cloister-runtime-default", "cloister-gateway-default"


def rendered(root: str, keyservice: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The chart's objects by kind and name."""
    images = {"image": {"repository": "example/cloister", "tag": "1"}, "controlImage": {"repository": "x", "tag": "1"}}
    values = {
        **images,
        "tee": {"insecure-simulation": {"keySecret": "simulation"}},
        "trust": {"bundleConfigMap": "bundle", "bundleRoot": root},
        "store": {"url": STORE},
        "keyservice": {"enabled": False, "address": keyservice},
        "pools": {
            "default": {
                "tee": "insecure-simulation",
                "gateway": {"configuration": {"pool": {"max_instances": 2, "keep_alive_s": 60}}},
            }
        },
    }
    with helm.Chart.load(CHART) as chart:
        texts = chart.render(values, name="cloister", namespace=NAMESPACE)
    found = [one for name, text in texts.items() if name.endswith(".yaml") for one in yaml.safe_load_all(text) if one]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


class ChartCloud(KubernetesCloud):
    """A local cloud whose gateway and runtimes are as the chart says."""

    def _gateway_configuration(self, keyservice: str) -> str:
        objects = rendered(self.root.public_key.hex(), keyservice)
        here = {
            "/trust/": f"{self.folder.resolve()}/",
            "/simulation/": f"{self.folder.resolve()}/",
            STORE: str(self.store.resolve()),
        }
        deployment = objects["Deployment", RUNTIMES]
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        container["args"] = [_resolved(word, here) for word in container["args"]]
        self.beside.run(self._apply(deployment))
        text: str = objects["ConfigMap", GATEWAY]["data"]["gateway.toml"]
        kubeconfig = self.cluster.kubeconfig(self.folder / "kubeconfig")
        text = text.replace("[platform.kubernetes]", f"[platform.kubernetes]\nkubeconfig = {json.dumps(kubeconfig)}")
        return _resolved(text, {**here, "0.0.0.0:9090": "127.0.0.1:0"})

    async def _apply(self, deployment: dict[str, Any]) -> None:
        self.cluster.store.create("deployments", deployment)


def _resolved(text: str, here: dict[str, str]) -> str:
    for there, place in here.items():
        text = text.replace(there, place)
    return text


def role() -> list[Rule]:
    """As the chart grants it."""
    rules = rendered("00" * 32, "http://keyservice")["Role", GATEWAY]["rules"]
    return [Rule(rule["apiGroups"][0], rule["resources"][0], tuple(rule["verbs"])) for rule in rules]


class KnativeCloud(KubernetesCloud):
    """A local cloud whose gateway and runtimes are as deploy/knative says, but for the simulated TEE."""

    def _gateway_configuration(self, keyservice: str) -> str:
        manifest = yaml.safe_load((KNATIVE / "service.yaml").read_text())
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        here = {
            "/trust/": f"{self.folder.resolve()}/",
            "5f" * 32: self.root.public_key.hex(),
            "http://cloister-keyservice.ml.svc:8080": keyservice,
            "http://models.models.svc/store": str(self.store.resolve()),
        }
        container["args"] = [_resolved(word, here) for word in container["args"]]
        container["args"].append(f"--simulation-key={self.folder.resolve()}/simulation.key")
        file = self.folder / "service.yaml"
        file.write_text(json.dumps(manifest))
        text = _resolved((KNATIVE / "gateway.toml").read_text(), {**here, "/configuration/service.yaml": str(file)})
        kubeconfig = self.cluster.kubeconfig(self.folder / "kubeconfig")
        return text.replace("[platform.knative]", f"[platform.knative]\nkubeconfig = {json.dumps(kubeconfig)}")


def knative_role() -> list[Rule]:
    """As deploy/knative/gateway.yaml grants it."""
    objects = yaml.safe_load_all((KNATIVE / "gateway.yaml").read_text())
    (rules,) = [one["rules"] for one in objects if one["kind"] == "Role"]
    return [Rule(rule["apiGroups"][0], rule["resources"][0], tuple(rule["verbs"])) for rule in rules]


@contextmanager
def running(
    make: type[KubernetesCloud], kind: str, folder: Path, image: str, rules: list[Rule], **settings: Any
) -> Iterator[KubernetesCloud]:
    """A cloud in a cluster that lets the gateway do what ``rules`` say."""
    beside = Beside()
    cluster = FakeKubernetes({image: COMMAND}, role=rules)
    beside.run(cluster.open())
    cloud = make(folder / "state", kind, cluster, beside, **settings)
    try:
        cloud.start()
        yield cloud
    finally:
        cloud.stop()
        beside.run(cluster.close())
        beside.close()


def serve(cloud: KubernetesCloud, folder: Path) -> None:
    """A model of alice, which bob uses twice; the policy names the digest of the options that are deployed."""
    for name in ("alice", "bob"):
        create_identity(cloud.home, name)
    (folder / "sums.onnx").write_bytes(sum_difference())
    a, b = np.array([[1.0, 2.0, 3.0]], np.float32), np.array([[10.0, 20.0, 30.0]], np.float32)
    with Client.open(cloud.home, "alice") as alice, Client.open(cloud.home, "bob") as bob:
        alice.register()
        bob.register()
        alice.pack(folder / "sums.onnx", folder / "packed", name="sums", version=1)
        alice.publish(folder / "packed")
        policy = cloud.runtime_policy()
        alice.grant("sums", bob.account.identity.id, policy)
        bob.consent(alice.own_model("sums"), policy)
        for _ in range(2):
            assert np.array_equal(bob.infer("sums", {"a": a, "b": b})["sum"], a + b)


def test_what_the_chart_deploys_serves_and_outlives_its_gateway(tmp_path: Path) -> None:
    with running(ChartCloud, "kubernetes", tmp_path, IMAGE, role()) as cloud:
        serve(cloud, tmp_path)
        labels = [pod["metadata"]["labels"] for pod in cloud.cluster.store.all_of("pods")]
        assert [one[INSTANCE] for one in labels if INSTANCE in one]
        assert all(one["cloister.dev/pool"] == "default" for one in labels)
        assert cloud.cluster.replicas(RUNTIMES) == 1
        before = {pod["metadata"]["name"] for pod in cloud.cluster.store.all_of("pods")}
        cloud.stop_service("gateway")  # `on_exit = "leave"`: an upgrade of the gateway costs no cold start
        assert {pod["metadata"]["name"] for pod in cloud.cluster.store.all_of("pods")} == before
        assert cloud.cluster.kubelet.running == len(before) == 1


def test_what_is_deployed_on_knative_serves(tmp_path: Path) -> None:
    with running(KnativeCloud, "knative", tmp_path, KNATIVE_IMAGE, knative_role(), memory_mb=1024) as cloud:
        serve(cloud, tmp_path)
        (service,) = cloud.cluster.store.all_of("services")
        assert service["metadata"]["name"].startswith("cloister-i-")
