"""Who is connected, by address, and who makes room when there are too many.

A connection that waits for its client costs the client nothing, so whoever holds many of them could keep others out
for nothing. Room is made by the address that holds most; a request whose answer is being made is never cut.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, Generic, Protocol, TypeVar, final

_SHARED: Final = 64  # bits of an IPv6 address that one customer has alone


class Waiting(IntEnum):
    """What a connection waits for; the lower, the sooner it makes room."""

    IDLE = 0  # nothing of a request has come
    HEAD = 1
    CLIENT = 2  # for the rest of a body, or for an answer to be taken
    SERVICE = 3  # for us


class Member(Protocol):
    """A connection, as the crowd sees it."""

    @property
    def address(self) -> str: ...

    @property
    def waiting(self) -> Waiting: ...

    @property
    def since(self) -> float:
        """When it began to wait."""


M = TypeVar("M", bound=Member)


@final
class Crowd(Generic[M]):
    """Open connections, by who holds them."""

    def __init__(self) -> None:
        self._by_address: dict[str, dict[M, None]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[M]:
        for members in tuple(self._by_address.values()):
            yield from tuple(members)

    def add(self, member: M) -> None:
        """It is open."""
        members = self._by_address.setdefault(member.address, {})
        if member not in members:
            members[member] = None
            self._size += 1

    def discard(self, member: M) -> None:
        """It is not any more."""
        members = self._by_address.get(member.address)
        if members is None or member not in members:
            return
        del members[member]
        self._size -= 1
        if not members:
            del self._by_address[member.address]

    def makes_room(self, address: str) -> M | None:
        """The one that goes so that somebody from ``address`` may come; ``None``: everybody stays.

        Of the address that holds most; a request under way only where that one would hold more than the newcomer even
        then.
        """
        if not self._by_address:
            return None
        most = max(self._by_address.values(), key=len)
        own = len(self._by_address.get(address, ()))
        least = min(most, key=lambda member: (member.waiting, member.since))
        if least.waiting < Waiting.CLIENT or (least.waiting is Waiting.CLIENT and len(most) > own + 1):
            return least
        return None


def group_of(peer: object) -> str:
    """Who is behind a socket's peer name: the IPv4 address, the first half of an IPv6 one; all of a Unix socket."""
    host = peer[0] if isinstance(peer, tuple) and peer and isinstance(peer[0], str) else ""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    mapped = address.ipv4_mapped
    if mapped is not None:
        return str(mapped)
    return str(ipaddress.IPv6Network((int(address) >> _SHARED << _SHARED, 128 - _SHARED)))
