"""What the how-to gives an operator to apply is what the drivers need, and what it explains is what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from cloister.control.gateway import configuration
from cloister.platforms.kubernetes.rbac import KUBERNETES, Rule

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "how-to" / "kubernetes-driver.md").read_text()
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))


def documents(kind: str) -> list[dict[str, Any]]:
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    return [one for one in found if one["kind"] == kind]


def test_the_role_is_the_verbs_that_are_used() -> None:
    granted = [
        tuple(Rule(rule["apiGroups"][0], rule["resources"][0], tuple(rule["verbs"])) for rule in role["rules"])
        for role in documents("Role")
    ]
    assert granted == [KUBERNETES]


def test_the_objects_are_what_the_drivers_look_for() -> None:
    (deployment,) = documents("Deployment")
    (table,) = [block for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL) if "kubernetes" in block]
    settings = configuration.parse(table.encode()).platform.kubernetes
    assert settings is not None
    spec = deployment["spec"]
    assert deployment["metadata"]["name"] == settings.deployment
    assert "replicas" not in spec
    (container,) = spec["template"]["spec"]["containers"]
    assert container["name"] == settings.container
    assert container["ports"] == [{"containerPort": settings.port}]
    assert f"0.0.0.0:{settings.port}" in container["args"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": settings.port}


def test_what_is_explained_is_what_is_said() -> None:
    table = PAGE[PAGE.index("## Troubleshooting") :]
    cells = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[2:]
    words = [part for cell in cells for quoted in re.findall(r"`([^`]+)`", cell) for part in quoted.split("…")]
    ours = [word.strip(" :") for word in words if "cannot patch" not in word]
    known = SOURCE + " deployments/scale OOMKilled ImagePullBackOff Unschedulable 137 (/readyz)"
    missing = [
        word
        for phrase in ours
        for word in phrase.split(": ")
        if word and word not in known and word.removeprefix("exit code ") not in known
    ]
    assert missing == []
