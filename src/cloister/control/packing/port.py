"""The packer port: what a packing policy is asked, and what it may answer.

A packer is pure. It keeps nothing between calls but the state it returned, so a decision can be replayed from a
snapshot, a state and a time. The dispatcher (``cloister.control.dispatch``) carries the decisions out; it never
overrules one, but it checks the bounds again and lets a balancer choose among equally good instances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from cloister.control.snapshot import Request, Snapshot

POOL: Final = "pool"  # the group of a fleet whose instances are all alike


@dataclass(frozen=True, slots=True)
class Assign:
    """Send the request to one of these instances, all equally good to the packer; never empty."""

    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Keep the request in its queue; ask again at ``until`` if it still waits then, or when something changes."""

    until: float | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Start an instance of ``group`` in which these models will be wanted."""

    group: str
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about one request, and about the fleet because of it.

    :param stop: idle instances to halt first, to make room under the cap.
    :param preload: (instance, model) pairs to load with nobody waiting for it; instances may ignore it.
    """

    action: Assign | Wait
    start: tuple[Start, ...] = ()
    stop: tuple[str, ...] = ()
    preload: tuple[tuple[str, str], ...] = ()


S = TypeVar("S")


class Packer(Protocol[S]):
    """A packing policy with state ``S``."""

    @property
    def name(self) -> str:
        """As on the command line and in configuration."""

    @property
    def scope(self) -> str:
        """``model`` when every model has instances of its own to scale, ``pool`` when the fleet scales as one."""

    def initial(self) -> S:
        """State before the first request."""

    def place(self, snapshot: Snapshot, state: S, request: Request, now: float) -> tuple[Decision, S]:
        """Decide about the head of a queue, or about a request that just joined one."""

    def pull(self, snapshot: Snapshot, state: S, instance: str, now: float) -> tuple[str | None, S]:
        """A slot is free and requests wait: the model whose head takes it, or ``None`` to leave it free."""

    def evict(self, snapshot: Snapshot, state: S, instance: str, model: str, now: float) -> tuple[str, ...] | None:
        """Residents to drop so that ``instance`` can take ``model``: a hint to the runtime. ``None``: it cannot."""

    def sent(self, snapshot: Snapshot, state: S, request: Request, instance: str, now: float) -> S:
        """A request goes to ``instance``; the snapshot is the one before."""

    def retire(self, snapshot: Snapshot, state: S, now: float) -> tuple[tuple[str, ...], S]:
        """Idle instances not worth their memory any more, least valuable first."""

    def group_of(self, snapshot: Snapshot, model: str) -> str:
        """The group to start an instance in, when a scaler starts one for ``model``."""
