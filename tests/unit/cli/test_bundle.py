"""``cloister bundle``: a root, a bundle signed by it, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloister.attest.bundle import open_bundle
from cloister.cli.main import main

POLICY = """version = 1
[rule.keyservice]
tee = "insecure-simulation"
measurement = ["{measurement}"]
minimum_security_version = 0
maximum_age_s = 604800
configuration = ["{configuration}"]
isolation = "any-isolation"
insecure_debug = false
""".format(measurement="31" * 48, configuration="32" * 32)


def say(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main([*map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str, list[object]]:
    """The folder, the root, and the words that sign a good bundle."""
    root = say(capsys, "bundle", "key", "--output", tmp_path / "root.key")["bundle_root"]
    (tmp_path / "policy.toml").write_text(POLICY)
    words: list[object] = [
        *("bundle", "sign", "--root-key", tmp_path / "root.key", "--policy", tmp_path / "policy.toml"),
        *(
            "--name",
            "trial",
            "--days",
            30,
            "--insecure-simulation-key",
            "33" * 32,
            "--output",
            tmp_path / "bundle.cbor",
        ),
    ]
    return tmp_path, root, words


def test_a_bundle_is_signed_and_opens(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, root, words = made
    witnesses = ["41" * 32, "42" * 32, "43" * 32]
    named = [word for key in witnesses for word in ("--witness", key)]
    told = say(capsys, *words, *named, "--witness-threshold", 2, "--version", 4)
    assert (told["version"], told["witnesses"], told["bundle_root"]) == (4, witnesses, root)
    data = (folder / "bundle.cbor").read_bytes()
    bundle = open_bundle(data, bytes.fromhex(root), 4, told["issued_at"] + 5)
    assert bundle.expires_at == bundle.issued_at + 30 * 86400
    assert bundle.digest.hex() == told["digest"]
    assert (folder / "root.key").stat().st_mode & 0o777 == 0o600
    assert say(capsys, "bundle", "show", folder / "bundle.cbor", "--bundle-root", root) == told
    assert main(["bundle", "show", str(folder / "bundle.cbor"), "--bundle-root", "44" * 32]) == 1
    assert "[signature-invalid]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--days", "0"], "argument"),
        (["--version", "0"], "bundle-malformed"),
        (["--witness", "41"], "argument"),
        (["--witness", "41" * 32], "bundle-malformed"),  # no threshold
        (["--insecure-simulation-key", "zz"], "argument"),
        (["--policy", "/nowhere"], "file-unreadable"),
        (["--root-key", "/nowhere"], "file-unreadable"),
        (["--output", "/proc/nowhere/bundle"], "file-not-written"),
    ],
)
def test_what_is_wrong_is_told(made: Any, capsys: pytest.CaptureFixture[str], more: list[str], code: str) -> None:
    _, _, words = made
    assert main([*map(str, words), *more]) == 1
    assert f"[{code}]" in capsys.readouterr().err


def test_a_root_is_never_replaced_nor_read_from_where_others_can(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _, words = made
    before = (folder / "root.key").read_bytes()
    assert main(["bundle", "key", "--output", str(folder / "root.key")]) == 1
    assert "[file-exists]" in capsys.readouterr().err
    assert (folder / "root.key").read_bytes() == before
    (folder / "root.key").chmod(0o644)
    assert main([*map(str, words)]) == 1
    assert "[file-exposed]" in capsys.readouterr().err
    (folder / "root.key").chmod(0o600)
    (folder / "root.key").write_text("not a key")
    assert main([*map(str, words)]) == 1
    assert "[bundle-key-malformed]" in capsys.readouterr().err


def test_hardware_and_simulation_do_not_mix(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, words = made
    at = words.index("--insecure-simulation-key")
    assert main([*map(str, words[:at]), *map(str, words[at + 2 :])]) == 1
    assert "[bundle-malformed]" in capsys.readouterr().err
