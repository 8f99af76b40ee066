"""The how-tos of platforms name error codes, settings and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
