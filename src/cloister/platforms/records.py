"""What the local platform writes down of its processes: a driver that was killed leaves none unknown behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from cloister.base.errors import Unavailable

KEPT_LOGS: Final = 64  # of instances that ended; the newest


@dataclass(frozen=True, slots=True)
class Entry:
    """One process. ``pid`` is 0 while it is being started; ``started`` is in clock ticks since boot."""

    instance: str
    group: str
    socket: Path
    pid: int = 0
    started: int = -1


class Book:
    """Records, logs and a lock in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records = folder / "instances"
        self._logs = folder / "logs"
        self._lock = -1

    def open(self) -> None:
        """Make the folders and take the lock, which ends with this process at the latest.

        :raises Unavailable: ``platform-in-use``, ``platform-unavailable``.
        """
        try:
            for folder in (self._records, self._logs):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise Unavailable("platform-unavailable", f"cannot use {self._folder}: {error.strerror}") from error
        self._lock = lock(self._folder)

    def close(self) -> None:
        """Let the lock go."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def log(self, instance: str) -> Path:
        """Where an instance's output goes."""
        return self._logs / f"{instance}.log"

    def write(self, entry: Entry) -> None:
        """:raises OSError: it is not written; never half of it."""
        target = self._records / f"{entry.instance}.json"
        temporary = target.with_suffix(".new")
        temporary.write_text(json.dumps({**asdict(entry), "socket": str(entry.socket)}))
        temporary.replace(target)

    def forget(self, instance: str, socket: Path) -> None:
        """The process is gone: so are its record and its socket, and the oldest log."""
        (self._records / f"{instance}.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            socket.unlink(missing_ok=True)
            socket.parent.rmdir()
        kept = sorted(self._logs.glob("*.log"), key=_changed, reverse=True)
        alive = {path.stem for path in self._records.glob("*.json")}
        for old in [path for path in kept if path.stem not in alive][KEPT_LOGS:]:
            old.unlink(missing_ok=True)

    def entries(self) -> Iterator[Entry]:
        """What is written down; unreadable records are removed."""
        for record in sorted(self._records.glob("*.json")):
            try:
                fields = json.loads(record.read_text())
                yield Entry(
                    record.stem,
                    str(fields["group"]),
                    Path(fields["socket"]),
                    int(fields["pid"]),
                    int(fields["started"]),
                )
            except (OSError, ValueError, KeyError, TypeError):
                record.unlink(missing_ok=True)

    def locate(self, entry: Entry) -> Entry | None:
        """The entry with its process; one whose start was cut short is found by its socket's name."""
        if entry.pid > 0:
            return entry
        wanted = os.fsencode(f"unix:{entry.socket}")
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                if wanted in (folder / "cmdline").read_bytes().split(b"\0"):
                    pid = int(folder.name)
                    return replace(entry, pid=pid, started=start_time(pid))
        return None


def lock(folder: Path) -> int:
    """A descriptor that keeps ``folder`` for this driver until it is closed, with this process at the latest.

    :raises Unavailable: ``platform-in-use``, ``platform-unavailable``.
    """
    descriptor = -1
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise Unavailable(
                "platform-in-use",
                f"another process starts instances in {folder}",
                hint="Give each gateway a state folder of its own.",
            ) from error
        raise Unavailable("platform-unavailable", f"cannot use {folder}: {error.strerror}") from error
    return descriptor


def start_time(pid: int) -> int:
    """In clock ticks since boot: with the id, names a process for good. -1 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return -1


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
