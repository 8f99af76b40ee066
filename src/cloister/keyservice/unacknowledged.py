"""Statements that are in the log and were not acknowledged, because no witness confirmed them (protocol.md, 13.10)."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import final

from cloister.base.limits import MAX_COMMIT_QUEUE
from cloister.keyservice.proposals import Written


@final
class Unacknowledged:
    """By the statement's digest; in memory, the newest ``MAX_COMMIT_QUEUE``. Who has the very bytes may ask again."""

    def __init__(self) -> None:
        self._written: OrderedDict[bytes, Written] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, statement: bytes, written: Written) -> None:
        """It waits."""
        with self._lock:
            self._written[hashlib.sha256(statement).digest()] = written
            while len(self._written) > MAX_COMMIT_QUEUE:
                self._written.popitem(last=False)

    def find(self, statement: bytes) -> Written | None:
        """Its entry; forgotten with that, so that whoever fails again keeps it again."""
        with self._lock:
            return self._written.pop(hashlib.sha256(statement).digest(), None)
