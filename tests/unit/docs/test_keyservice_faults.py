"""The page says of each attack and fault which test shows it, and with which code: so do the tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "keyservice-faults.md").read_text()
ERRORS = (ROOT / "docs" / "reference" / "errors.md").read_text()
SOURCE = "".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
TEST = re.compile(r"`((?:adversarial|integration|unit)/[\w/]+\.py)::(test_\w+)`")
CODE = re.compile(r"`([a-z]+(?:-[a-z0-9]+)+)`")
ATTACKS = ("rollback", "fork", "entry removed", "entries reordered", "records swapped", "old snapshot", "old replica")


def rows() -> list[list[str]]:
    """Cells of each row of both tables, without their heads."""
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("|")]
    return [cells for cells in found if "---" not in cells[0] and cells[0] not in ("attack", "fault")]


def test_every_row_names_a_test_that_exists() -> None:
    assert len(rows()) > 30
    for cells in rows():
        found = TEST.findall(cells[-1])
        assert len(found) == 1, cells
        path, name = found[0]
        functions = {node.name for node in ast.walk(ast.parse((ROOT / "tests" / path).read_text()))
                     if isinstance(node, ast.FunctionDef)}  # fmt: skip
        assert name in functions, cells[-1]


def test_every_code_is_one_and_stands_in_its_test() -> None:
    """In the test's file; what tests assert by roles stands there as what callers were told."""
    count = 0
    for cells in rows():
        path, _ = TEST.findall(cells[-1])[0]
        source = (ROOT / "tests" / path).read_text()
        for cell in cells[:-1]:
            for code in CODE.findall(cell):
                count += 1
                assert f"`{code}`" in ERRORS or f'"{code}"' in SOURCE, code
                assert code in source, (code, path)
    assert count > 20


def test_every_attack_on_disk_and_network_is_there_for_every_deployment() -> None:
    attack, on = "", {}  # type: ignore[var-annotated]
    for cells in rows():
        if len(cells) == 5:
            attack = cells[0] or attack
            on[attack] = on.get(attack, "") + cells[1]
    for wanted in ATTACKS:
        covered = "".join(deployments for name, deployments in on.items() if wanted in name)
        assert covered, wanted
        if wanted != "old replica":
            assert "any" in covered or all(each in covered for each in ("one", "witnessed", "replicated")), wanted
