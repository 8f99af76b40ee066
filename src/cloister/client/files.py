"""Files that only their owner may read, written so that a crash leaves the old or the new content, never half."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from cloister.base.errors import InvalidInput, Refused, Unavailable


def write_private(path: Path, data: bytes) -> None:
    """Replace a file atomically, mode 0600.

    :raises Unavailable: ``file-not-written``: disk full, read-only, not permitted.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise Unavailable("file-not-written", f"cannot write {path}: {error.strerror}") from error


def read_private(path: Path) -> bytes:
    """Read a file that holds secrets.

    :raises InvalidInput: ``file-unreadable``.
    :raises Refused: ``file-exposed`` when others may read it.
    """
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput("file-unreadable", f"cannot read {path}: {error.strerror}") from error
    if mode & 0o077:
        raise Refused("file-exposed", f"others can read {path}", hint=f"Run: chmod 600 {path}")
    return data


def read_public(path: Path, *, limit: int, what: str) -> bytes:
    """Read a file of bounded size.

    :raises InvalidInput: ``file-unreadable``, ``file-too-large``.
    """
    try:
        if path.stat().st_size > limit:
            raise InvalidInput("file-too-large", f"{what} {path} has more than {limit} bytes")
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput("file-unreadable", f"cannot read {what} {path}: {error.strerror}") from error
