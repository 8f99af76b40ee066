"""Sessions of runtimes, and what is remembered of denials. Bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import final

from cloister.access.checks import Check
from cloister.attest.types import Configuration, VerifiedEvidence
from cloister.base import limits
from cloister.base.errors import Unavailable
from cloister.base.ids import ModelId
from cloister.keyservice.freshness import ReplayWindow
from cloister.wire.provisioning import Session


@dataclass(frozen=True, slots=True)
class AttestedRuntime:
    """A runtime whose evidence verified, over exactly this report data; appraised anew at every release."""

    verified: VerifiedEvidence
    configuration: Configuration
    report_data: bytes


@dataclass(slots=True)
class OpenSession:
    """One session; ``useful`` once it released something."""

    session: Session
    runtime: AttestedRuntime
    expires: float
    window: ReplayWindow = field(default_factory=ReplayWindow)
    useful: bool = False


@final
class Sessions:
    """Sessions by id."""

    def __init__(self) -> None:
        self._open: OrderedDict[bytes, OpenSession] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, opened: OpenSession, now: float) -> None:
        """Remember one. When there are too many, expired ones go, then the oldest that never released anything.

        :raises Unavailable: ``sessions-full``.
        """
        with self._lock:
            if len(self._open) >= limits.MAX_SESSIONS:
                self._expire(now)
            if len(self._open) >= limits.MAX_SESSIONS:
                idle = next((name for name, other in self._open.items() if not other.useful), None)
                if idle is None:
                    raise Unavailable("sessions-full", "too many runtimes have a session", retry_after=30.0)
                del self._open[idle]
            self._open[opened.session.id] = opened

    def get(self, session: bytes, now: float) -> OpenSession | None:
        """The session, unless it is unknown or over."""
        opened = self._open.get(session)
        return opened if opened is not None and now < opened.expires else None

    def accept(self, opened: OpenSession, sequence: int) -> bool:
        """Whether this sequence number is used for the first time."""
        with self._lock:
            return opened.window.accept(sequence)

    def sweep(self, now: float) -> None:
        """Forget what is over."""
        with self._lock:
            self._expire(now)

    def __len__(self) -> int:
        return len(self._open)

    def _expire(self, now: float) -> None:
        for name in [name for name, opened in self._open.items() if opened.expires <= now]:
            del self._open[name]


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a runtime was refused last: every check, for both parties (clause 7.9)."""

    time: int
    tee: str
    checks: tuple[Check, ...]
    measurements: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))


@final
class Denials:
    """The last denial for each model and user; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._last: OrderedDict[tuple[ModelId, bytes], Denial] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, model: ModelId, user: bytes, denial: Denial) -> None:
        """Remember one."""
        with self._lock:
            self._last[model, user] = denial
            self._last.move_to_end((model, user))
            while len(self._last) > limits.MAX_DENIALS:
                self._last.popitem(last=False)

    def last(self, model: ModelId, user: bytes) -> Denial | None:
        """The last one, if it is still remembered."""
        return self._last.get((model, user))

    def __len__(self) -> int:
        return len(self._last)
