"""Every pod of the chart satisfies the Pod Security Standard "restricted", rule by rule as the standard lists them.

https://kubernetes.io/docs/concepts/security/pod-security-standards/ (v1.37)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS = {"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"}


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind/name and the pod's template of everything that makes pods."""
    for found in objects:
        if found["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield f"{found['kind']}/{found['metadata']['name']}", found["spec"]["template"]
        if found["kind"] == "Pod":
            yield f"Pod/{found['metadata']['name']}", found
        assert found["kind"] not in ("CronJob", "ReplicaSet")  # the lines above would miss them


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


@pytest.fixture
def found(example: dict[str, Any], render: Callable[..., Any]) -> list[tuple[str, dict[str, Any]]]:
    out = list(pods(render(example)))
    assert len(out) >= 2
    return out


def test_baseline(found: list[tuple[str, dict[str, Any]]]) -> None:
    for name, pod in found:
        spec, security = pod["spec"], pod["spec"]["securityContext"]
        assert not any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")), name
        assert not any("hostPath" in volume for volume in spec.get("volumes", ())), name
        assert "windowsOptions" not in security, name
        assert "seLinuxOptions" not in security, name
        assert security.get("appArmorProfile", {"type": "RuntimeDefault"})["type"] != "Unconfined", name
        assert {item["name"] for item in security.get("sysctls", ())} <= SYSCTLS, name
        assert not [key for key in pod["metadata"].get("annotations", ()) if "apparmor" in key], name
        for container in containers(pod):
            own = container["securityContext"]
            assert not own.get("privileged"), name
            assert own.get("procMount", "Default") == "Default", name
            assert not set(own) & {"windowsOptions", "seLinuxOptions", "appArmorProfile", "seccompProfile"}, name
            assert not [port for port in container.get("ports", ()) if port.get("hostPort")], name
            for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
                probe = container.get(kind, {})
                assert not any("host" in probe.get(how, {}) for how in ("httpGet", "tcpSocket")), name
            for hook in container.get("lifecycle", {}).values():
                assert not any("host" in hook.get(how, {}) for how in ("httpGet", "tcpSocket")), name


def test_restricted(found: list[tuple[str, dict[str, Any]]]) -> None:
    for name, pod in found:
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost"), name
        for volume in pod["spec"].get("volumes", ()):
            assert set(volume) - {"name"} <= VOLUMES, (name, volume)
        for container in containers(pod):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"]["drop"] == ["ALL"], name
            assert set(own["capabilities"].get("add", ())) <= {"NET_BIND_SERVICE"}, name
            assert own.get("runAsNonRoot", True) is True, name
            assert own.get("runAsUser", 1) > 0, name


def test_what_the_standard_does_not_ask(found: list[tuple[str, dict[str, Any]]]) -> None:
    for name, pod in found:
        spec = pod["spec"]
        scales = name.startswith("Deployment/prod-cloister-gateway-")  # which of them may: test_chart.py
        assert spec["automountServiceAccountToken"] is False or scales, name
        assert spec["serviceAccountName"] != "default", name
        assert spec["enableServiceLinks"] is False, name
        for container in containers(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert "memory" in container["resources"]["limits"], name
            assert "command" not in container, name  # the image's own entry point, which no environment changes
            assert not [entry for entry in container.get("env", ()) if "value" in entry], name
            image = container["image"]
            assert "@sha256:" in image or (":" in image.rpartition("/")[2] and not image.endswith(":latest")), name


def test_no_secret_is_in_plain(example: dict[str, Any], render: Callable[..., Any]) -> None:
    objects = render(example)
    assert not [found for found in objects if found["kind"] == "Secret"]
    for name, pod in pods(objects):
        for volume in pod["spec"].get("volumes", ()):
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440, name
