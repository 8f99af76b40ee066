"""The manifests for Knative and KServe: fields that their APIs have, options that exist, numbers that fit each other.

Knative: https://knative.dev/docs/serving/reference/serving-api/ and what its webhook lets through without feature flags
(pkg/apis/serving/fieldmask.go). KServe: https://kserve.github.io/website/docs/reference/crd-api (ServingRuntimeSpec,
PredictorSpec). Both were also checked once against the schemas of npm's @kubernetes-models, which have Knative's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from cloister.cli import gateway, runtime
from cloister.control.gateway import configuration
from cloister.platforms.knative.service import check, make
from cloister.platforms.kubernetes.rbac import KNATIVE, Rule
from cloister.runtime.options import RuntimeOptions

yaml = pytest.importorskip("yaml", reason="no YAML: uv sync --inexact --group deploy")

DEPLOY = Path(__file__).parents[4] / "deploy"
CONTAINER = {
    "name", "image", "args", "ports", "readinessProbe", "livenessProbe", "resources", "securityContext", "volumeMounts",
}  # fmt: skip
SECURITY = {
    "allowPrivilegeEscalation", "readOnlyRootFilesystem", "runAsNonRoot", "runAsUser", "capabilities", "seccompProfile",
}  # fmt: skip
AUTOSCALING = {
    "class", "metric", "target-utilization-percentage", "min-scale", "max-scale", "window",
    "scale-to-zero-pod-retention-period",
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return found


def options(container: dict[str, Any], more: tuple[str, ...] = ()) -> tuple[argparse.Namespace, RuntimeOptions]:
    """What `cloister runtime` makes of the container's arguments."""
    command, *words = container["args"]
    assert command == "runtime"
    parser = argparse.ArgumentParser(exit_on_error=False)
    runtime.configure(parser)
    args = parser.parse_args([*words, *more])
    return args, runtime._options(args)


def check_container(container: dict[str, Any], volumes: list[dict[str, Any]]) -> None:
    """What holds on every platform."""
    assert set(container) == CONTAINER
    own = container["securityContext"]
    assert set(own) == SECURITY
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (own["runAsNonRoot"], own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (True, False, True)
    assert own["runAsUser"] == 10001
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    (volume,) = volumes
    assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"]]
    assert volume["configMap"]["items"] == [{"key": "bundle.cbor", "path": "bundle.cbor"}]
    args, measured = options(container)
    assert str(args.bundle) == "/trust/bundle.cbor"
    assert args.simulation_key is None, "a deployment never simulates"
    megabytes = int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
    assert megabytes >= 2 * measured.memory_mb + 512
    assert not container["image"].endswith(":latest")


def test_the_knative_service() -> None:
    service = load("knative/service.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.knative.dev/v1", "Service")
    assert set(service["spec"]) == {"template"}
    template = service["spec"]["template"]
    prefix = "autoscaling.knative.dev/"
    annotations = template["metadata"]["annotations"]
    assert {name.removeprefix(prefix) for name in annotations} == AUTOSCALING
    assert all(isinstance(value, str) for value in annotations.values())  # a number is refused by the API server
    assert annotations[f"{prefix}min-scale"] == "0"
    spec = template["spec"]
    assert set(spec) == {
        "containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds", "serviceAccountName",
        "enableServiceLinks", "containers", "volumes",
    }  # fmt: skip
    (container,) = spec["containers"]
    check_container(container, spec["volumes"])
    args, measured = options(container)
    assert spec["containerConcurrency"] == measured.concurrency
    assert spec["timeoutSeconds"] > measured.deadline_s + args.drain
    assert not [word for word in container["args"] if word.startswith("--listen")]  # $PORT says where
    (port,) = container["ports"]
    assert set(port) <= {"containerPort", "name", "protocol"}
    for kind in ("readinessProbe", "livenessProbe"):
        assert set(container[kind]["httpGet"]) == {"path"}  # the port is the one above


def test_the_serving_runtime_and_its_inference_service() -> None:
    serving, service = load("kserve/clusterservingruntime.yaml"), load("kserve/inferenceservice.yaml")
    assert (serving["apiVersion"], serving["kind"]) == ("serving.kserve.io/v1alpha1", "ClusterServingRuntime")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    spec = serving["spec"]
    assert set(spec) == {
        "annotations", "supportedModelFormats", "protocolVersions", "multiModel", "containers", "volumes"
    }  # fmt: skip
    (container,) = spec["containers"]
    assert container["name"] == "kserve-container"  # the name that KServe merges an InferenceService into
    check_container(container, spec["volumes"])
    args, measured = options(container)
    (port,) = container["ports"]
    assert args.listen == f"0.0.0.0:{port['containerPort']}"
    assert spec["annotations"]["prometheus.kserve.io/port"] == str(port["containerPort"])
    predictor = service["spec"]["predictor"]
    assert set(predictor) == {
        "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "containerConcurrency", "timeout",
        "automountServiceAccountToken", "model",
    }  # fmt: skip
    model = predictor["model"]
    assert set(model) == {"modelFormat", "protocolVersion", "runtime"}  # and no storageUri
    assert model["runtime"] == serving["metadata"]["name"]
    assert model["modelFormat"]["name"] in [item["name"] for item in spec["supportedModelFormats"]]
    assert model["protocolVersion"] in spec["protocolVersions"]
    assert predictor["containerConcurrency"] == measured.concurrency >= predictor["scaleTarget"]
    assert predictor["timeout"] > measured.deadline_s + args.drain
    owner = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
    more, same = options(container, (f"--prewarm={owner}/diagnosis",))  # as KServe appends a model's own args
    assert more.prewarm == [f"{owner}/diagnosis"]
    assert same.measured().digest == measured.measured().digest


@pytest.mark.parametrize("name", ["knative/service.yaml", "kserve/clusterservingruntime.yaml"])
def test_every_measured_option_is_said(name: str) -> None:
    """So that whoever writes a policy finds all of them in one place, and a new default changes nothing unseen."""
    found = load(name)
    spec = found["spec"]["template"]["spec"] if "template" in found["spec"] else found["spec"]
    said = {word.partition("=")[0] for word in spec["containers"][0]["args"]}
    measured = {
        "bundle-root",
        "bundle-version",
        "isolation",
        "concurrency",
        "memory-mb",
        "threads",
        "queue",
        "deadline",
    }
    assert {f"--{option}" for option in measured} <= said


def test_the_drivers_gateway_and_its_manifest_fit() -> None:
    service = load("knative/service.yaml")
    made = make(check(service, "service.yaml"), "cloister-i-1", "cloister", "i-1", "adaptive/pool")
    annotations = made["spec"]["template"]["metadata"]["annotations"]
    assert [annotations[f"autoscaling.knative.dev/{end}-scale"] for end in ("min", "max")] == ["1", "1"]
    read = configuration.read(DEPLOY / "knative" / "gateway.toml")
    _, measured = options(service["spec"]["template"]["spec"]["containers"][0])
    assert (read.pool.memory_mb, read.pool.concurrency) == (measured.memory_mb, measured.concurrency)
    assert read.platform.knative is not None
    objects = {found["kind"]: found for found in yaml.safe_load_all((DEPLOY / "knative" / "gateway.yaml").read_text())}
    schemas = pytest.importorskip("kubernetes_validate.utils")
    for found in objects.values():
        schemas.validate(found, "1.37", strict=True)
    rules = [
        Rule(group, resource, tuple(rule["verbs"]))
        for rule in objects["Role"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    ]
    assert rules == list(KNATIVE)
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    name, *words = spec["containers"][0]["args"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    gateway.configure(parser)
    assert (name, str(parser.parse_args(words).config)) == ("gateway", "/configuration/gateway.toml")
    assert spec["containers"][0]["volumeMounts"][0]["mountPath"] == "/configuration"
    assert spec["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"] == labels == objects["Deployment"]["spec"]["selector"]["matchLabels"]
