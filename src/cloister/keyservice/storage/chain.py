"""The hash chain over a store's records (spec/protocol.md, 13.5), of which old parts are in blocks (13.23.2).

Of a block that was written down only the hash at its end is kept; those inside are fetched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, final

LINK: Final = 32
CHAIN_START: Final = bytes(LINK)


def chain_link(previous: bytes, record: bytes) -> bytes:
    """What all records so far hash to, with one more."""
    return hashlib.sha256(previous + record).digest()


@final
class Chain:
    """What the first 1, 2, ... records hash to.

    :param block: how many links a block has. :param fetch: the links of one that was given up; may raise.
    :param ends: the hash at the end of each block that was given up; ``links``: those after them.
    """

    def __init__(
        self, block: int, fetch: Callable[[int], bytes], ends: bytes | bytearray = b"", links: bytes | bytearray = b""
    ) -> None:
        self._block = block
        self._fetch = fetch
        self._ends = bytearray(ends)
        self._links = bytearray(links)

    @property
    def given_up(self) -> int:
        """How many blocks."""
        return len(self._ends) // LINK

    @property
    def size(self) -> int:
        """How many records."""
        return self.given_up * self._block + len(self._links) // LINK

    def at(self, size: int) -> bytes:
        """The hash over the first ``size`` records; raises as ``fetch``."""
        if not size:
            return CHAIN_START
        place = size - 1 - self.given_up * self._block
        if place >= 0:
            return bytes(self._links[place * LINK : (place + 1) * LINK])
        number, place = divmod(size - 1, self._block)
        if place == self._block - 1:
            return bytes(self._ends[number * LINK : (number + 1) * LINK])
        return self._fetch(number)[place * LINK : (place + 1) * LINK]

    def extend(self, links: bytes | bytearray) -> None:
        """Further ones."""
        self._links += links

    def first(self, size: int) -> Chain:
        """The chain over the first ``size`` records; raises as ``fetch``."""
        number, place = divmod(size, self._block)
        if number >= self.given_up:
            kept = self._links[: (size - self.given_up * self._block) * LINK]
            return Chain(self._block, self._fetch, self._ends, kept)
        inside = self._fetch(number)[: place * LINK] if place else b""
        return Chain(self._block, self._fetch, self._ends[: number * LINK], inside)

    def links(self, number: int) -> bytes:
        """Those of one complete block that is here still."""
        first = (number - self.given_up) * self._block * LINK
        return bytes(self._links[first : first + self._block * LINK])

    def parts(self, size: int) -> tuple[bytes, bytes]:
        """For the first ``size`` records: the end of each complete block, and the links after them."""
        blocks = size // self._block
        ends = self._ends[: blocks * LINK]
        for number in range(self.given_up, blocks):
            ends += self.at((number + 1) * self._block)
        first = (blocks - self.given_up) * self._block
        return bytes(ends), bytes(self._links[first * LINK : (first + size % self._block) * LINK])

    def give_up(self, number: int) -> None:
        """Forget the links inside the next block, which is written down; its number is to be :attr:`given_up`."""
        if number != self.given_up or len(self._links) < self._block * LINK:
            msg = f"block {number} is not the next one, or not complete"
            raise AssertionError(msg)
        self._ends += self.at((number + 1) * self._block)
        del self._links[: self._block * LINK]
