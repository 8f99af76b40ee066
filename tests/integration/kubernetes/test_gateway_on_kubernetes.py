"""End to end: client -> gateway -> Kubernetes' or Knative's API -> pods with real runtimes -> answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cloister import Client
from cloister.client.identity import create_identity
from cloister.platforms.kubernetes.pods import INSTANCE
from cloister.platforms.kubernetes.rbac import KNATIVE, KUBERNETES
from cloister.testing.kubernetes.cloud import KubernetesCloud, real_pods
from cloister.testing.kubernetes.cluster import FakeKubernetes
from cloister.testing.kubernetes.server import leave
from cloister.testing.models.small import sum_difference
from cloister.testing.openwhisk_cloud import Beside

A = np.array([[1.0, 2.0, 3.0]], np.float32)
B = np.array([[10.0, 20.0, 30.0]], np.float32)


@pytest.fixture(scope="module")
def beside() -> Iterator[Beside]:
    loop = Beside()
    yield loop
    loop.close()


@pytest.fixture(scope="module", params=["kubernetes", "knative"])
def cloud(
    request: pytest.FixtureRequest, beside: Beside, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KubernetesCloud]:
    cluster = real_pods()
    beside.run(cluster.open())
    cloud = KubernetesCloud(tmp_path_factory.mktemp("k8s") / "state", request.param, cluster, beside)
    try:
        cloud.start()
        yield cloud
    finally:
        cloud.stop()
        left = cluster.store.all_of("pods"), cluster.store.all_of("services")
        asked = set(cluster.api.asked)
        beside.run(cluster.close())
    assert left == ([], []), "a gateway that ends takes its instances along"
    granted = KUBERNETES if request.param == "kubernetes" else KNATIVE
    assert asked == {(rule.group, rule.resource, verb) for rule in granted for verb in rule.verbs}


@pytest.fixture(scope="module")
def bob(cloud: KubernetesCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A user with consent for the model ``sums`` of alice."""
    for name in ("alice", "bob"):
        create_identity(cloud.home, name)
    folder = tmp_path_factory.mktemp("model")
    (folder / "sums.onnx").write_bytes(sum_difference())
    with Client.open(cloud.home, "alice") as alice, Client.open(cloud.home, "bob") as bob:
        alice.register()
        bob.register()
        alice.pack(folder / "sums.onnx", folder / "packed", name="sums", version=1)
        alice.publish(folder / "packed")
        policy = cloud.runtime_policy()
        alice.grant("sums", bob.account.identity.id, policy)
        bob.consent(alice.own_model("sums"), policy)
        yield bob


def check(bob: Client) -> None:
    outputs = bob.infer("sums", {"a": A, "b": B})
    assert np.array_equal(outputs["sum"], A + B)
    assert "insecure-simulation" in outputs.provenance.warnings


def instances(cluster: FakeKubernetes) -> set[str]:
    pods = [*cluster.store.all_of("pods"), *cluster.store.all_of("services")]
    return {pod["metadata"]["labels"][INSTANCE] for pod in pods if INSTANCE in pod["metadata"]["labels"]}


def test_a_request_is_served_by_a_pod(bob: Client, cloud: KubernetesCloud) -> None:
    check(bob)
    there = instances(cloud.cluster)
    assert 1 <= len(there) <= 2, "a slow machine may have wanted a second one"
    for _ in range(3):
        check(bob)
    assert instances(cloud.cluster) <= there, "hot: no new instance"


def test_a_killed_process_loses_no_request(bob: Client, cloud: KubernetesCloud) -> None:
    check(bob)
    for pod in cloud.cluster.store.all_of("pods"):
        cloud.cluster.kubelet.process(pod["metadata"]["name"]).kill()
    check(bob)


def test_a_node_that_is_emptied_loses_no_request(bob: Client, cloud: KubernetesCloud, beside: Beside) -> None:
    """As `kubectl drain` does: every pod is told to go, while requests come."""
    check(bob)

    def empty() -> None:
        for pod in cloud.cluster.pods():
            name = pod["metadata"]["name"]
            cloud.cluster.store.change("pods", name, lambda one: leave(one, 30, cloud.cluster.store.now()))

    with ThreadPoolExecutor(4) as pool:
        requests = [pool.submit(check, bob) for _ in range(12)]
        beside.loop.call_soon_threadsafe(empty)
        for request in requests:
            request.result(100)


def test_while_the_api_is_away_instances_serve(bob: Client, cloud: KubernetesCloud, beside: Beside) -> None:
    check(bob)
    beside.run(cloud.cluster.api.down())
    for _ in range(3):
        check(bob)
    beside.run(cloud.cluster.api.up())
    check(bob)


def test_a_gateway_that_comes_back_finds_its_instances(bob: Client, cloud: KubernetesCloud) -> None:
    check(bob)
    there = instances(cloud.cluster)
    address = (cloud.folder / "gateway" / "gateway.address").read_text("ascii").strip()
    cloud.stop_service("gateway", kill=True)
    cloud.gateway_listen = address.removeprefix("http://")
    cloud.start_gateway((cloud.folder / "keyservice" / "address").read_text("ascii").strip())
    check(bob)
    assert instances(cloud.cluster) == there
