"""Kept receive buffers: page-aligned, already touched, reused only when nobody can see them any more.

Page faults and heap growth cost more than decryption does (docs/adr/0003-http.md), so a body is received into
memory that was used before. A lease hands out one view. Releasing it revokes the view; if somebody still borrows the
memory (a numpy array, a slice, a worker's AEAD call under way) the memory is given up instead of being reused,
and lives exactly as long as the borrower.
"""

from __future__ import annotations

import mmap
import sys
from collections import deque
from functools import lru_cache
from typing import Final

from cloister.base.limits import KIB, MIB

_STEP: Final = 64 * KIB
_TOUCH: Final = MIB  # larger memory is touched as bytes arrive: a declared length alone must cost nothing
_BORROWED_BY_US: Final = 2  # references to a memory that nobody borrows: the attribute, getrefcount's argument


@lru_cache(maxsize=1024)  # a service sees few sizes
def _size_class(size: int) -> int:
    """Round up with at most 12.5 % waste above 512 KiB, to multiples of 64 KiB below."""
    step = max(_STEP, 1 << max(0, (size - 1).bit_length() - 4))
    return -(-size // step) * step


class Lease:
    """Memory on loan. ``view`` has exactly the bytes asked for, starts on a page, and is writable.

    What is in it is left over from earlier use: write before reading.
    """

    __slots__ = ("_memory", "_pool", "view")

    def __init__(self, pool: BufferPool, memory: mmap.mmap, size: int) -> None:
        self._pool: BufferPool | None = pool
        self._memory: mmap.mmap | None = memory
        self.view = memoryview(memory)[:size]

    def release(self) -> None:
        """Revoke the view and give the memory back; again is harmless."""
        pool, self._pool = self._pool, None
        if pool is None or self._memory is None:
            return
        try:
            self.view.release()
        except BufferError:  # an array or a C call holds it
            free = False
        else:
            free = sys.getrefcount(self._memory) == _BORROWED_BY_US  # slices of the view hold a reference
        memory, self._memory = self._memory, None
        pool._give_back(memory, free=free)  # one module, one protocol


class BufferPool:
    """Thread-safe: every step on the shared lists is one atomic operation.

    :param keep: bytes kept idle; beyond it, memory goes back to the system.
    """

    def __init__(self, keep: int = 64 * MIB) -> None:
        self._keep = keep
        self._idle: dict[int, deque[mmap.mmap]] = {}
        self._idle_bytes = 0
        self.given_up = 0

    @property
    def idle_bytes(self) -> int:
        """Bytes kept for reuse now."""
        return self._idle_bytes

    def lease(self, size: int) -> Lease:
        """Memory of ``size`` bytes; the caller releases it."""
        wanted = _size_class(max(size, 1))
        idle = self._idle.get(wanted)
        if idle:
            try:
                memory = idle.pop()
            except IndexError:  # another thread was faster
                pass
            else:
                self._idle_bytes -= wanted
                return Lease(self, memory, size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (mmap.MAP_POPULATE if wanted <= _TOUCH else 0)
        return Lease(self, mmap.mmap(-1, wanted, flags=flags), size)

    def clear(self) -> None:
        """Return all idle memory to the system, for example between the users of a per-user instance."""
        for idle in self._idle.values():
            while idle:
                memory = idle.pop()
                self._idle_bytes -= len(memory)
                memory.close()

    def _give_back(self, memory: mmap.mmap, *, free: bool) -> None:
        size = len(memory)
        if not free:
            self.given_up += 1
        elif self._idle_bytes + size > self._keep:
            memory.close()
        else:
            self._idle_bytes += size
            idle = self._idle.get(size)
            if idle is None:
                idle = self._idle.setdefault(size, deque())  # another thread may have been faster
            idle.append(memory)
