"""What keeps a KeyService from being rolled back or forked: its head is confirmed from outside (protocol.md, 13.10).

:class:`Anchor` is the port; :class:`Unanchored` is ``rollback_protection: none``. Witnesses are beside it, and a
majority of replicas before them; a hardware counter would be a further anchor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, final

from cloister.wire.calls import LogHead


class HeadSource(Protocol):
    """The log whose heads are confirmed. Both may wait for the log's lock."""

    def head(self) -> LogHead:
        """The newest durable head."""

    def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        """Proof between two sizes."""


@dataclass(frozen=True, slots=True)
class AnchorState:
    """For operators: how old the confirmation is, and how each confirmer answered last.

    :param age_s: of the newest confirmed head; ``None`` while there is none.
    :param outcomes: a number to a word: ``confirmed``, ``waiting`` or an error's code.
    """

    open: bool
    age_s: float | None
    size: int
    outcomes: Mapping[int, str]


class Anchor(Protocol):
    """Port: confirmation of heads. Safe for many threads; the log's lock must not be held during any call but
    :meth:`time`, :meth:`confirmed` and :meth:`seen`.
    """

    @property
    def protects(self) -> bool:
        """Whether there is anything to confirm."""

    @property
    def tentative(self) -> bool:
        """Whether a durable entry may yet be replaced by another history, so that only confirmed heads are shown."""

    def start(self, source: HeadSource) -> None:
        """Begin to confirm the heads of this log."""

    def require(self) -> None:
        """Pass while heads are being confirmed; before an entry is written. Waits for the first attempt after a start.

        :raises Unavailable: ``keyservice-unconfirmed``: not since the start, or the last attempt failed;
            ``keyservice-superseded``: what confirms knows another or a later history.
        """

    def confirm(self, size: int) -> LogHead | None:
        """A confirmed head of at least ``size`` entries, durable before; waits for it. ``None`` without protection.

        :raises Unavailable: as :meth:`require`; ``keyservice-closing``.
        """

    def confirmed(self) -> LogHead | None:
        """The newest confirmed head, with its co-signatures; never waits."""

    def seen(self) -> LogHead | None:
        """The newest confirmed head known here, which may be of another history or longer than ours; never waits."""

    def proof(self) -> bytes:
        """What the store shall keep beside the next entries; empty for nothing; never waits."""

    def time(self) -> float:
        """A Unix time that is certainly over, as far as the confirmers are honest; never waits."""

    def tick(self) -> None:
        """Try anew what failed, and confirm anew what is getting old; never waits. Every few seconds."""

    def state(self) -> AnchorState:
        """How it stands; never waits long."""

    def close(self) -> None:
        """Confirm nothing more; whoever waits is told."""


@final
class Unanchored:
    """No protection, and evidence that says so."""

    protects = False
    tentative = False

    def start(self, source: HeadSource) -> None:
        """Nothing."""

    def require(self) -> None:
        """Always."""

    def confirm(self, size: int) -> LogHead | None:
        """Nothing confirms."""
        del size
        return None

    def confirmed(self) -> LogHead | None:
        """Nothing was."""
        return None

    def seen(self) -> LogHead | None:
        """None."""
        return None

    def proof(self) -> bytes:
        """None."""
        return b""

    def time(self) -> float:
        """Unknown."""
        return 0.0

    def tick(self) -> None:
        """Nothing."""

    def state(self) -> AnchorState:
        """Open, and unconfirmed."""
        return AnchorState(True, None, 0, {})

    def close(self) -> None:
        """Nothing."""
