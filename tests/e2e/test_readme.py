"""What the README shows, run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cloister.client.client import Client
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.models.patients import patient_model
from cloister.testing.models.small import sum_difference

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(language: str, containing: str) -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in text]
    assert len(found) == 1
    return str(found[0])


def test_in_python(
    cloud: LocalCloud, alice: Client, bob: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patients = patient_model()
    (tmp_path / "patients.onnx").write_bytes(patients.onnx)
    alice.pack(tmp_path / "patients.onnx", tmp_path / "packed", name="breast-cancer", version=1)
    alice.publish(tmp_path / "packed")
    policy = cloud.runtime_policy()
    alice.grant("breast-cancer", bob.account.identity.id, policy)
    bob.consent(alice.own_model("breast-cancer"), policy)
    monkeypatch.setenv("CLOISTER_HOME", str(cloud.home))
    names: dict[str, object] = {"x": patients.test_inputs[:3]}
    exec(compile(block("python", "Client.open"), "README.md", "exec"), names)  # our own page
    outputs = names["outputs"]
    assert outputs["probabilities"].shape == (3, 2)  # type: ignore[index]
    assert len(outputs.provenance.measurement) == 48  # type: ignore[attr-defined]


def test_on_the_command_line(cloud: LocalCloud, tmp_path: Path) -> None:
    """But for `cloister up`, which is up already."""
    (tmp_path / "model.onnx").write_bytes(sum_difference())
    np.savez(tmp_path / "x.npz", a=np.ones((1, 3), np.float32), b=np.ones((1, 3), np.float32))
    (tmp_path / "cloister-state").symlink_to(cloud.folder)
    lines = [line.partition(" #")[0].rstrip() for line in block("sh", "cloister up").splitlines()]
    assert lines[:2] == ["cloister up", "export CLOISTER_HOME=$PWD/cloister-state/home"]
    commands = "\n".join(lines[1:]).replace("alice", "alice-of-readme").replace("bob", "bob-of-readme")
    commands = commands.replace("x.npy", "x.npz")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", "set -eo pipefail\n" + commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "difference" in done.stdout
