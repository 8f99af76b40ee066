"""Writes the reference pages that follow from the code: docs/reference/errors.md and docs/reference/cli.md.

``python docs/generate.py`` writes them; ``--check`` compares with what is committed, as CI does.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

from cloister.cli.main import COMMANDS, main

DOCS = Path(__file__).parent / "reference"
SOURCE = Path(__file__).parents[1] / "src" / "cloister"
FAMILIES = ("InvalidInput", "Refused", "Unavailable", "Tampered")
CODE_PART = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Scope:
    """A function of the source, in which a name means what it means."""

    module: str
    node: ast.FunctionDef | ast.AsyncFunctionDef

    @property
    def parameters(self) -> list[str]:
        """Names of its parameters, without ``self`` and ``cls``."""
        names = [argument.arg for argument in (*self.node.args.posonlyargs, *self.node.args.args)]
        return [
            *(names[1:] if names[:1] in (["self"], ["cls"]) else names),
            *(a.arg for a in self.node.args.kwonlyargs),
        ]


def raised() -> Iterator[tuple[str, str, str, str]]:
    """Code, family, message and module of every error that the source raises, or lists beside its family."""
    trees = {
        str(path.relative_to(SOURCE).with_suffix("")): ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")
    }
    calls: dict[str, list[tuple[Scope | None, ast.Call]]] = defaultdict(list)
    errors: list[tuple[Scope | None, str, str, ast.Call]] = []
    listed: list[tuple[str, str, str, str]] = []
    for module, tree in sorted(trees.items()):
        for scope, node in _in_scopes(module, tree, None):
            if isinstance(node, ast.Tuple):
                listed += _listed(node, module)
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            calls[name].append((scope, node))
            if isinstance(node.func, ast.Name) and name in FAMILIES and node.args:
                errors.append((scope, module, name, node))
    for scope, module, family, node in errors:
        message = _template(node.args[1]) if len(node.args) > 1 else ""
        for code in _texts(node.args[0], scope, calls, 3):
            yield code, family, message, module
    yield from listed


def _in_scopes(module: str, node: ast.AST, scope: Scope | None) -> Iterator[tuple[Scope | None, ast.AST]]:
    """Every node below, with the innermost function around it."""
    for child in ast.iter_child_nodes(node):
        yield scope, child
        inner = Scope(module, child) if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else scope
        yield from _in_scopes(module, child, inner)


def _listed(row: ast.Tuple, module: str) -> Iterator[tuple[str, str, str, str]]:
    """A row of a table that names a family and a code."""
    for family, code in pairwise(row.elts):
        if isinstance(family, ast.Name) and family.id in FAMILIES and isinstance(code, ast.Constant):
            yield str(code.value), family.id, _template(row.elts[0]), module


def _texts(
    node: ast.expr, scope: Scope | None, calls: dict[str, list[tuple[Scope | None, ast.Call]]], depth: int
) -> list[str]:
    """What text an expression may be, as far as the source says: constants, loops over tables, callers' arguments."""
    match node:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.IfExp(body=body, orelse=other):
            return [*_texts(body, scope, calls, depth), *_texts(other, scope, calls, depth)]
        case ast.JoinedStr(values=values):
            parts = [_texts(v.value if isinstance(v, ast.FormattedValue) else v, scope, calls, depth) for v in values]
            return ["".join(pieces) for pieces in product(*parts)]
        case ast.Name(id=name) if scope is not None and depth > 0:
            found = _looped(name, scope)
            if not found and name in scope.parameters:
                found = _passed(name, scope, calls)
            texts = [text for inner, value in found for text in _texts(value, inner, calls, depth - 1)]
            return [text for text in dict.fromkeys(texts) if CODE_PART.fullmatch(text)]
        case _:
            return []


def _looped(name: str, scope: Scope) -> list[tuple[Scope | None, ast.expr]]:
    """What a loop of this function over a table binds the name to."""
    found: list[tuple[Scope | None, ast.expr]] = []
    for loop in ast.walk(scope.node):
        if isinstance(loop, ast.For) and isinstance(loop.target, ast.Tuple) and isinstance(loop.iter, ast.Tuple):
            names = [getattr(target, "id", "") for target in loop.target.elts]
            rows = [row.elts for row in loop.iter.elts if isinstance(row, ast.Tuple)]
            found += [(scope, row[names.index(name)]) for row in rows if name in names and len(row) == len(names)]
    return found


def _passed(
    name: str, scope: Scope, calls: dict[str, list[tuple[Scope | None, ast.Call]]]
) -> list[tuple[Scope | None, ast.expr]]:
    """What callers pass for a parameter of this function."""
    at = scope.parameters.index(name)
    found: list[tuple[Scope | None, ast.expr]] = []
    for caller, call in calls[scope.node.name]:
        named = [keyword.value for keyword in call.keywords if keyword.arg == name]
        found += [(caller, value) for value in named or call.args[at : at + 1]]
    return found


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
        "Codes of a policy's checks stand in [the reference of policies](policy.md).",
        "",
        "| code | family | for example | raised in |",
        "| --- | --- | --- | --- |",
    ]
    for code in sorted(rows):
        family, message, modules = rows[code]
        text = " ".join(message.split()).replace("|", "\\|")
        lines.append(f"| `{code}` | {family} | {text} | {', '.join(sorted(modules))} |")
    return "\n".join(lines) + "\n"


def pages() -> Iterator[list[str]]:
    """The words after ``cloister`` for each page of help: every command, and the actions of those that have some."""
    yield ["--help"]
    for name, (module, _) in COMMANDS.items():
        yield [name, "--help"]
        parser = argparse.ArgumentParser()
        importlib.import_module(module).configure(parser)
        for action in parser._actions:  # argparse has no public way to ask for them
            if isinstance(action, argparse._SubParsersAction):
                yield from ([name, choice, "--help"] for choice in action.choices)


def cli_page() -> str:
    """What ``--help`` says, command by command."""
    lines = ["# The cloister command", "", "<!-- written by docs/generate.py -->", ""]
    os.environ["COLUMNS"] = "110"
    for words in pages():
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main(words)
        title = " ".join(["cloister", *words[:-1]])
        lines += [
            f"{'#' * min(3, 1 + max(1, len(words) - 1))} {title}",
            "",
            "```text",
            out.getvalue().rstrip(),
            "```",
            "",
        ]
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
