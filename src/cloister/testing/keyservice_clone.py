"""What an attacker does who owns the disk: copies of a KeyService's state, run beside it or in its place."""

from __future__ import annotations

import shutil
from pathlib import Path

from cloister.testing.keyservice_process import KeyServiceProcess


def snapshot(process: KeyServiceProcess, folder: Path) -> Path:
    """A copy of the state as it lies on the disk now, also while the process runs.

    SQLite's write-ahead log is copied after the file it belongs to, as a machine's snapshot would have both.
    """
    folder.mkdir(parents=True)
    for name in ("root.sealed", "store.sqlite", "store.sqlite-wal"):
        if (process.state / name).exists():
            shutil.copy2(process.state / name, folder / name)
    return folder


def clone(process: KeyServiceProcess, folder: Path, state: Path) -> KeyServiceProcess:
    """A further process with the same code, configuration, platform and network, on this copy."""
    text = process.configuration.read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    twin = KeyServiceProcess(folder, settings=text, arguments=process.arguments, state=state)
    if twin.root.id != process.root.id:
        raise AssertionError
    return twin
