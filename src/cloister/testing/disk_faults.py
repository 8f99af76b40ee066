"""A disk that fails under a running process, for as long as the test says: strace makes its system calls fail."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Final

AVAILABLE: Final = shutil.which("strace") is not None
_ATTACHED_S: Final = 30.0


@contextlib.contextmanager
def failing(process: int, calls: Sequence[str], error: str) -> Iterator[None]:
    """While this lasts, these system calls of the process (``pwrite64``) are not made and fail (``EIO``).

    :raises AssertionError: strace cannot be had, or may not attach.
    """
    names = ",".join(calls)
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={names}", "-e", f"inject={names}:error={error}"]
    strace = subprocess.Popen(  # noqa: S603
        [*command, "-p", str(process)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _wait_until_attached(strace)
        yield
    finally:
        strace.terminate()  # it lets the process go
        strace.wait(_ATTACHED_S)
        if strace.stderr is not None:
            strace.stderr.close()


def _wait_until_attached(strace: subprocess.Popen[str]) -> None:
    said: list[str] = []

    def read() -> None:
        for line in strace.stderr or ():
            said.append(line)
            if "attached" in line:
                return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(_ATTACHED_S)
    if not any("attached" in line for line in said):
        raise AssertionError(said)


@contextlib.contextmanager
def no_file_longer(process: int, length: int) -> Iterator[None]:
    """While this lasts, no file of the process grows beyond this: a full disk, as far as it can tell."""
    before = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (length, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)
