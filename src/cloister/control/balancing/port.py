"""The balancer port."""

from __future__ import annotations

from typing import Protocol, TypeVar

from cloister.control.snapshot import Request, Snapshot

S = TypeVar("S")


class Balancer(Protocol[S]):
    """A balancing policy with state ``S``."""

    @property
    def name(self) -> str:
        """As on the command line and in configuration."""

    def initial(self) -> S:
        """State before the first choice."""

    def choose(
        self, snapshot: Snapshot, state: S, candidates: tuple[str, ...], request: Request, now: float
    ) -> tuple[str, S]:
        """One of ``candidates``, which is not empty and lists instances with a free slot, oldest first."""
