"""Which modules are in each image: what its commands import, directly or not, and nothing else.

    python deploy/image/contents.py [--check]

writes deploy/image/contents.txt (KeyService, runtime, action) and control.txt (gateway, witness), or compares them, as
a test does: the lists grow only on purpose.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grimp

HERE = Path(__file__).parent
LIST = HERE / "contents.txt"
CONTROL = HERE / "control.txt"
ROOTS = {
    LIST: ("keyservice", "runtime", "openwhisk_action", "health", "version", "main"),
    CONTROL: ("gateway", "witness", "health", "version", "main"),
}


def modules(roots: tuple[str, ...]) -> list[str]:
    """Their names, sorted. Imports within functions count."""
    graph = grimp.build_graph("cloister")
    found: set[str] = set()
    waiting = ["cloister.__main__", *(f"cloister.cli.{name}" for name in roots)]
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


def text(file: Path) -> str:
    """What the file should hold."""
    head = "# Written by deploy/image/contents.py: the modules in the image.\n"
    return head + "".join(f"{module}\n" for module in modules(ROOTS[file]))


if __name__ == "__main__":
    for path in ROOTS:
        if "--check" not in sys.argv:
            path.write_text(text(path))
        elif path.read_text() != text(path):
            sys.exit(f"{path} is not what the services import; run {__file__}")
