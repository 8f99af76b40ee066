"""`make test` runs these tests on the installed wheel: then nothing may come from the source tree, and nothing lack."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cloister

SOURCE = Path(__file__).parents[2] / "src" / "cloister"
PACKAGE = Path(cloister.__file__).parent
installed = pytest.mark.skipif(
    not os.environ.get("CLOISTER_TEST_INSTALLED"), reason="only on the installed wheel: make installed"
)


@installed
def test_what_runs_is_the_wheel_and_not_the_source_tree() -> None:
    assert PACKAGE.parent.name == "site-packages"
    assert not any(Path(place).resolve() == SOURCE.parent for place in sys.path if place)
    command = [sys.executable, "-P", "-c", "import cloister; print(cloister.__file__)"]
    seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(seen).parent == PACKAGE


@installed
def test_the_wheel_has_every_file_of_the_package_and_no_other() -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    assert files(PACKAGE) == files(SOURCE)


def test_what_is_installed_says_its_version_licence_and_types() -> None:
    about = importlib.metadata.metadata("cloister")
    assert about["License-Expression"] == "Apache-2.0"
    assert (PACKAGE / "py.typed").is_file()
    assert any(entry.name == "cloister" for entry in importlib.metadata.entry_points(group="console_scripts"))
