"""The chart on a live cluster: `make test-kubernetes` with KUBECONFIG and the names of both images.

Makes a namespace in which Kubernetes enforces "restricted", installs the chart in simulation, waits until every pod is
ready (a runtime is, once it and the KeyService have attested to each other), runs the chart's test, and removes it all.
"""

from __future__ import annotations

import json
import os
import secrets
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.clock import SystemClock
from cloister.attest.bundle import TrustBundle
from cloister.attest.policy import Policy, Rule
from cloister.attest.types import TeeType
from cloister.crypto.sign import SigningKey
from cloister.keyservice.settings import Settings

helm = pytest.importorskip("helm_python", reason="no Helm: uv sync --inexact --group deploy")
yaml = pytest.importorskip("yaml", reason="no YAML: uv sync --inexact --group deploy")

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "helm" / "cloister"
KUBECONFIG = os.environ.get("CLOISTER_TEST_KUBECONFIG", "")
IMAGES = [os.environ.get(name, "") for name in ("CLOISTER_TEST_IMAGE", "CLOISTER_TEST_GATEWAY_IMAGE")]
MEASURED = ROOT / "build" / "image" / "opt" / "cloister" / "measurement.json"
WAIT_S = 420
SMALL = {"resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}}

pytestmark = [
    pytest.mark.skipif(not KUBECONFIG, reason="NOT RUN: no cluster. Say: KUBECONFIG=... make test-kubernetes"),
    pytest.mark.timeout(900),
]


@dataclass(frozen=True)
class Cluster:
    """A namespace of its own."""

    namespace: str
    platform: SigningKey
    root: SigningKey
    inputs: Any  # a Helm release that holds the namespace and what the chart expects in it

    def config(self) -> Any:
        return helm.Config(kubeconfig_path=KUBECONFIG, namespace=self.namespace)


def _chart(folder: Path, name: str, objects: list[Mapping[str, Any]]) -> Path:
    """A chart of these objects, so that Helm alone talks to the cluster."""
    (folder / name / "templates").mkdir(parents=True)
    (folder / name / "Chart.yaml").write_text(f"apiVersion: v2\nname: {name}\nversion: 0.0.1\n")
    (folder / name / "templates" / "objects.yaml").write_text("\n---\n".join(map(json.dumps, objects)))
    return folder / name


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    name = f"cloister-test-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "cloister.dev/test": "true"}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    with helm.Config(kubeconfig_path=KUBECONFIG, namespace="default") as outside:
        outside.check_reachable()
        outside.install(_chart(tmp_path_factory.mktemp("chart"), "space", [space]), name)
        try:
            yield Cluster(name, SigningKey.generate(), SigningKey.generate(), outside)
        finally:
            outside.uninstall(name, wait="watcher", timeout=WAIT_S)


def values(cluster: Cluster) -> dict[str, Any]:
    """A KeyService without witnesses' confirmation, for its keys are made in pods; the witnesses run beside."""
    image, control = (dict(zip(("repository", "tag"), _split(name), strict=True)) for name in IMAGES)
    root = cluster.root.public_key.hex()
    return {
        "image": image,
        "controlImage": control,
        "tee": {"insecure-simulation": {"keySecret": "simulation"}},
        "trust": {"bundleConfigMap": "bundle", "bundleRoot": root},
        "store": {"url": "http://store.invalid/store"},
        "keyservice": {
            "tee": "insecure-simulation",
            "antiAffinity": "preferred",
            "configuration": {
                "bundle_root": root,
                "bundle_version": 1,
                "simulation_keys": [cluster.platform.public_key.hex()],
            },
            "storage": {"size": "1Gi"},
            **SMALL,
        },
        "witnesses": {"antiAffinity": "preferred", **SMALL},
        "pools": {
            "default": {
                "tee": "insecure-simulation",
                "runtime": {"memoryMb": 256, **SMALL},
                "gateway": SMALL,
                "scaling": {"replicas": 2},
            }
        },
    }


def _split(image: str) -> tuple[str, str]:
    repository, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        pytest.fail(f"CLOISTER_TEST_IMAGE and CLOISTER_TEST_GATEWAY_IMAGE are images with a tag, not {image!r}")
    return repository, tag


def measurement() -> bytes:
    """What the image measures: said, or as the last build here wrote it."""
    said = os.environ.get("CLOISTER_TEST_MEASUREMENT", "")
    if not said and MEASURED.exists():
        said = json.loads(MEASURED.read_text())["insecure-simulation-measurement"]
    if not said:
        pytest.fail("CLOISTER_TEST_MEASUREMENT is not set, and no image was built here: see `make image`")
    return bytes.fromhex(said)


def inputs(cluster: Cluster, configuration: bytes) -> list[Mapping[str, Any]]:
    """The trust bundle and the simulated platform's key, as an operator makes them by hand."""
    now = int(SystemClock().now())
    fields = {
        "measurement": [measurement()],
        "minimum_security_version": 0,
        "maximum_age_s": 86400,
        "configuration": [configuration],
        "isolation": "any-isolation",
    }
    bundle = TrustBundle(
        root=cluster.root.public_key,
        version=1,
        name="live test",
        issued_at=now - 60,
        expires_at=now + 86400,
        keyservice=Policy((Rule.of("keyservice", TeeType.SIMULATION, fields),)),
        accept_simulation=True,
        simulation_keys=(cluster.platform.public_key,),
        accept_rollback_unsafe=True,
    ).sign(cluster.root)
    seed = cluster.platform.seed().reveal().hex().encode()
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "bundle"},
            "binaryData": {"bundle.cbor": b64encode(bundle).decode()},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "simulation"},
            "data": {"simulation.key": b64encode(seed).decode()},
        },
    ]


@pytest.mark.parametrize("example", sorted((CHART / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_server_takes_every_example(cluster: Cluster, example: Path) -> None:
    """Dry runs on the server, with its admission, without the objects of other people's operators."""
    given = yaml.safe_load(example.read_text())
    given |= {"serviceMonitor": {"enabled": False}, "runtimeClasses": {"create": False}}
    for pool in given["pools"].values():
        pool.setdefault("scaling", {})["by"] = "fixed"
    with cluster.config() as config:
        release = config.install(CHART, f"dry-{example.stem}"[:40], given, dry_run="server", timeout=60)
    assert "StatefulSet" in release["manifest"]


@pytest.mark.skipif(not all(IMAGES), reason="NOT RUN: set CLOISTER_TEST_IMAGE and CLOISTER_TEST_GATEWAY_IMAGE")
def test_everything_comes_up_and_goes(cluster: Cluster, tmp_path: Path) -> None:
    given = values(cluster)
    configuration = Settings.read(given["keyservice"]["configuration"]).measured().digest
    with cluster.config() as config:
        config.install(_chart(tmp_path, "inputs", inputs(cluster, configuration)), "inputs")
        config.install(CHART, "cloister", given, wait="watcher", timeout=WAIT_S)
        assert config.status("cloister")["status"] == "deployed"
        config.test("cloister", timeout=120)  # raises where a gateway takes no requests
        # A changed configuration of the gateway rolls it, and nothing else, and everything is ready again.
        given["pools"]["default"]["gateway"] = {**SMALL, "configuration": {"pool": {"keep_alive_s": 30}}}
        config.upgrade(CHART, "cloister", given, wait="watcher", timeout=WAIT_S)
        config.test("cloister", timeout=120)
        config.uninstall("cloister", wait="watcher", timeout=WAIT_S)
        assert not config.list(name_filter="^cloister$")
