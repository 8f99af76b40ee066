"""What goes into the image: exactly what its services import, and nothing of the control plane."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[3] / "deploy"
LEFT_OUT = (
    "cloister.client",
    "cloister.control",
    "cloister.platforms",
    "cloister.testing",
    "cloister.engines.optimise",
)
LOAD = """
import importlib, sys
allowed = set(open(sys.argv[1]).read().split("\\n"))

class Gate:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cloister" and name not in allowed:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Gate())
for name in sorted(allowed):
    if name.startswith("cloister.") and name != "cloister.__main__":
        importlib.import_module(name)
from cloister.cli.main import main
assert main(["gateway"]) == 2
print("loaded")
"""


def listed() -> set[str]:
    return {line for line in (DEPLOY / "image/contents.txt").read_text().splitlines() if not line.startswith("#")}


def test_the_list_is_what_the_services_import() -> None:
    done = subprocess.run(
        [sys.executable, str(DEPLOY / "image/contents.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_control_plane_is_left_out() -> None:
    modules = listed()
    assert {"cloister.keyservice.app", "cloister.runtime.app", "cloister.runtime.openwhisk.app"} <= modules
    assert not [name for name in modules if name.startswith(LEFT_OUT)]


def test_everything_listed_loads_without_the_rest() -> None:
    command = [sys.executable, "-c", LOAD, str(DEPLOY / "image/contents.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr


@pytest.mark.parametrize("word", ["RUN ", "ADD ", "--chown=10001", ":latest"])
def test_building_runs_nothing(word: str) -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    assert not [line for line in lines if word in line and not line.startswith("#")]
