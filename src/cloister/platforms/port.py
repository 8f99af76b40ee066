"""The Platform port: start, stop and find runtime instances, whatever runs them (ARCHITECTURE.md, "Ports").

A platform is untrusted, like everything around it: it may run other code than asked for, and then gets no keys.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Running:
    """An instance that exists.

    :param group: what it was started for; kept by the platform, so that a new gateway finds it again.
    :param address: an origin (``http://host:port`` or ``unix:/path``); empty while it has none.
    :param ready: whether it answers.
    """

    instance: str
    group: str
    address: str
    ready: bool
    host: str


@dataclass(frozen=True, slots=True)
class Ready:
    """An instance began to answer."""

    instance: str
    group: str
    address: str
    host: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """An instance takes no new requests and finishes those it has: somebody else stops it. :class:`Gone` follows."""

    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """An instance ended, asked or unasked, or never came up. ``reason`` is for the operator's log."""

    instance: str
    reason: str


Event = Ready | Leaving | Gone


class Platform(Protocol):
    """Port. Drivers: ``local``, ``openwhisk``, ``static``, ``kubernetes``, ``knative``.

    Fake: ``cloister.testing.platform.FakePlatform``.
    """

    async def open(self) -> None:
        """Take over what runs. Repeating it is harmless.

        :raises Unavailable: ``platform-unavailable``, ``platform-in-use``.
        :raises InvalidInput: ``platform-limit``, ``platform-object-missing``. :raises Refused: ``platform-refused``.
        """

    async def start(self, instance: str, group: str) -> None:
        """Begin to start an instance under this id; :class:`Ready` or :class:`Gone` follows. Repeating it is harmless.

        :raises Unavailable: ``platform-unavailable`` when the platform cannot be asked; ``platform-full``.
        """

    async def stop(self, instance: str) -> None:
        """Let it finish what it has, then end it; :class:`Gone` follows. Unknown instances are ignored."""

    async def running(self) -> tuple[Running, ...]:
        """Every instance of this deployment, those of an earlier gateway included."""

    def events(self) -> AsyncIterator[Event]:
        """What happens to instances, from now on. One reader."""

    async def stop_all(self) -> None:
        """Stop every instance of this deployment, and wait until they are gone."""

    async def close(self) -> None:
        """Let go of the platform; instances go on."""
