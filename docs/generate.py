"""Writes the reference pages that follow from the code: docs/reference/errors.md and docs/reference/cli.md.

``python docs/generate.py`` writes them; ``--check`` compares with what is committed, as CI does.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from cloister.cli.main import COMMANDS, main

DOCS = Path(__file__).parent / "reference"
SOURCE = Path(__file__).parents[1] / "src" / "cloister"
FAMILIES = ("InvalidInput", "Refused", "Unavailable", "Tampered")
CODE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")


def raised() -> Iterator[tuple[str, str, str, str]]:
    """Code, family, message and module of every error that the source raises by name."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
                continue
            code = node.args[0]
            if node.func.id in FAMILIES and isinstance(code, ast.Constant) and isinstance(code.value, str):
                message = _template(node.args[1]) if len(node.args) > 1 else ""
                yield code.value, node.func.id, message, str(path.relative_to(SOURCE).with_suffix(""))


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
    return "…"


def errors_page() -> str:
    """One row a code, with the message of its first place."""
    rows: dict[str, tuple[str, str, set[str]]] = {}
    for code, family, message, module in raised():
        known = rows.setdefault(code, (family, message, set()))
        known[2].add(module.split("/")[0])
    lines = [
        "# Errors",
        "",
        "<!-- written by docs/generate.py -->",
        "",
        "Every error has a stable code, which is never given another meaning. The families say whose fault it is:",
        "`InvalidInput` you sent nonsense, `Refused` a rule says no, `Unavailable` try again,",
        "`Tampered` authentication failed.",
        "Over HTTP they are problem+json with the type `urn:cloister:error:<code>`.",
        "",
        "| code | family | for example | raised in |",
        "| --- | --- | --- | --- |",
    ]
    for code in sorted(rows):
        family, message, modules = rows[code]
        text = " ".join(message.split()).replace("|", "\\|")
        lines.append(f"| `{code}` | {family} | {text} | {', '.join(sorted(modules))} |")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """What ``--help`` says, command by command."""
    lines = ["# The cloister command", "", "<!-- written by docs/generate.py -->", ""]
    os.environ["COLUMNS"] = "110"
    for words in (["--help"], *([name, "--help"] for name in COMMANDS)):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main(words)
        title = "cloister" if len(words) == 1 else f"cloister {words[0]}"
        lines += [f"## {title}", "", "```text", out.getvalue().rstrip(), "```", ""]
    return "\n".join(lines)


def run() -> int:
    """Write, or compare."""
    stale = []
    for name, content in (("errors.md", errors_page()), ("cli.md", cli_page())):
        path = DOCS / name
        if "--check" not in sys.argv:
            path.write_text(content)
        elif not path.exists() or path.read_text() != content:
            stale.append(f"docs/reference/{name}")
    if stale:
        print(f"stale: {', '.join(stale)}; run python docs/generate.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(run())
