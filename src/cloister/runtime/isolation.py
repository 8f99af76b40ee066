"""Who may be in the process together: isolation levels and the owners' co-tenancy rule (S11; clause 7.9).

``shared``    many users at once, models of one owner, of several only where every policy concerned allows it
``per-user``  as shared, and one user at a time: before the next one everything is forgotten
``strict``    one request at a time, and everything is forgotten after it

A visit is asked for before any key is fetched, so no key of a newcomer is ever beside a model of somebody who must
not meet it. Whether policies allow co-tenancy is known only from a release: it is remembered (it is no secret) as a
hint for the next visit, and confirmed against every lease that is used.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, Unavailable
from cloister.base.ids import ModelId


class Isolation(StrEnum):
    """Levels, as in the measured configuration."""

    SHARED = "shared"
    PER_USER = "per-user"
    STRICT = "strict"


TURN_S: Final = 0.25  # while somebody waits for the room, its guests may still enter for so long: a switch is costly
PATIENCE_S: Final = 5.0  # and streams go on for so long after that
MAX_WAITING: Final = 256
_MAX_HINTS: Final = 4096


@dataclass(slots=True)
class Visit:
    """One request's stay; given back with :meth:`Rooms.leave`, once."""

    user: bytes
    model: ModelId
    cohabits: bool
    left: bool = False


@dataclass(slots=True)
class _Room:
    """Who is in the process, or left something: its user (above shared), and owner to co-tenancy (None: unknown)."""

    user: bytes | None = None
    owners: dict[bytes, bool | None] = field(default_factory=dict)


class Rooms:
    """Lets requests in. Safe for many threads.

    :param forget: erases every key, model, session and buffer; called while nobody is inside.
    :param executor: where ``forget`` runs.
    :param co_tenancy: whether this runtime takes several owners at all.
    """

    def __init__(
        self,
        level: Isolation,
        *,
        co_tenancy: bool,
        forget: Callable[[], None],
        executor: Executor,
        clock: Clock,
    ) -> None:
        self.level = level
        self._co_tenancy = co_tenancy
        self._forget = forget
        self._executor = executor
        self._clock = clock
        self._lock = threading.Lock()
        self._room = _Room()
        self._inside = 0
        self._switching = False
        self._closed = False
        self._waiting: deque[tuple[Visit, Future[Visit]]] = deque()
        self._turn_ends = 0.0
        self._hints: OrderedDict[tuple[bytes, ModelId], bool] = OrderedDict()
        self.switches = 0

    @property
    def inside(self) -> int:
        """Visits under way."""
        return self._inside

    @property
    def waiting(self) -> int:
        """Visits asked for."""
        return len(self._waiting)

    @property
    def overdue(self) -> bool:
        """Whether somebody has waited so long that a guest without end should leave."""
        return bool(self._waiting) and self._clock.monotonic() > self._turn_ends + PATIENCE_S

    def try_enter(self, user: bytes, model: ModelId) -> Visit | None:
        """Enter at once, if nothing stands against it."""
        with self._lock:
            visit = Visit(user, model, self._hints.get((user, model), False))
            if self._open_to_newcomers() and self._admits(visit):
                return self._join(visit)
            return None

    def enter(self, user: bytes, model: ModelId) -> Future[Visit]:
        """Enter when the room allows it; first come, first served. A cancelled future enters nothing.

        :raises Unavailable: ``room-queue-full``.
        """
        future: Future[Visit] = Future()
        with self._lock:
            visit = Visit(user, model, self._hints.get((user, model), False))
            if self._open_to_newcomers() and self._admits(visit):
                self._join(visit)
                future.set_result(visit)
                return future
            if len(self._waiting) >= MAX_WAITING or self._closed:
                raise Unavailable("room-queue-full", "too many requests wait for this instance", retry_after=1.0)
            if not self._waiting:
                self._turn_ends = self._clock.monotonic() + TURN_S
            self._waiting.append((visit, future))
            self._advance()
        return future

    def confirm(self, visit: Visit, *, co_tenancy: bool) -> bool:
        """Whether the visit may go on, now that a lease says what the policies allow. If not: leave, enter again."""
        with self._lock:
            key = (visit.user, visit.model)
            if self._hints.get(key) is not co_tenancy:
                self._hints[key] = co_tenancy
                if len(self._hints) > _MAX_HINTS:
                    self._hints.popitem(last=False)
            owner = visit.model.owner
            if not co_tenancy:
                self._room.owners[owner] = False
                return len(self._room.owners) == 1
            if self._room.owners.get(owner) is None:  # one policy that says no outweighs others that say yes
                self._room.owners[owner] = True
            return True

    def leave(self, visit: Visit) -> None:
        """The request is over, however it ended. Again is harmless."""
        with self._lock:
            if visit.left:
                return
            visit.left = True
            self._inside -= 1
            if self._inside == 0 and self.level is Isolation.STRICT:
                self._switch()
            elif self._waiting:
                self._advance()

    def close(self) -> None:
        """Let nobody in any more."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
        for _, future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(Unavailable("runtime-draining", "this instance is shutting down"))

    # --- all below: the lock is held ---

    def _open_to_newcomers(self) -> bool:
        if self._switching or self._closed:
            return False
        return not self._waiting or (self._inside > 0 and self._clock.monotonic() < self._turn_ends)

    def _admits(self, visit: Visit) -> bool:
        room = self._room
        if self.level is Isolation.STRICT and self._inside:
            return False
        if self.level is Isolation.PER_USER and room.user not in (None, visit.user):
            return False
        if not room.owners.keys() - {visit.model.owner}:
            return True
        return self._co_tenancy and visit.cohabits and all(room.owners.values())

    def _join(self, visit: Visit) -> Visit:
        self._inside += 1
        if self.level is not Isolation.SHARED:
            self._room.user = visit.user
        # Until a lease says otherwise, an owner whose co-tenancy is not known is taken to allow none.
        self._room.owners.setdefault(visit.model.owner, visit.cohabits or None)
        return visit

    def _advance(self) -> None:
        if self._switching:
            return
        while self._waiting:
            visit, future = self._waiting[0]
            visit.cohabits = self._hints.get((visit.user, visit.model), visit.cohabits)
            if not self._admits(visit):
                if self._inside == 0:
                    self._switch()
                return
            self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                self._join(visit)
                future.set_result(visit)
        return

    def _switch(self) -> None:
        self._switching = True
        self.switches += 1
        self._executor.submit(self._empty)

    def _empty(self) -> None:
        try:
            self._forget()
        except CloisterError:
            # Not forgotten: nobody else may come in. The instance is of no more use, and says so.
            self.close()
            return
        with self._lock:
            self._room = _Room()
            self._switching = False
            self._turn_ends = self._clock.monotonic() + TURN_S
            self._advance()
