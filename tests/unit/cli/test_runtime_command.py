"""``cloister runtime``: what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.base.errors import InvalidInput
from cloister.cli.main import main
from cloister.crypto.digest import Context, digest
from cloister.runtime.app import Listen, default_listen
from cloister.runtime.isolation import Isolation
from cloister.runtime.options import RuntimeOptions

ROOT = "11" * 32


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "simulation.key"
    path.write_text("22" * 32 + "\n")
    return path


def test_it_prints_what_a_policy_must_name(key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["runtime", "--bundle-root", ROOT, "--simulation-key", str(key), "--print-configuration", "--json"]
    assert main([*words, "--isolation", "strict"]) == 0
    found = json.loads(capsys.readouterr().out)
    options = RuntimeOptions(bundle_root=bytes.fromhex(ROOT), isolation=Isolation.STRICT, concurrency=1)
    assert found["configuration"] == options.measured().digest.hex()
    assert found["configuration"] == digest(Context.CONFIGURATION, options.measured().encoded).hex()
    assert found["tee"] == "insecure-simulation"
    assert len(found["measurement"]) == 96
    assert found["values"]["isolation"] == "strict"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "argument"),
        (["--bundle-root", "xyz"], "argument"),
        (["--bundle-root", "11"], "option-range"),
        (["--bundle-root", ROOT, "--isolation", "strict", "--concurrency", "2"], "option-range"),
        (["--bundle-root", ROOT, "--simulation-key", "KEY"], "argument"),
        (["--bundle-root", ROOT, "--simulation-key", "KEY", "--listen", "nowhere"], "argument"),
        (["--bundle-root", ROOT, "--simulation-key", "KEY", "--prewarm", "mine"], "id-malformed"),
        (["--bundle-root", ROOT, "--simulation-key", "/nowhere"], "simulation-key-malformed"),
        (
            ["--bundle-root", ROOT, "--simulation-key", "KEY", "--keyservice", "http://x", "--bundle", "/nowhere"],
            "argument",
        ),
        (
            [
                *("--bundle-root", ROOT, "--simulation-key", "KEY", "--keyservice", "http://x"),
                *("--bundle", "/nowhere", "--store", "/nowhere"),
            ],
            "bundle-unreadable",
        ),
        (["--bundle-root", ROOT, "--print-configuration"], "evidence-unavailable"),
    ],
)
def test_it_says_what_is_missing(words: list[str], code: str, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runtime", "--json", *(str(key) if word == "KEY" else word for word in words)]) == 1
    assert json.loads(capsys.readouterr().err)["error"] == code


def test_where_to_listen() -> None:
    assert Listen.parse("unix:/tmp/x").path == Path("/tmp/x")
    assert Listen.parse("[::1]:80") == Listen("::1", 80)
    for text in ("", "x", "host:", "host:port", "host:99999", "unix:relative"):
        with pytest.raises(InvalidInput):
            Listen.parse(text)


def test_the_port_that_a_platform_tells_counts_where_nobody_says_more() -> None:
    assert default_listen({}, "127.0.0.1:8441") == "127.0.0.1:8441"
    assert default_listen({"PORT": ""}, "127.0.0.1:8441") == "127.0.0.1:8441"
    assert Listen.parse(default_listen({"PORT": "8080"}, "127.0.0.1:8441")) == Listen("0.0.0.0", 8080)
    for port in ("0", "65536", "80 80", "\u0661", "http"):
        with pytest.raises(InvalidInput, match="PORT"):
            default_listen({"PORT": port}, "")
