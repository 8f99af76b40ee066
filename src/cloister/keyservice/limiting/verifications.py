"""How much evidence is verified at once (spec/protocol.md, 5.7.7): anybody may send some, and it costs milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, final

from cloister.base.errors import Unavailable

_BUSY_S: Final = 0.5


@final
class Verifications:
    """So many places; whoever finds none is told to come back, and takes no thread from those who are known."""

    def __init__(self, at_once: int) -> None:
        self._places = threading.BoundedSemaphore(at_once)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Take a place.

        :raises Unavailable: ``keyservice-busy``.
        """
        if not self._places.acquire(blocking=False):
            raise Unavailable("keyservice-busy", "too much evidence is being verified", retry_after=_BUSY_S)
        try:
            yield
        finally:
            self._places.release()
