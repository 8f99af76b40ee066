"""Which modules are in the image: what the services' commands import, directly or not, and nothing else.

    python deploy/image/contents.py [--check]

writes deploy/image/contents.txt, or compares it, as a test does: the list grows only on purpose.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grimp

HERE = Path(__file__).parent
LIST = HERE / "contents.txt"
ROOTS = ("keyservice", "runtime", "openwhisk_action", "health", "version", "main")


def modules() -> list[str]:
    """Their names, sorted. Imports within functions count."""
    graph = grimp.build_graph("cloister")
    found: set[str] = set()
    waiting = ["cloister.__main__", *(f"cloister.cli.{name}" for name in ROOTS)]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        if "." in module:
            waiting.append(module.rpartition(".")[0])
        if module != "cloister":  # its only imports are the client's, when somebody asks for it
            waiting += graph.find_modules_directly_imported_by(module)
    return sorted(found)


def text() -> str:
    """The file."""
    return "# Written by deploy/image/contents.py: the modules in the image.\n" + "".join(f"{m}\n" for m in modules())


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if LIST.read_text() == text() else f"{LIST} is not what the services import; run {__file__}")
    LIST.write_text(text())
