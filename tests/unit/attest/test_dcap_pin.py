"""dcap-qvl is pinned exactly: what it checks, and how it says no, is known for one version."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_version_in_use_is_the_one_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pin,) = [line for line in project["dependencies"] if line.startswith("dcap-qvl")]
    assert pin == f"dcap-qvl=={version('dcap-qvl')}"
