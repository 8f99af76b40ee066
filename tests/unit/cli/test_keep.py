"""``init --keep``: what an init container runs at every start makes a state once, and never another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.cli.main import main
from cloister.testing.logs import MemoryLog
from cloister.testing.openwhisk_cloud import Beside


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


def test_of_replicas_another_build_or_configuration_joins_when_it_runs(
    replica: Callable[..., list[object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(capsys, *replica(0))["log_key"]
    changed = tmp_path / "keyservice.toml"
    changed.write_text(changed.read_text() + "lease_s = 40\n")
    assert init(capsys, *replica(0, "http://127.0.0.1:1"))["made"] is False
    assert main([*map(str, replica(0))]) == 1
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


@pytest.fixture
def replica(tmp_path: Path) -> Callable[..., list[object]]:
    """The words of an init container of one of three replicas."""
    key, toml = tmp_path / "simulation.key", tmp_path / "keyservice.toml"
    key.write_text("22" * 32)
    keys = ", ".join(f'"{letter * 64}"' for letter in "123")
    toml.write_text(
        f'bundle_root = "{"5f" * 32}"\nbundle_version = 1\nrollback_protection = "witnesses"\n'
        f"witnesses = [{keys}]\nwitness_threshold = 2\nreplicas = 3\n"
    )

    def words(number: int, *peers: str) -> list[object]:
        named = [word for peer in peers for word in ("--peer", peer)]
        made = ["keyservice", "init", "--keep", "--state", tmp_path / f"volume-{number}", "--simulation-key", key]
        return [*made, "--configuration", toml, "--replica", str(number), *named]

    return words


def test_of_several_replicas_the_first_is_made_and_the_others_join(
    replica: Callable[..., list[object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = "http://127.0.0.1:1"
    made = init(capsys, *replica(0, nobody))
    assert "log_key" in made
    for number in (1, 2):
        assert init(capsys, *replica(number, nobody)) == {
            "replica": number,
            "state": str(tmp_path / f"volume-{number}"),
            "made": False,
        }
        assert not (tmp_path / f"volume-{number}").exists()
    (tmp_path / "volume-0" / "store.sqlite").unlink()  # it catches up with the others
    assert init(capsys, *replica(0, nobody)) == made


def test_a_first_replica_that_lost_its_volume_joins_those_that_run(
    replica: Callable[..., list[object]], capsys: pytest.CaptureFixture[str]
) -> None:
    async def described(request: Request) -> Response:
        assert request.path == "/v1/description"
        return Response(200, (), b"whatever; who joins verifies it")

    beside = Beside()
    server = HttpServer(described, log=MemoryLog())
    beside.run(server.start())
    try:
        assert init(capsys, *replica(0, "http://127.0.0.1:1", server.address))["made"] is False
    finally:
        beside.run(server.close())
        beside.close()
    # Nor is another one made in place of one that is named.
    assert init(capsys, *replica(0, "http://127.0.0.1:1"), "--keyservice", "44" * 32)["made"] is False


def test_a_witness_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("witness", "init", "--state", tmp_path / "volume" / "witness", "--name", "w-0.witness.ml")
    made = init(capsys, *words, "--keep")
    assert init(capsys, *words, "--keep") == made
    assert main([*map(str, words)]) == 1
    assert "[state-exists]" in capsys.readouterr().err
