"""What a service does to its own process before it takes traffic: allocator, file limit, event loop."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from cloister.base.limits import MIB

T = TypeVar("T")

# <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3


def tune_allocator(*, keep: int = 256 * MIB, mapped_from: int = 32 * MIB) -> bool:
    """Stop glibc from returning memory to the system at every request and faulting it in again at the next.

    :param keep: free bytes at the top of the heap that are kept.
    :param mapped_from: blocks from here on get a mapping of their own; 32 MiB is the most glibc takes.
    :returns: False where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    settings = ((_M_MMAP_THRESHOLD, mapped_from), (_M_TRIM_THRESHOLD, keep), (_M_TOP_PAD, MIB))
    return all(mallopt(name, value) == 1 for name, value in settings)


def trim_heap() -> bool:
    """Give free heap memory back now, for example after a model was loaded or freed; takes milliseconds.

    :returns: False where there is no glibc.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return False
    trim.argtypes = (ctypes.c_size_t,)
    trim.restype = ctypes.c_int
    trim(0)
    return True


def raise_file_limit(wanted: int = 65536) -> int:
    """Allow as many open files as the system lets us, up to ``wanted``; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    limit = wanted if unlimited else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        return limit
    return soft


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a service on uvloop, which receives into our buffers and writes at once; returns what ``main`` returns."""
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
