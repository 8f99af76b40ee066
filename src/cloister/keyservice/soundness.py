"""Whether the store still holds what was written to it; once it does not, nothing is answered (clause 13.23.5)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import final

from cloister.base.errors import CloisterError, Tampered


@final
class Soundness:
    """A ledger's lock, and what was found wrong under it.

    :param found: called once, under the lock, when something is.
    :ivar condemned: what was found; ``None`` while nothing was.
    """

    def __init__(self, found: Callable[[], None]) -> None:
        self.lock = threading.Lock()
        self.condemned: Tampered | None = None
        self._found = found
        self._watchers: list[Callable[[Tampered], None]] = []

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The lock, for what reads the store: whatever Tampered is raised within says that the store is not sound.

        :raises Tampered: :attr:`condemned`, if it is not.
        """
        with self.lock:
            self.require()
            try:
                yield
            except Tampered as error:
                self.condemned = error
                for watcher in self._watchers:
                    watcher(error)
                with suppress(CloisterError):  # it is away: the next start finds out by itself
                    self._found()
                raise

    def require(self) -> None:
        """:raises Tampered: what was found."""
        if self.condemned is not None:
            raise Tampered(self.condemned.code, self.condemned.message, hint=self.condemned.hint)

    def watch(self, watcher: Callable[[Tampered], None]) -> None:
        """Call this when something is found; it must not block, nor ask the ledger anything."""
        self._watchers.append(watcher)
