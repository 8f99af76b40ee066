"""A persistent mapping: an update makes a new table and shares almost everything with the old one.

The gateway hands policies an immutable picture of thousands of models at every request. Copying a dictionary of
that size each time would be the cost of the whole decision; here an update copies one shard of sixty-four.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar

V = TypeVar("V")
SHARDS: Final = 64


class Table(Mapping[str, V], Generic[V]):
    """Immutable mapping of names; :meth:`put` and :meth:`drop` return new tables in O(size / 64).

    Iteration is in sorted order, so that nothing decided by it depends on how a process hashes names.
    """

    __slots__ = ("_length", "_shards")

    def __init__(self, shards: tuple[dict[str, V], ...] | None = None, length: int = 0) -> None:
        self._shards: tuple[dict[str, V], ...] = shards if shards is not None else ({},) * SHARDS
        self._length = length

    def put(self, key: str, value: V) -> Table[V]:
        """This table with ``key`` set to ``value``."""
        index = hash(key) & (SHARDS - 1)
        shards = list(self._shards)
        shard = dict(shards[index])
        added = key not in shard
        shard[key] = value
        shards[index] = shard
        return Table(tuple(shards), self._length + added)

    def drop(self, key: str) -> Table[V]:
        """This table without ``key``; itself when ``key`` is not there."""
        index = hash(key) & (SHARDS - 1)
        if key not in self._shards[index]:
            return self
        shards = list(self._shards)
        shard = dict(shards[index])
        del shard[key]
        shards[index] = shard
        return Table(tuple(shards), self._length - 1)

    def several(self, keys: Iterable[str]) -> list[V]:
        """The values of ``keys``, in their order; quicker than asking for each."""
        shards = self._shards
        return [shards[hash(key) & (SHARDS - 1)][key] for key in keys]

    def __getitem__(self, key: str) -> V:
        return self._shards[hash(key) & (SHARDS - 1)][key]

    def get(self, key: str, default: V | None = None) -> V | None:  # type: ignore[override]
        """The value of ``key``, or ``default``."""
        return self._shards[hash(key) & (SHARDS - 1)].get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._shards[hash(key) & (SHARDS - 1)]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(key for shard in self._shards for key in shard))

    def __len__(self) -> int:
        return self._length
