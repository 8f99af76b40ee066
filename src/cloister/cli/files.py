"""Read the files that a command is given, bounded, with one clear error for each way in which that fails."""

from __future__ import annotations

from pathlib import Path

from cloister.base.errors import InvalidInput


def read_file(path: Path, *, limit: int, what: str) -> bytes:
    """The content of a file.

    :param limit: the most bytes accepted.
    :raises InvalidInput: ``file-unreadable``, ``file-too-long``.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise InvalidInput("file-unreadable", f"{what} {path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise InvalidInput("file-too-long", f"{what} {path} has more than {limit} bytes")
    return data


def read_text(path: Path, *, limit: int, what: str) -> str:
    """The content of a text file.

    :raises InvalidInput: ``file-unreadable``, ``file-too-long``, ``file-not-text``.
    """
    try:
        return read_file(path, limit=limit, what=what).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("file-not-text", f"{what} {path} is not UTF-8 text") from error
