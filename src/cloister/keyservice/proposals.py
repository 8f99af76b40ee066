"""What is on its way into the log: proposals, what became of them, and why they come to nothing for now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from cloister.base.errors import CloisterError, Unavailable
from cloister.base.limits import CONFIRM_RETRY_S
from cloister.base.secret import SecretBytes
from cloister.keyservice.state.state import State
from cloister.keyservice.vault import Vault
from cloister.log.entry import Entry
from cloister.wire.calls import LogHead


@dataclass(frozen=True, slots=True)
class Proposal:
    """What shall become the next entry, and the secret beside it."""

    kind: str
    body: bytes
    secret: SecretBytes | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """An entry that is durable and not yet confirmed: nobody may hear of it."""

    index: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Committed:
    """An entry that is durable and, where the log is anchored, in a confirmed head; its place there."""

    index: int
    entry: Entry
    head: LogHead
    inclusion: tuple[bytes, ...]


Propose = Callable[[State, Vault, float], Proposal | None]


@final
class Job:
    """A proposal that waits for the writer, and what became of it."""

    __slots__ = ("done", "entry", "error", "index", "propose")

    def __init__(self, propose: Propose) -> None:
        self.propose = propose
        self.index = -1
        self.entry: Entry | None = None
        self.error: CloisterError | None = None
        self.done = False


def no_leader() -> Unavailable:
    """Only one of several replicas answers, and it is not this one."""
    return Unavailable(
        "keyservice-no-leader",
        "no replica of the KeyService leads at present: one takes over within seconds while most of them run",
        retry_after=1.0,
    )


def tentative() -> Unavailable:
    """What is durable here may yet be replaced."""
    return Unavailable(
        "keyservice-unconfirmed",
        "the log of the replica that leads is not confirmed yet, and is not shown before",
        retry_after=CONFIRM_RETRY_S,
    )


def newer(index: int) -> Unavailable:
    """This entry is of a kind, or holds something, that only a newer build knows (clause 13.26.8)."""
    return Unavailable(
        "log-newer",
        f"log entry {index} was written by a newer version of the KeyService, which alone goes on with this log",
        hint="Run the newer build here too. What is there is kept, and nothing was dropped.",
    )


def fail(jobs: list[Job], error: CloisterError) -> None:
    """Nothing of these is in the log."""
    for job in jobs:
        job.error = job.error or error
        job.entry = None
        job.done = True
