"""A backup is written by whoever has the store open, page by page while statements go on (spec/protocol.md, 13.25.2).

The moment it shows is its end: entries are copied in order until none is left, and then, under the ledger's lock, what
the store keeps with its head. A key that was destroyed while it was copied is one of those that the entries say are to
be destroyed, so whoever restores it destroys it again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, final

from cloister.base.errors import Refused, Unavailable
from cloister.base.limits import MAX_BACKUP_HISTORY, MAX_SEALED_ROOT, MIB
from cloister.keyservice.backup.format import BackupWriter, End, Header, Kept, Page, read_backup
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.storage.chain import CHAIN_START, chain_link
from cloister.wire.calls import LogHead
from cloister.wire.log_keys import LogKeys

Progress = Callable[[str, int, int], None]
HISTORY_FILE: Final = "backup.json"
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # what file systems without links say


def backup_pieces(ledger: Ledger, *, log_keys: LogKeys, head: LogHead | None, root: bytes) -> Iterator[bytes]:
    """The file in pieces, each read from the store when it is asked for; blocks on the disk.

    :param head: the newest confirmed one; :param root: the sealed root secret as it lies on the disk.
    :raises Unavailable: ``backup-overtaken``: begin again; ``store-unavailable``, ``keyservice-closing``.
    :raises Tampered: the store's codes.
    """
    writer = BackupWriter()
    size, _ = ledger.position()
    if head is not None and head.size > size:
        head = None  # a follower that has not caught up knows of heads whose entries it lacks
    yield writer.header(Header(log_keys, int(ledger.now()), size, head, root))
    first, link = 0, CHAIN_START
    while True:
        copied = ledger.copied(first, link)
        if copied.rows:
            yield writer.page(Page(first, copied.rows, copied.leaves))
            first += len(copied.rows)
            for row in copied.rows:
                link = chain_link(link, row.record)
        if copied.kept:
            yield writer.finish(Kept(copied.kept))[0]
            return


def sealed_root(path: Path) -> bytes:
    """The sealed root secret as it lies there; empty where there is none.

    :raises Unavailable: ``state-unreadable``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SEALED_ROOT + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise Unavailable("state-unreadable", f"{path} cannot be read: {error.strerror}") from error
    return data if len(data) <= MAX_SEALED_ROOT else b""


@dataclass(frozen=True, slots=True)
class Written:
    """A backup that is whole and on the disk."""

    header: Header
    end: End
    bytes: int


def keep_backup(path: Path, read: Callable[[int], bytes], progress: Progress) -> Written:
    """Check a backup as it arrives, and keep it in a new file: whole and durable, or not at all.

    :param read: the next so many bytes, fewer only at the end.
    :raises Refused: ``file-exists``: nothing is overwritten.
    :raises Unavailable: ``file-unwritable``. :raises CloisterError: as ``read_backup``.
    """
    if path.exists() or path.is_symlink():
        raise _exists(path)
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)  # of one that was killed
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "wb", buffering=MIB) as file:
            written = pass_backup(file, read, progress)
            file.flush()
            os.fsync(file.fileno())
        place_new(part, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return written


def pass_backup(file: BinaryIO, read: Callable[[int], bytes], progress: Progress) -> Written:
    """Check a backup as it arrives, and write it on; raises as ``read_backup``, and ``OSError``."""
    header: Header | None = None
    count = 0

    def through(wanted: int) -> bytes:
        nonlocal count
        data = read(wanted)
        file.write(data)
        count += len(data)
        return data

    for record in read_backup(through):
        match record:
            case Header():
                header = record
            case Page() if header is not None:
                done = record.first + len(record.rows)
                progress("backup", done, max(done, header.entries))
            case End() if header is not None:
                return Written(header, record, count)
    raise AssertionError


def place_new(part: Path, path: Path) -> None:
    """Give a whole file its name, durably, which nobody has yet.

    :raises FileExistsError: somebody has. :raises OSError: the disk refuses.
    """
    try:
        os.link(part, path)  # unlike a rename it replaces nothing
        part.unlink()
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists() or path.is_symlink():
            raise FileExistsError(errno.EEXIST, "exists already", str(path)) from error
        part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _exists(path: Path) -> Refused:
    return Refused("file-exists", f"{path} exists already", hint="A backup overwrites nothing: name a new file.")


def _unwritable(path: Path, error: OSError) -> Unavailable:
    return Unavailable("file-unwritable", f"{path} cannot be written: {error.strerror or type(error).__name__}")


@final
class BackupHistory:
    """When the last backup was made: a note in the state directory, for the operator, believed by nobody else."""

    def __init__(self, state: Path) -> None:
        self._path = state / HISTORY_FILE
        self.newest = self._read()

    def note(self, at: int, entries: int) -> None:
        """One was made; a disk that does not take the note loses it, and nothing else."""
        self.newest = (at, entries)
        temporary = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps({"at": at, "entries": entries}) + "\n", encoding="ascii")
            temporary.replace(self._path)

    def fields(self, now: float) -> dict[str, object] | None:
        """For JSON, at this Unix time."""
        if self.newest is None:
            return None
        at, entries = self.newest
        return {"at": at, "entries": entries, "age_s": max(0, int(now) - at)}

    def _read(self) -> tuple[int, int] | None:
        try:
            with self._path.open("rb") as file:
                found = json.loads(file.read(MAX_BACKUP_HISTORY))
            return int(found["at"]), int(found["entries"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
