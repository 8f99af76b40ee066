"""Which entries of the log concern whom, in blocks of entries, under a journal (spec/protocol.md, 13.23.2). No I/O.

Of a block that was written down only its number is kept, for each party whom something in it concerns; which entries
those are, is fetched. Callers give ``fetch``, for only they may wait for a store.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

from cloister.keyservice.state.tables import Journal

Concerned = Mapping[bytes, Sequence[int]]
"""Party to the places within one block of the entries that concern it, ascending."""
Fetch = Callable[[int], Concerned]

NUMBERS: Final = "I"  # of blocks: 32 bits
PLACES: Final = "H"  # within a block: 16 bits


@final
class Events:
    """Party to the ascending indices of the entries that concern it.

    :param block: entries of one block; at most 65,536.
    """

    def __init__(self, journal: Journal, block: int) -> None:
        self._journal = journal
        self._block = block
        self._blocks: dict[bytes, array[int]] = {}
        self._here: dict[int, dict[bytes, array[int]]] = {}

    def append(self, party: bytes, index: int) -> None:
        """Entry ``index``, above all earlier ones, concerns this party."""
        number, place = divmod(index, self._block)
        here = self._here.setdefault(number, {})
        places = here.get(party)
        if places is None:
            here[party] = array(PLACES, (place,))
            numbers = self._blocks.get(party)
            if numbers is None:
                self._blocks[party] = array(NUMBERS, (number,))
            else:
                numbers.append(number)
            self._journal.note(lambda: self._forget_block(party, number))
        else:
            places.append(place)
            self._journal.note(lambda: places.__delitem__(-1))

    def _forget_block(self, party: bytes, number: int) -> None:
        del self._here[number][party]
        numbers = self._blocks[party]
        numbers.pop()
        if not numbers:
            del self._blocks[party]

    def newest(self, party: bytes, limit: int, fetch: Fetch) -> list[int]:
        """The last ``limit`` indices, ascending; raises what ``fetch`` raises, as all that take one."""
        found: list[int] = []
        for number in reversed(self._blocks.get(party, ())):
            found[:0] = self._of(party, number, fetch)
            if len(found) >= limit:
                break
        return found[-limit:]

    def after(self, party: bytes, least: int, limit: int, fetch: Fetch) -> list[int]:
        """At most ``limit`` indices from ``least`` on."""
        numbers = self._blocks.get(party, array(NUMBERS))
        found: list[int] = []
        for at in range(bisect_left(numbers, max(0, least) // self._block), len(numbers)):
            found += [index for index in self._of(party, numbers[at], fetch) if index >= least]
            if len(found) >= limit:
                break
        return found[:limit]

    def _of(self, party: bytes, number: int, fetch: Fetch) -> list[int]:
        here = self._here.get(number)
        places = (fetch(number) if here is None else here).get(party, ())
        return [number * self._block + place for place in places]

    # --- blocks that were written down, and snapshots ---

    def concerned(self, number: int) -> Mapping[bytes, bytes]:
        """Whom the entries of a block concern that is here still, packed: a copy."""
        return {party: places.tobytes() for party, places in self._here.get(number, {}).items()}

    def give_up(self, number: int) -> None:
        """From now on this block is fetched; only while the journal is empty, and of complete blocks."""
        self._here.pop(number, None)

    def parties(self) -> dict[bytes, array[int]]:
        """Party to the numbers of its blocks: those that are there now stay, whatever follows them later."""
        return self._blocks.copy()

    @staticmethod
    def packed(numbers: array[int], below: int) -> bytes:
        """Those before block ``below``, for :meth:`restore`; at any time later, and on any thread."""
        return numbers[: bisect_left(numbers, below)].tobytes()

    def restore(self, numbers: Mapping[bytes, bytes], block: int, concerned: Mapping[bytes, bytes]) -> None:
        """Into an empty one: what :meth:`packed` gave, and of the block after those what :meth:`concerned` gave."""
        self._blocks = {party: array(NUMBERS, packed) for party, packed in numbers.items()}
        self._here = {block: {party: array(PLACES, places) for party, places in concerned.items()}}
        for party in concerned:
            self._blocks.setdefault(party, array(NUMBERS)).append(block)
