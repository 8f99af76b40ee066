"""The chart on a live cluster: `make test-kubernetes` with KUBECONFIG and the names of both images.

Makes a namespace in which Kubernetes enforces "restricted", installs the chart in simulation with a scaling gateway,
publishes a model, serves requests from zero, upgrades, and removes it all. Everything goes through the API server: pods
need no way to this machine, and this machine none to them.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister import Client
from cloister.adapters.clock import SystemClock
from cloister.attest.bundle import TrustBundle
from cloister.attest.policy import Policy, Rule
from cloister.attest.types import TeeType
from cloister.base.errors import Unavailable
from cloister.client.identity import create_identity
from cloister.client.profile import Profile, save_profile
from cloister.crypto.sign import SigningKey
from cloister.keyservice.settings import Settings
from cloister.runtime.options import RuntimeOptions
from cloister.testing.kubernetes.service_proxy import ServiceProxy
from cloister.testing.models.small import sum_difference

helm = pytest.importorskip("helm_python", reason="no Helm: uv sync --inexact --group deploy")
yaml = pytest.importorskip("yaml", reason="no YAML: uv sync --inexact --group deploy")

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "helm" / "cloister"
KUBECONFIG = os.environ.get("CLOISTER_TEST_KUBECONFIG", "")
IMAGES = [os.environ.get(name, "") for name in ("CLOISTER_TEST_IMAGE", "CLOISTER_TEST_GATEWAY_IMAGE")]
MEASURED = ROOT / "build" / "image" / "opt" / "cloister" / "measurement.json"
WAIT_S = 420
# Answers range requests, which the standard library's own server does not.
SERVER = """
import http.server, os, re
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        path = os.path.realpath("/store" + self.path)
        if not path.startswith("/store/") or not os.path.isfile(path):
            return self.send_error(404)
        data, size = open(path, "rb").read(), os.path.getsize(path)
        asked = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", self.headers.get("range", ""))
        self.send_response(206 if asked else 200)
        if asked:
            first, last = int(asked[1]), min(int(asked[2]), size - 1)
            data = data[first : last + 1]
            self.send_header("content-range", f"bytes {first}-{last}/{size}")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
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
        "store": {"url": f"http://store.{cluster.namespace}.svc:8080"},
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
                "scaling": {"by": "gateway", "startTimeoutSeconds": 300},
            }
        },
        # The API server calls from wherever the cluster runs it.
        "networkPolicy": {"clients": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "store": {"ports": [8080]}},
    }


def runtime_policy(cluster: Cluster) -> Policy:
    """Accepts the pool's runtimes: the image, and the configuration that the chart's options make."""
    options = RuntimeOptions(bundle_root=cluster.root.public_key, memory_mb=256)
    fields = {
        "measurement": [measurement()],
        "minimum_security_version": 0,
        "maximum_age_s": 86400,
        "configuration": [options.measured().digest],
        "isolation": [options.isolation.value],
    }
    return Policy((Rule.of("runtime", TeeType.SIMULATION, fields),))


def bundle_of(objects: list[Mapping[str, Any]]) -> bytes:
    """As clients get it."""
    (text,) = [item["binaryData"]["bundle.cbor"] for item in objects if item["kind"] == "ConfigMap"]
    return b64decode(text)


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


class Owner:
    """Publishes to a folder here, which then becomes a store in the cluster."""

    def __init__(self, cluster: Cluster, folder: Path, keyservice: str, gateway: str, bundle: bytes) -> None:
        (folder / "bundle.cbor").write_bytes(bundle)
        self.store = folder / "store"
        self.store.mkdir()
        self.home = folder / "home"
        self.home.mkdir()
        root = cluster.root.public_key
        save_profile(
            Profile(self.home, keyservice, gateway, str(self.store), str(folder / "bundle.cbor"), bundle_root=root)
        )
        for name in ("alice", "bob"):
            create_identity(self.home, name)
        self._folder = folder

    def publish(self, policy: Policy) -> None:
        """A small model, granted to bob, who consents."""
        (self._folder / "sums.onnx").write_bytes(sum_difference())
        with Client.open(self.home, "alice") as alice, Client.open(self.home, "bob") as bob:
            alice.register()
            bob.register()
            alice.pack(self._folder / "sums.onnx", self._folder / "packed", name="sums", version=1)
            alice.publish(self._folder / "packed")
            alice.grant("sums", bob.account.identity.id, policy)
            bob.consent(alice.own_model("sums"), policy)

    def infer(self) -> None:
        """Within the time that a pod takes to start where its image has to be pulled."""
        a, b = np.array([[1.0, 2.0, 3.0]], np.float32), np.array([[10.0, 20.0, 30.0]], np.float32)
        end = time.monotonic() + WAIT_S
        with Client.open(self.home, "bob") as bob:
            while True:
                try:
                    outputs = bob.infer("sums", {"a": a, "b": b})
                except Unavailable:
                    if time.monotonic() > end:
                        raise
                    time.sleep(2)
                else:
                    assert np.array_equal(outputs["sum"], a + b)
                    return


def store_objects(folder: Path, image: str) -> list[Mapping[str, Any]]:
    """A web server for the folder's files, in the image that is there anyway."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {f"f{number}": path for number, path in enumerate(files)}
    labels = {"app": "store"}
    container = {
        "name": "store",
        "image": image,
        "command": ["python3", "-IBS", "-c", SERVER],
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": 8080}},
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "files", "mountPath": "/store"}],
    }
    items = [{"key": name, "path": str(path.relative_to(folder))} for name, path in names.items()]
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "files", "configMap": {"name": "store", "items": items}}],
    }
    spec = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "store"},
            "binaryData": {name: b64encode(path.read_bytes()).decode() for name, path in names.items()},
        },
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "store"}, "spec": spec},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "store"},
            "spec": {"selector": labels, "ports": [{"port": 8080}]},
        },
    ]


@pytest.mark.skipif(not all(IMAGES), reason="NOT RUN: set CLOISTER_TEST_IMAGE and CLOISTER_TEST_GATEWAY_IMAGE")
def test_requests_are_served_from_zero_and_through_an_upgrade(cluster: Cluster, tmp_path: Path) -> None:
    given = values(cluster)
    pools, given["pools"] = given["pools"], {}
    configuration = Settings.read(given["keyservice"]["configuration"]).measured().digest
    made = inputs(cluster, configuration)
    keyservice = ServiceProxy(KUBECONFIG, cluster.namespace, "cloister-keyservice")
    gateway = ServiceProxy(KUBECONFIG, cluster.namespace, "cloister-gateway-default")
    with cluster.config() as config, closing(keyservice), closing(gateway):
        config.install(_chart(tmp_path, "inputs", made), "inputs")
        config.install(CHART, "cloister", given, wait="watcher", timeout=WAIT_S)  # KeyService and witnesses
        owner = Owner(cluster, tmp_path, keyservice.address, gateway.address, bundle_of(made))
        owner.publish(runtime_policy(cluster))
        objects = store_objects(owner.store, IMAGES[0])
        config.install(_chart(tmp_path, "store", objects), "store", wait="watcher", timeout=WAIT_S)
        given["pools"] = pools
        config.upgrade(CHART, "cloister", given, timeout=WAIT_S)
        owner.infer()  # from whatever there is, or from none
        owner.infer()
        config.test("cloister", timeout=120)  # raises where a gateway takes no requests
        # A changed configuration rolls the gateway; its pods outlive it.
        given["pools"]["default"]["gateway"] = {**SMALL, "configuration": {"pool": {"keep_alive_s": 30}}}
        config.upgrade(CHART, "cloister", given, wait="watcher", timeout=WAIT_S)
        owner.infer()
        config.uninstall("cloister", wait="watcher", timeout=WAIT_S)
        assert not config.list(name_filter="^cloister$")
