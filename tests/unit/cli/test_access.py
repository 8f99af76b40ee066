"""``cloister access why``: the standing rules and the last runtime are told apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from cloister.base.ids import ModelId
from cloister.cli import access
from cloister.cli.main import main

MODEL = str(ModelId(b"o" * 32, "m"))
PASSED = {"name": "consent", "whose": "user", "verdict": "PASS", "code": "ok", "expected": "", "actual": ""}
FAILED = PASSED | {"verdict": "FAIL", "name": "lab/isolation", "code": "isolation-not-allowed"}
DENIAL = {"time": 1_800_000_000, "tee": "tdx", "checks": [PASSED, FAILED | {"expected": "strict", "actual": "shared"}]}

CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "nothing": ({"checks": [PASSED], "denial": {}}, 0, "nothing refuses"),
    "a runtime": (
        {"checks": [PASSED], "denial": DENIAL},
        0,
        "no standing rule refuses; that runtime was refused: isolation-not-allowed",
    ),
    "a rule": (
        {"checks": [FAILED | {"code": "consent-missing"}], "denial": DENIAL},
        1,
        "refused: consent-missing",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_refuses(case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer, status, last = CASES[case]

    @contextmanager
    def opened(_args: object) -> Iterator[SimpleNamespace]:
        account = SimpleNamespace(identity=SimpleNamespace(id=b"u" * 32))
        yield SimpleNamespace(account=account, why=lambda _model, _user: {"waiting": [], **answer})

    monkeypatch.setattr(access, "open_client", opened)
    assert main(["access", "why", MODEL]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last
    if answer["denial"]:
        assert any("isolation-not-allowed  is shared, expected strict" in line for line in lines)
