"""The table in README.md names every adversarial test of a claim, and no other: it is written by this file.

``python tests/adversarial/test_table.py`` writes it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
NAME = re.compile(r"^(?:async )?def (test((?:_s\d+)+)_\w+)\(", re.MULTILINE)
CLAIM = re.compile(r"^\* \*\*S(\d+) ([^*]+?)\.\*\*", re.MULTILINE)
REAL = "system/"  # real processes, the tests holding network, store and host
OTHERS = ("adversarial", "integration", "unit", "property", "vectors", "contract", "e2e")


def claims() -> dict[int, str]:
    """Number to title, from the threat model."""
    text = (HERE.parents[1] / "spec" / "threat-model.md").read_text()
    return {int(number): title for number, title in CLAIM.findall(text)}


def attacks() -> dict[int, dict[str, list[str]]]:
    """Claim to file to names of tests."""
    found: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for area in OTHERS:
        for path in sorted((HERE.parent / area).rglob("test_*.py")):
            for name, numbers in NAME.findall(path.read_text()):
                for number in re.findall(r"\d+", numbers):
                    found[int(number)][str(path.relative_to(HERE.parent))].append(name)
    return found


def sentence(name: str) -> str:
    """A test's name as what it shows."""
    return re.sub(r"^test(_s\d+)+_", "", name).replace("_", " ")


def table() -> str:
    """The page."""
    lines = [
        "# Claims and the tests that attack them",
        "",
        "<!-- written by tests/adversarial/test_table.py -->",
        "",
        "The claims stand in [spec/threat-model.md](../../spec/threat-model.md). In every test the cloud attacks.",
        "Those marked *processes* attack real ones (`keyservice`, `gateway`, `runtime`) and hold their networks,",
        "stores, disks, clocks and signals; the others attack a service in the test's own process, which reaches more",
        "states in less time.",
        "",
    ]
    found = attacks()
    for number, title in claims().items():
        lines += [f"## S{number} {title}", "", "| file | shows |", "| --- | --- |"]
        for file, names in found[number].items():
            marked = " *(processes)*" if on_processes(file) else ""
            lines += [f"| `{file}`{marked} | {sentence(name)} |" for name in names]
        lines.append("")
    return "\n".join(lines)


def on_processes(file: str) -> bool:
    """Whether real processes are attacked."""
    return REAL in file or "process" in file


def test_the_table_is_fresh() -> None:
    assert (HERE / "README.md").read_text() == table(), "run python tests/adversarial/test_table.py"


def test_every_claim_is_attacked_on_real_processes() -> None:
    found = attacks()
    assert sorted(claims()) == list(range(1, 12))
    for number in claims():
        assert any(on_processes(file) for file in found[number]), f"S{number}"
    assert set(found) <= set(claims()), "tests of claims that nobody makes"


if __name__ == "__main__":
    (HERE / "README.md").write_text(table())
