"""A pool of weight buffers keeps within what its owner's budget leaves."""

from __future__ import annotations

from cloister.base.limits import MIB
from cloister.engines.buffers import BufferPool


def test_idle_buffers_go_when_something_new_needs_their_room() -> None:
    room = [64 * MIB]
    pool = BufferPool(64 * MIB, room=lambda: room[0])
    for size in (4 * MIB, 16 * MIB):
        pool.give(pool.take(size))
    assert pool.idle_bytes == 20 * MIB
    fitting = pool.take(4 * MIB)
    assert pool.idle_bytes == 16 * MIB, "there was room for the rest"
    room[0] = 8 * MIB
    large = pool.take(40 * MIB)
    assert pool.idle_bytes == 0
    room[0] = -1
    pool.give(fitting)
    assert pool.take(4 * MIB) is fitting, "what fits takes no room"
    large.release()
    fitting.release()
