"""What a disk may hold after the power failed: a process's writes, recorded by strace, replayed up to any of them.

A file system may keep any part of what was written since the last fsync of a file, and of a folder's names since its
own; sectors of 512 bytes are kept or lost whole. Every image that this module makes is one that a disk may hold.
"""

from __future__ import annotations

import random  # noqa: TID251  # seeded: the same images at every run
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

AVAILABLE: Final = shutil.which("strace") is not None
SECTOR: Final = 512

_CALLS: Final = "open,openat,creat,write,pwrite64,fsync,fdatasync,ftruncate,unlink,unlinkat,rename,renameat,mkdir,rmdir"
_OTHERS: Final = (
    "writev,pwritev,pwritev2,fallocate,renameat2,link,linkat,truncate,sync_file_range,copy_file_range,msync"
)
_LINE: Final = re.compile(r"^\d+ +(\w+)\((.*)\) += +(-?\d+)(?:<([^>]*)>)?")
_STRING: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_AT: Final = re.compile(r"^(\d+)<([^>]*)>")


@dataclass(frozen=True, slots=True)
class Event:
    """One system call that concerns a disk.

    :param kind: ``open`` (that may have made the file), ``write``, ``sync``, ``truncate``, ``unlink``, ``rename``.
    :param at: offset of a write, -1 for one at the end; length of a truncation.
    :param other: where a rename leads.
    """

    kind: str
    path: str
    at: int = 0
    data: bytes = b""
    other: str = ""


def record(command: Sequence[str], trace: Path, *, timeout_s: float = 120.0) -> list[Event]:
    """Run a command to its end; what it did.

    :raises AssertionError: it failed, or did something to files that this module does not understand.
    """
    strace = ["strace", "-f", "-y", "-xx", "-s", str(1 << 20), "-o", str(trace), "-e", f"trace={_CALLS},{_OTHERS}"]
    done = subprocess.run(  # noqa: S603  # ourselves
        [*strace, *command], capture_output=True, text=True, check=False, timeout=timeout_s
    )
    if done.returncode:
        raise AssertionError(done.stderr[-4000:])
    with trace.open(encoding="ascii") as lines:
        return [event for line in lines if (event := _event(line)) is not None]


def _event(line: str) -> Event | None:
    if "unfinished ..." in line:
        raise AssertionError(f"two threads at once: {line[:200]}")
    found = _LINE.match(line)
    if found is None or found[3].startswith("-"):
        return None
    name, arguments, result, opened = found[1], found[2], int(found[3]), found[4]
    strings = [_decoded(text) for text in _STRING.findall(arguments)]
    if name in ("open", "openat", "creat"):
        return Event("open", _path(opened)) if "O_CREAT" in arguments and "O_DIRECTORY" not in arguments else None
    if name in ("unlink", "unlinkat"):
        return Event("unlink", strings[0].decode())
    if name in ("rename", "renameat"):
        return Event("rename", strings[0].decode(), other=strings[1].decode())
    if name in ("mkdir", "rmdir"):
        return None
    at = _AT.match(arguments)
    path = _path(at[2]) if at else ""
    if not path.startswith("/") or path.startswith(("/dev/", "/proc/")):
        return None  # a pipe, a socket, a terminal
    if name in ("fsync", "fdatasync"):
        return Event("sync", path)
    if name == "ftruncate":
        return Event("truncate", path, int(arguments.rpartition(", ")[2]))
    if name == "write":
        return Event("write", path, -1, strings[0][:result])
    if name == "pwrite64":
        return Event("write", path, int(arguments.rpartition(", ")[2]), strings[0][:result])
    raise AssertionError(f"not understood: {line[:200]}")


def _decoded(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _path(text: str | None) -> str:
    return _decoded(text).decode().removesuffix(" (deleted)") if text else ""


@dataclass(slots=True)
class _File:
    """What was written, and what of it is safe; ``pending``: writes and truncations since."""

    now: bytearray = field(default_factory=bytearray)
    safe: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def write(self, at: int, data: bytes) -> None:
        at = len(self.now) if at < 0 else at
        _put(self.now, at, data)
        self.pending.append((at, data))

    def truncate(self, length: int) -> None:
        _cut(self.now, length)
        self.pending.append((length, None))

    def sync(self) -> None:
        self.safe = bytes(self.now)
        self.pending.clear()

    def some(self, chance: random.Random) -> bytes:
        """The safe part, and any sectors of what was written since."""
        found = bytearray(self.safe)
        for at, data in self.pending:
            if data is None:
                if chance.random() < 0.5:
                    _cut(found, at)
                continue
            fate = chance.random()  # all, nothing, or some of it
            end = at
            while end < at + len(data):
                start, end = end, min(at + len(data), (end // SECTOR + 1) * SECTOR)
                if fate < 0.3 or (fate > 0.6 and chance.random() < 0.5):
                    _put(found, start, data[start - at : end - at])
        return bytes(found)

    def torn(self) -> bytes:
        """Everything, but half of the last write."""
        found = bytearray(self.safe)
        for number, (at, data) in enumerate(self.pending):
            if data is None:
                _cut(found, at)
            else:
                last = number == len(self.pending) - 1
                _put(found, at, data[: len(data) // 2] if last else data)
        return bytes(found)


def _put(where: bytearray, at: int, data: bytes) -> None:
    if len(where) < at:
        where.extend(bytes(at - len(where)))
    where[at : at + len(data)] = data


def _cut(where: bytearray, length: int) -> None:
    del where[length:]
    where.extend(bytes(length - len(where)))


Image = dict[str, bytes]
"""Path to content."""


@final
class Disk:
    """A folder and what is below it, as the events made it so far.

    :ivar writes: how many events changed something.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._names: dict[str, _File] = {}
        self._safe_names: dict[str, _File] = {}
        self.writes = 0

    def apply(self, event: Event) -> bool:
        """Go on by one event; whether it concerned this disk."""
        if not event.path.startswith(self._folder):
            return False
        if event.kind == "sync" and event.path not in self._names:
            self._sync_folder(event.path)
            return True
        file = self._names.setdefault(event.path, _File())
        match event.kind:
            case "write":
                file.write(event.at, event.data)
            case "truncate":
                file.truncate(event.at)
            case "sync":
                file.sync()
            case "unlink":
                del self._names[event.path]
            case "rename":
                self._names[event.other] = self._names.pop(event.path)
            case _:
                pass
        self.writes += event.kind != "open"
        return True

    def _sync_folder(self, folder: str) -> None:
        inside = {path: file for path, file in self._names.items() if path.rpartition("/")[0] == folder}
        rest = {path: file for path, file in self._safe_names.items() if path.rpartition("/")[0] != folder}
        self._safe_names = rest | inside

    def images(self, seeds: Sequence[int]) -> Iterator[tuple[str, Image]]:
        """What may be found after a crash now: only what is safe; everything; half of the last write; and mixtures.

        What is written and not synced may be kept in part; so may names.
        """
        yield "synced", {path: file.safe for path, file in self._safe_names.items()}
        yield "written", {path: bytes(file.now) for path, file in self._names.items()}
        yield "torn", {path: file.torn() for path, file in self._names.items()}
        for seed in seeds:
            chance = random.Random(seed)  # noqa: S311
            names = self._names if chance.random() < 0.5 else self._safe_names
            yield f"mixed-{seed}", {path: file.some(chance) for path, file in sorted(names.items())}


def lay(image: Image, source: Path, target: Path) -> Path:
    """Write an image of ``source`` below ``target``, which is emptied before."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path, content in image.items():
        where = target / Path(path).relative_to(source)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(content)
    return target
