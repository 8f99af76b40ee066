"""One request's way through the gateway."""

from __future__ import annotations

import asyncio
import enum

from cloister.control.dispatch import Path
from cloister.control.snapshot import Request


class Leg(enum.Enum):
    """Where a request is."""

    WAITING = enum.auto()  # in the dispatcher's queue
    SENT = enum.auto()  # it has a slot of an instance
    ORPHAN = enum.auto()  # its instance is gone; the dispatcher knows it no more
    LANDED = enum.auto()  # over


class Flight:
    """Mutable; owned by the conductor. ``address`` and the rest below it say where it was sent last.

    :ivar deadline: until when it may wait for a slot, on the monotonic clock.
    :ivar waiter: of the coroutine that waits for a slot.
    """

    __slots__ = (
        "address", "attempts", "deadline", "instance", "leg", "load", "path", "request", "sent_at",
        "slowdown", "waiter",
    )  # fmt: skip

    def __init__(self, request: Request, deadline: float) -> None:
        self.request = request
        self.deadline = deadline
        self.leg = Leg.WAITING
        self.waiter: asyncio.Future[None] | None = None
        self.attempts = 0
        self.instance = ""
        self.address = ""
        self.path = Path.HOT
        self.load = False
        self.slowdown = 1.0
        self.sent_at = 0.0
