"""The how-tos of platforms name error codes, settings and files that exist."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from cloister.cli.main import COMMANDS

ROOT = Path(__file__).parents[3]
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))


@pytest.mark.parametrize("name", ["openwhisk", "image", "compose", "kubernetes", "knative", "kserve"])
def test_what_it_names_exists(name: str) -> None:
    text = (ROOT / "docs" / "how-to" / f"{name}.md").read_text()
    table = text[text.index("## Troubleshooting") :]
    cells = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    codes = [code for cell in cells for code in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", cell)]
    assert codes
    for code in codes:
        assert f'"{code}"' in SOURCE, code
    for path in re.findall(r"`((?:deploy|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for variable in re.findall(r"CLOISTER_(?!OPENWHISK|TEST|IMAGE)([A-Z_]+)", text):
        known = variable in ("PAYLOADS", "MAX_RESULT") or f'"--{variable.lower().replace("_", "-")}"' in SOURCE
        assert known, variable


@pytest.mark.parametrize("name", ["kubernetes", "knative", "kserve"])
def test_commands_have_the_options_that_are_written(name: str) -> None:
    """Each `$ cloister ...` of a page, with its continuation lines, is one that the command takes."""
    text = (ROOT / "docs" / "how-to" / f"{name}.md").read_text()
    lines = re.sub(r"\\\n\s*", "", "\n".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL)))
    found = re.findall(r"^ *\$ cloister (.+)$", lines, re.MULTILINE)
    assert found
    for line in found:
        command, *words = shlex.split(line.replace("…", "0" * 62), comments=True)
        parser = argparse.ArgumentParser(exit_on_error=False)
        importlib.import_module(COMMANDS[command][0]).configure(parser)
        parser.parse_args([word for word in words if word != "&"])
