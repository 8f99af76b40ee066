"""The tutorials, word for word: what they print to type is typed, in their order."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial"


def blocks(role: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (TUTORIAL / f"{role}.md").read_text(), re.DOTALL)


class Terminal:
    """A bash that keeps its variables between blocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._before = ""

    def type(self, block: str, *, refused: bool = False) -> str:
        lines = [line for line in block.splitlines() if not line.startswith(". .venv")]
        script = "set -eo pipefail\n" + self._before + "\n".join(lines)
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == refused, f"{block}\n{output}"
        assert "Traceback" not in output
        self._before += "".join(f"{line}\n" for line in lines if re.match(r"(export )?[A-Z_]+=", line))
        return output


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    command = [str(Path(sys.executable).parent / "cloister"), "up", "--state", "cloister-state"]
    if not Path(command[0]).exists():
        command = [sys.executable, "-m", "cloister", *command[1:]]
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while "Cloister is up" not in (tmp_path / "up.log").read_text():
            assert up.poll() is None, (tmp_path / "up.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield Terminal(tmp_path)
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0


def test_each_role_from_its_text_alone(terminal: Terminal) -> None:
    operator, owner, user, auditor = (blocks(role) for role in ("operator", "owner", "user", "auditor"))
    assert "pip install" in operator[0]
    assert operator[1].startswith("cloister up")
    assert "keyservice" in terminal.type(operator[2])
    *offering, why, revoke = owner
    for block in offering:
        terminal.type(block)
    assert "refused-by-user" in terminal.type(why, refused=True)
    reading, consenting, inferring, python, taking_back, service = user
    assert "diagnosis" in terminal.type(reading)
    terminal.type(consenting)
    assert "probabilities" in terminal.type(inferring)
    assert "inference" in terminal.type(python)
    assert "consent" in terminal.type(taking_back, refused=True)
    assert "probabilities" in terminal.type(service)
    keeping, handing_over, checking, showing, forging = auditor
    terminal.type(keeping)
    assert "entries opened" in terminal.type(handing_over)
    assert "make its root" in terminal.type(checking)
    assert "keys released" in terminal.type(showing)
    assert re.search(r"\[(log|export)-[a-z-]+\]", terminal.type(forging, refused=True))
    terminal.type(revoke)
