"""The how-to pages for TEEs name things that exist: error codes, policy fields, commands; the manifest is one."""

from __future__ import annotations

import argparse
import configparser
import importlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cloister.cli.main import COMMANDS

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs" / "how-to").glob("tee-*.md"))
COLLATERAL = ROOT / "docs" / "how-to" / "collateral.md"
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
REFERENCE = (ROOT / "docs" / "reference" / "policy.md").read_text()


def test_there_is_a_page_for_each_tee() -> None:
    assert [page.stem for page in PAGES] == ["tee-nitro", "tee-sev-snp", "tee-sgx-gramine", "tee-tdx"]


@pytest.mark.parametrize("page", [*PAGES, COLLATERAL], ids=lambda page: page.stem)
def test_codes_fields_and_commands_exist(page: Path) -> None:
    text = page.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows
    for row in rows:
        for code in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", row.split("|")[1]):
            family = code.removesuffix("-expired")  # built from a prefix in some places
            assert f'"{code}"' in SOURCE or f'"{family}"' in SOURCE or f"`{code}`" in REFERENCE, code
    for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        for rule in tomllib.loads(block)["rule"].values():
            for name in rule:
                assert f"`{name}`" in REFERENCE, name
    for command in re.findall(r"`?\$? ?cloister ([a-z]+) ", text):
        assert command in COMMANDS, command
    assert page is COLLATERAL or "have not been run" in " ".join(text.split())


def manifest(**values: str) -> dict[str, Any]:
    text = (ROOT / "deploy" / "gramine" / "cloister.manifest.template").read_text()
    defaults = {
        "python": "/opt/cloister",
        "configuration": "/etc/cloister/keyservice.toml",
        "argv": '"cloister", "keyservice", "run"',
        "size": "8G",
        "threads": "64",
        "gramine.libos": "/usr/lib/gramine/libsysdb.so",
        "gramine.runtimedir()": "/usr/lib/gramine/runtime/glibc",
    } | values

    def replace(match: re.Match[str]) -> str:
        name, _, default = match.group(1).partition("| default(")
        return defaults.get(name.strip(), default.rstrip(" )"))

    return tomllib.loads(re.sub(r"\{\{(.*?)\}\}", replace, text))


def test_the_manifest_is_one_and_lets_the_host_decide_nothing() -> None:
    found = manifest()
    assert found["sgx"]["debug"] is False
    assert found["sgx"]["remote_attestation"] == "dcap"
    assert found["sgx"]["allowed_files"] == ["file:state/"]
    assert found["loader"]["argv"] == ["python3", "-I", "-m", "cloister", "keyservice", "run"]
    assert not [name for name in (*found["loader"], *found["sgx"], *found["sys"]) if name.startswith("insecure")]
    assert found["sgx"].get("file_check_policy", "strict") == "strict"
    trusted = " ".join(found["sgx"]["trusted_files"])
    state = [mount for mount in found["fs"]["mounts"] if mount["path"] == "/state"]
    assert all(
        mount["uri"] in trusted or mount in state for mount in found["fs"]["mounts"] if mount.get("type") != "tmpfs"
    )


UNITS = ROOT / "deploy" / "confidential-vm" / "mkosi.extra" / "etc" / "systemd" / "system"


def command(text: str) -> list[str]:
    """The words after ``-m cloister`` of the one command line that has them."""
    (line,) = [line for line in text.replace("\\\n", " ").splitlines() if "-m cloister " in line]
    words = shlex.split(line.split("-m cloister ", 1)[1])
    return [word.lstrip("$").replace("BUNDLE_ROOT", "00" * 32) for word in words]


@pytest.mark.parametrize(
    "path",
    [ROOT / "deploy" / "nitro" / "start.sh", UNITS / "cloister-runtime.service", UNITS / "cloister-keyservice.service"],
    ids=lambda path: path.name,
)
def test_what_is_deployed_starts_with_options_that_exist(path: Path) -> None:
    name, *words = command(path.read_text())
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(COMMANDS[name][0]).configure(parser)
    options = parser.parse_args(words)
    assert options.simulation_key is None, "a deployment never simulates"
    assert options.bundle is not None


def test_a_guest_image_has_no_way_in() -> None:
    found = configparser.ConfigParser(strict=True, interpolation=None)
    found.read(ROOT / "deploy" / "confidential-vm" / "mkosi.conf")
    assert found["Output"]["Format"] == "uki"
    packages = found["Content"]["Packages"].split()
    assert not {"openssh-server", "cloud-init", "sudo"} & set(packages)
    assert not {"rootpassword", "rootshell", "autologin", "ssh"} & set(found["Content"])
    assert "console=null" in found["Content"]["KernelCommandLine"]
    for unit in UNITS.glob("*.service"):
        text = unit.read_text()
        assert {"ProtectSystem=strict", "NoNewPrivileges=yes", "LimitCORE=0"} <= set(text.splitlines())
