"""Names of Unix sockets that fit their address, which holds 107 bytes only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LONGEST: Final = 107  # sun_path of <sys/un.h>, less its end


@contextlib.contextmanager
def socket_name(path: Path) -> Iterator[str]:
    """A name for ``path`` to bind or connect to meanwhile: its own, or a short one by way of its open folder.

    :raises OSError: the folder cannot be opened.
    """
    name = str(path)
    if len(os.fsencode(name)) <= _LONGEST:
        yield name
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
