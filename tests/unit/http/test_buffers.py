"""Memory is reused only when nobody can see it."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from cloister.adapters.http.buffers import BufferPool


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_memory_is_aligned_and_kept() -> None:
    pool = BufferPool()
    lease = pool.lease(602_112)
    view, address = lease.view, _address(lease.view)
    assert address % mmap.PAGESIZE == 0
    assert len(view) == 602_112
    lease.release()
    lease.release()
    with pytest.raises(ValueError, match="released"):
        view[0]
    again = pool.lease(602_000)
    assert _address(again.view) == address
    again.release()
    assert pool.given_up == 0


def test_borrowed_memory_is_given_up_not_reused() -> None:
    pool = BufferPool()
    for borrow in (lambda view: view[5:9], lambda view: np.frombuffer(view, np.uint8), memoryview):
        lease = pool.lease(100_000)
        lease.view[5] = 7
        borrowed = borrow(lease.view)
        lease.release()
        other = pool.lease(100_000)
        other.view[:] = bytes(100_000)
        assert 7 in bytes(borrowed[:6])
        other.release()
        pool.clear()
    assert pool.given_up == 3


def test_no_more_is_kept_than_allowed() -> None:
    pool = BufferPool(keep=200_000)
    leases = [pool.lease(100_000) for _ in range(4)]
    for lease in leases:
        lease.release()
    assert 0 < pool.idle_bytes <= 200_000
    pool.clear()
    assert pool.idle_bytes == 0


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 600_000, 1 << 20, (1 << 20) + 1, 17_000_000])
def test_little_is_wasted(size: int) -> None:
    pool = BufferPool(keep=1 << 30)
    lease = pool.lease(size)
    assert len(lease.view) == size
    lease.release()
    assert size <= pool.idle_bytes <= max(65_536 + size, size * 1.125)
