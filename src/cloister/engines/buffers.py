"""Memory for decrypted weights: private, huge-page advised mappings, and a pool of already touched ones.

The first touch of a page costs more than decrypting into it: a private mapping fills at 3.8 GB/s where Python's default
shared one manages 1.75, and a pooled one needs no fault at all. Buffers are zeroed when they go back into the pool,
so nothing of one model stays for the next (S11).
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable
from typing import Final

from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_MODEL_BYTES, MIB

ALIGNMENT: Final = 64  # a cache line, and the widest vector register; ONNX Runtime's own allocator aligns so
_HUGE_PAGE: Final = 2 * MIB


def aligned(size: int) -> int:
    """``size`` rounded up to :data:`ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class WeightBuffer:
    """A writable mapping of at least ``size`` bytes, kept out of core dumps and of forked children.

    :attr:`view` has exactly ``size`` bytes and starts on a page.
    """

    def __init__(self, size: int) -> None:
        """:raises InvalidInput: ``model-too-large`` for a negative or absurd size."""
        if not 0 <= size <= MAX_MODEL_BYTES:
            raise InvalidInput("model-too-large", f"a weights file of {size} bytes; at most {MAX_MODEL_BYTES}")
        self.capacity = max(mmap.PAGESIZE, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        if self.capacity > _HUGE_PAGE:
            self.capacity = -(-self.capacity // _HUGE_PAGE) * _HUGE_PAGE
        self._map = mmap.mmap(-1, self.capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for advice in ("MADV_HUGEPAGE", "MADV_DONTDUMP", "MADV_DONTFORK"):
            self._advise(advice)
        self.view = memoryview(self._map)[:size]

    def _advise(self, name: str) -> None:
        try:
            self._map.madvise(getattr(mmap, name))
        except (AttributeError, OSError):  # a kernel without transparent huge pages; slower, not wrong
            return

    def resize(self, size: int) -> None:
        """Make :attr:`view` ``size`` bytes long, within :attr:`capacity`. Older views stay as they are."""
        if not 0 <= size <= self.capacity:
            raise InvalidInput("model-too-large", f"{size} bytes do not fit into a buffer of {self.capacity}")
        self.view = memoryview(self._map)[:size]

    def wipe(self) -> None:
        """Overwrite everything with zeros; the pages stay touched."""
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(self._map)), 0, self.capacity)

    def release(self) -> None:
        """Wipe, and give the memory back. Views that somebody still holds keep the (zeroed) mapping alive."""
        self.wipe()
        self.view = memoryview(b"")
        try:
            self._map.close()
        except BufferError:  # an array still points into it; unmapping would crash whoever holds it
            return


class BufferPool:
    """Keeps released buffers, touched and zeroed, for the next model. Safe for many threads.

    :param capacity: bytes that the pool may hold while nobody uses them.
    :param room: bytes that may lie idle while something new is made: what the owner's budget leaves.
    """

    def __init__(self, capacity: int, *, room: Callable[[], int] | None = None) -> None:
        self._capacity = capacity
        self._room = room
        self._free: list[WeightBuffer] = []
        self._lock = threading.Lock()

    @property
    def idle_bytes(self) -> int:
        """Bytes held for reuse."""
        with self._lock:
            return sum(buffer.capacity for buffer in self._free)

    def take(self, size: int) -> WeightBuffer:
        """A zeroed buffer whose view has ``size`` bytes: the smallest idle one that fits and is at most twice as
        large, else a new one."""
        with self._lock:
            fitting = [b for b in self._free if size <= b.capacity <= max(2 * size, _HUGE_PAGE)]
            best = min(fitting, key=lambda b: b.capacity, default=None)
            if best is not None:
                self._free.remove(best)
            surplus = self._surplus()
        for buffer in surplus:
            buffer.release()
        if best is None:
            return WeightBuffer(size)
        best.resize(size)
        return best

    def _surplus(self) -> list[WeightBuffer]:
        """With the lock held: idle buffers that there is no room for."""
        surplus = []
        if self._free and self._room is not None:
            room = max(0, self._room())
            while sum(b.capacity for b in self._free) > room:
                surplus.append(self._free.pop(0))
        return surplus

    def give(self, buffer: WeightBuffer) -> None:
        """Take a buffer back that nothing points into any more; it is wiped, and kept if there is room."""
        buffer.wipe()
        with self._lock:
            if sum(b.capacity for b in self._free) + buffer.capacity <= self._capacity:
                self._free.append(buffer)
                return
        buffer.release()

    def clear(self) -> None:
        """Give all idle memory back."""
        with self._lock:
            idle, self._free = self._free, []
        for buffer in idle:
            buffer.release()


def allocate(size: int) -> memoryview:
    """One buffer outside any pool, for tools and tests; freed when the last view of it goes."""
    return WeightBuffer(size).view
