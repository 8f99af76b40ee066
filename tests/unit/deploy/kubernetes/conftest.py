"""The chart, rendered by Helm itself. Both tools come with the dependency group `deploy` (`make unit` installs it)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

helm = pytest.importorskip("helm_python", reason="no Helm: uv sync --inexact --group deploy")
yaml = pytest.importorskip("yaml", reason="no YAML: uv sync --inexact --group deploy")

CHART = Path(__file__).parents[4] / "deploy" / "helm" / "cloister"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
Objects = list[dict[str, Any]]


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """As `helm install --values base --values more`."""
    out = dict(copy.deepcopy(dict(base)))
    for key, value in more.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else copy.deepcopy(value)
    return out


@pytest.fixture(scope="session")
def chart() -> Any:
    return helm.Chart.load(CHART)


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def example(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Values of each example in turn."""
    found: dict[str, Any] = yaml.safe_load(request.param.read_text())
    return found


@pytest.fixture
def trial() -> dict[str, Any]:
    """Values of the smallest example."""
    found: dict[str, Any] = yaml.safe_load((CHART / "examples" / "trial.yaml").read_text())
    return found


@pytest.fixture
def render(chart: Any) -> Callable[..., Objects]:
    """Values, and more values over them, to objects."""

    def run(values: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> Objects:
        texts = chart.render(merged(values, more or {}), name="prod", namespace="ml")
        manifests = [text for name, text in texts.items() if name.endswith(".yaml")]
        return [found for text in manifests for found in yaml.safe_load_all(text) if found]

    return run


@pytest.fixture
def refusal(chart: Any) -> Callable[..., str]:
    """Why values are refused."""

    def run(values: Mapping[str, Any], more: Mapping[str, Any]) -> str:
        with pytest.raises(helm.HelmError) as caught:
            chart.render(merged(values, more), name="prod", namespace="ml")
        return str(caught.value)

    return run
