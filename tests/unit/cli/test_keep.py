"""``init --keep``: what an init container runs at every start makes a state once, and never another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloister.cli.main import main


def init(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main([*map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_keyservice_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, state = tmp_path / "simulation.key", tmp_path / "volume" / "keyservice"
    key.write_text("22" * 32)
    words = ("keyservice", "init", "--state", state, "--simulation-key", key)
    made = init(capsys, *words, "--keep")
    files = {path.name: path.read_bytes() for path in state.iterdir() if path.name == "root.sealed"}
    assert init(capsys, *words, "--keep") == made
    assert {path.name: path.read_bytes() for path in state.iterdir() if path.name == "root.sealed"} == files
    assert main([*map(str, words)]) == 1
    assert "[state-exists]" in capsys.readouterr().err


def test_a_state_of_another_configuration_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, state, toml = tmp_path / "simulation.key", tmp_path / "keyservice", tmp_path / "keyservice.toml"
    key.write_text("22" * 32)
    toml.write_text("lease_s = 50\n")
    words = ("keyservice", "init", "--keep", "--state", state, "--simulation-key", key, "--configuration", toml)
    init(capsys, *words)
    toml.write_text("lease_s = 40\n")
    assert main([*map(str, words)]) == 1
    assert "[unseal-failed]" in capsys.readouterr().err


def test_a_lost_store_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, state = tmp_path / "simulation.key", tmp_path / "keyservice"
    key.write_text("22" * 32)
    words = ("keyservice", "init", "--keep", "--state", state, "--simulation-key", key)
    init(capsys, *words)
    for path in state.glob("store.sqlite*"):
        path.unlink()
    assert main([*map(str, words)]) == 1
    assert "[state-exists]" in capsys.readouterr().err


def test_a_witness_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("witness", "init", "--state", tmp_path / "volume" / "witness", "--name", "w-0.witness.ml")
    made = init(capsys, *words, "--keep")
    assert init(capsys, *words, "--keep") == made
    assert main([*map(str, words)]) == 1
    assert "[state-exists]" in capsys.readouterr().err
