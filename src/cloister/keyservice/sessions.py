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
from cloister.base.ids import ModelId
from cloister.keyservice.freshness import ReplayWindow
from cloister.keyservice.limiting.limiter import SessionBucket
from cloister.wire.provisioning import Session


@dataclass(frozen=True, slots=True)
class AttestedRuntime:
    """A runtime whose evidence verified, over exactly this report data; appraised anew at every release.

    :param platform: whose machine it is, as far as the evidence says; what runs on it is counted together.
    """

    verified: VerifiedEvidence
    configuration: Configuration
    report_data: bytes
    platform: str = ""


@dataclass(slots=True)
class OpenSession:
    """One session; ``useful`` once it released something."""

    session: Session
    runtime: AttestedRuntime
    expires: float
    window: ReplayWindow = field(default_factory=ReplayWindow)
    bucket: SessionBucket = field(default_factory=SessionBucket)
    useful: bool = False


@final
class Sessions:
    """Sessions by id.

    One platform holds so many, and all together so many. Whoever comes when there is no room takes the place of a
    session of the platform that has most: one that attests again and again only pushes itself out, and a fleet on many
    machines is there when it comes back.
    """

    def __init__(self) -> None:
        self._open: dict[bytes, OpenSession] = {}
        self._by_platform: dict[str, dict[bytes, OpenSession]] = {}
        self._lock = threading.Lock()

    def add(self, opened: OpenSession, now: float) -> None:
        """Remember one, in place of another where there is no room (clause 5.7.6)."""
        platform = opened.runtime.platform
        with self._lock:
            if len(self._open) >= limits.MAX_SESSIONS or self._held(platform) >= limits.MAX_SESSIONS_PER_PLATFORM:
                self._expire(now)
            if self._held(platform) >= limits.MAX_SESSIONS_PER_PLATFORM:
                self._push_out(platform)
            elif len(self._open) >= limits.MAX_SESSIONS:
                self._push_out(max(self._by_platform, key=self._held))
            self._open[opened.session.id] = opened
            self._by_platform.setdefault(platform, {})[opened.session.id] = opened

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

    def _held(self, platform: str) -> int:
        return len(self._by_platform.get(platform, ()))

    def _push_out(self, platform: str) -> None:
        """The oldest that never released anything, or else the oldest."""
        held = self._by_platform[platform]
        idle = (name for name, opened in held.items() if not opened.useful)
        self._forget(next(idle, None) or next(iter(held)))

    def _expire(self, now: float) -> None:
        for name in [name for name, opened in self._open.items() if opened.expires <= now]:
            self._forget(name)

    def _forget(self, session: bytes) -> None:
        opened = self._open.pop(session)
        held = self._by_platform[opened.runtime.platform]
        del held[session]
        if not held:
            del self._by_platform[opened.runtime.platform]


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
