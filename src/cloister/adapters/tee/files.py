"""Device files as bytes: pseudo-files of Gramine and of configfs, read and written whole.

A port of its own, because no machine without the TEE has these files: ``OsDeviceFiles`` is the real one below any root,
and ``cloister.testing.devices`` behaves like the kernel's, honest or lying.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol

from cloister.base.errors import Tampered, Unavailable
from cloister.base.limits import MAX_EVIDENCE

MAX_TEXT: Final = 256


class DeviceFiles(Protocol):
    """Port: files of a device, by path relative to a root."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file or directory."""

    def read(self, path: str, *, limit: int = MAX_EVIDENCE) -> bytes:
        """All of a file.

        :raises Unavailable: ``evidence-unavailable`` when it cannot be read.
        :raises Tampered: ``evidence-device-lied`` when it has more than ``limit`` bytes.
        """

    def write(self, path: str, data: bytes) -> None:
        """Write all of it in one call, as these files demand.

        :raises Unavailable: ``evidence-unavailable`` when it cannot be written.
        :raises Tampered: ``evidence-device-lied`` when only a part was taken.
        """

    def make_directory(self, path: str) -> None:
        """:raises Unavailable: ``evidence-unavailable``."""

    def remove_directory(self, path: str) -> None:
        """Remove it; that it is gone already is no error."""


def read_text(files: DeviceFiles, path: str) -> str:
    """A short line of ASCII, without its end.

    :raises Tampered: ``evidence-device-lied`` when it is none.
    """
    data = files.read(path, limit=MAX_TEXT)
    if not data.isascii() or b"\x00" in data:
        raise Tampered("evidence-device-lied", f"{path} does not hold a line of text")
    return data.decode().strip()


def read_number(files: DeviceFiles, path: str) -> int:
    """A decimal number.

    :raises Tampered: ``evidence-device-lied`` when it is none.
    """
    text = read_text(files, path)
    if not text.isdigit() or len(text) > 20:
        raise Tampered("evidence-device-lied", f"{path} does not hold a number")
    return int(text)


class OsDeviceFiles:
    """``DeviceFiles`` of this machine, below a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def exists(self, path: str) -> bool:
        """Whether it is there."""
        return (self._root / path).exists()

    def read(self, path: str, *, limit: int = MAX_EVIDENCE) -> bytes:
        """All of a file, however many reads it takes."""
        try:
            with (self._root / path).open("rb", buffering=0) as file:
                pieces = bytearray()
                while piece := file.read(limit + 1 - len(pieces)):
                    pieces += piece
                    if len(pieces) > limit:
                        break
        except OSError as error:
            raise _unavailable(self._root / path, "read", error) from error
        if len(pieces) > limit:
            raise Tampered("evidence-device-lied", f"{self._root / path} has more than {limit} bytes")
        return bytes(pieces)

    def write(self, path: str, data: bytes) -> None:
        """All of it in one call."""
        try:
            descriptor = os.open(self._root / path, os.O_WRONLY)
            try:
                count = os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unavailable(self._root / path, "written", error) from error
        if count != len(data):
            raise Tampered("evidence-device-lied", f"{self._root / path} took {count} of {len(data)} bytes")

    def make_directory(self, path: str) -> None:
        """Make it."""
        try:
            (self._root / path).mkdir()
        except OSError as error:
            raise _unavailable(self._root / path, "made", error) from error

    def remove_directory(self, path: str) -> None:
        """Remove it."""
        try:
            (self._root / path).rmdir()
        except OSError:  # the kernel keeps it; it holds nothing
            return


def _unavailable(path: Path, what: str, error: OSError) -> Unavailable:
    return Unavailable("evidence-unavailable", f"{path} cannot be {what}: {error.strerror or error}")
