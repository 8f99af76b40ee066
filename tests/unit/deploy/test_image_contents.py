"""What goes into the images: exactly what their commands import. Nothing of the control plane is beside keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.collateral.configured import open_collateral
from cloister.attest.anchors import production_anchors
from cloister.base.errors import Unavailable

DEPLOY = Path(__file__).parents[3] / "deploy"
SERVICES, CONTROL = DEPLOY / "image/contents.txt", DEPLOY / "image/control.txt"
LEFT_OUT = {
    SERVICES: (
        "cloister.client",
        "cloister.control",
        "cloister.platforms",
        "cloister.testing",
        "cloister.engines.optimise",
        "cloister.witness",
    ),
    CONTROL: (
        "cloister.client",
        "cloister.engines",
        "cloister.keyservice",
        "cloister.runtime",
        "cloister.testing",
        "cloister.access",
    ),
}
# Packages that an image does without. What asks vendors needs httpx, and says so where it is missing.
WITHOUT = {SERVICES: "onnx rich simpy", CONTROL: "httpx onnx rich simpy numpy onnxruntime dcap_qvl ai_edge_litert"}
ELSEWHERE = {SERVICES: "gateway", CONTROL: "runtime"}
LOAD = """
import importlib, sys
allowed = {line for line in open(sys.argv[1]).read().split("\\n") if "/" not in line}
without = set(sys.argv[2].split())

class Gate:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in without or (top == "cloister" and name not in allowed):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Gate())
for name in sorted(allowed):
    if name.startswith("cloister.") and name != "cloister.__main__":
        importlib.import_module(name)
from cloister.cli.main import main
assert main([sys.argv[3]]) == 2
print("loaded")
"""


def listed(file: Path) -> set[str]:
    """Modules; lines with a path are files."""
    return {line for line in file.read_text().splitlines() if not line.startswith("#") and "/" not in line}


def test_the_lists_are_what_the_commands_import() -> None:
    done = subprocess.run(
        [sys.executable, str(DEPLOY / "image/contents.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_each_image_has_its_own_and_nothing_of_the_others() -> None:
    services, control = listed(SERVICES), listed(CONTROL)
    assert {"cloister.keyservice.app", "cloister.runtime.app", "cloister.runtime.openwhisk.app"} <= services
    assert {"cloister.control.gateway.app", "cloister.platforms.static.driver", "cloister.witness.app"} <= control
    for file, prefixes in LEFT_OUT.items():
        assert not [name for name in listed(file) if name.startswith(prefixes)]


def test_what_modules_read_beside_themselves_is_there() -> None:
    """Tuned models do not load without the engine's stand-ins for their weights."""
    assert "cloister/engines/stand_in/weights.tuned.bin" in SERVICES.read_text().splitlines()
    assert not [line for line in CONTROL.read_text().splitlines() if "/" in line and not line.startswith("#")]


@pytest.mark.parametrize("file", [SERVICES, CONTROL], ids=["services", "control"])
def test_everything_listed_loads_without_the_rest(file: Path) -> None:
    command = [sys.executable, "-c", LOAD, str(file), WITHOUT[file], ELSEWHERE[file]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr


def test_vendors_are_not_asked_without_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    """The services' image has none: that must be told, not end in a traceback."""
    monkeypatch.delitem(sys.modules, "cloister.adapters.collateral.fetch", raising=False)
    monkeypatch.delitem(sys.modules, "cloister.adapters.collateral.amd_kds", raising=False)
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(Unavailable) as caught:
        open_collateral("vendors", production_anchors(), SystemClock())
    assert caught.value.code == "collateral-unavailable"


@pytest.mark.parametrize("word", ["RUN ", "ADD ", ":latest"])
def test_building_runs_nothing(word: str) -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    assert not [line for line in lines if word in line and not line.startswith("#")]


def test_only_an_empty_folder_is_its_users() -> None:
    copied = [line for line in (DEPLOY / "Containerfile").read_text().splitlines() if line.startswith("COPY")]
    assert copied == ["COPY --chown=0:0 opt /opt", "COPY --chown=10001:10001 state /state"]
