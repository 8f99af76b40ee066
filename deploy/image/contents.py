"""What of Cloister is in each image: the modules its commands import, directly or not, their data, and nothing else.

    python deploy/image/contents.py [--check]

writes deploy/image/contents.txt (KeyService, runtime, action) and control.txt (gateway, witness), or compares them, as
a test does: the lists grow only on purpose.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grimp

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
LIST = HERE / "contents.txt"
CONTROL = HERE / "control.txt"
ROOTS = {
    LIST: ("keyservice", "runtime", "openwhisk_action", "health", "version", "main"),
    CONTROL: ("gateway", "witness", "health", "version", "main"),
}


def modules(roots: tuple[str, ...]) -> list[str]:
    """Their names, sorted. Imports within functions count."""
    graph = grimp.build_graph("cloister", cache_dir=None)  # its cache goes by times of files
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


def data(module: str) -> list[str]:
    """Files that a package reads and that are no modules, in its own folder or one below that is no package itself."""
    folder = SOURCE / module.replace(".", "/")
    if not folder.is_dir():
        return []
    own = [folder, *(below for below in folder.iterdir() if below.is_dir() and not (below / "__init__.py").exists())]
    found = [path for place in own for path in place.iterdir() if path.is_file()]
    kept = [path for path in found if path.suffix not in (".py", ".pyc") and path.name != "py.typed"]
    return sorted(str(path.relative_to(SOURCE)) for path in kept)


def text(file: Path) -> str:
    """What the file should hold: modules, and files by their paths."""
    found = modules(ROOTS[file])
    files = [path for module in found for path in data(module)]
    head = "# Written by deploy/image/contents.py: what is in the image.\n"
    return head + "".join(f"{name}\n" for name in [*found, *files])


if __name__ == "__main__":
    for path in ROOTS:
        if "--check" not in sys.argv:
            path.write_text(text(path))
        elif path.read_text() != text(path):
            sys.exit(f"{path} is not what the services import; run {__file__}")
