"""What no command foresaw is told without a traceback, and without what was being worked on."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from cloister.cli import main as module
from cloister.cli.main import main


def command_that_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    broken = ModuleType("broken")
    broken.__doc__ = "Fails."

    def run(*_: object) -> int:
        raise error

    broken.configure = lambda parser: None  # type: ignore[attr-defined]
    broken.run = run  # type: ignore[attr-defined]
    monkeypatch.setattr(module.importlib, "import_module", lambda name: broken)


def test_a_fault_names_type_and_place_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command_that_raises(monkeypatch, ValueError("the secret 42"))
    assert main(["version"]) == 1
    told = capsys.readouterr().err
    assert "[internal]" in told
    assert "ValueError at test_main.py:" in told
    assert "secret" not in told
    assert "Traceback" not in told


def test_the_systems_own_errors_name_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command_that_raises(monkeypatch, PermissionError(13, "Permission denied", "/x"))
    assert main(["version", "--json"]) == 1
    told = json.loads(capsys.readouterr().err)
    assert (told["error"], told["message"]) == ("system-error", "/x: Permission denied")


def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process keeps its own
    assert main(["up", "--state", "/proc/nowhere"]) == 1
    assert "[state-unwritable]" in capsys.readouterr().err
