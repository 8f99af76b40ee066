"""The demonstration's search finds what is there: a search that cannot find proves nothing."""

from __future__ import annotations

import secrets

from hypothesis import given
from hypothesis import strategies as st

from cloister.testing.demonstration import search


@given(data=st.binary(max_size=300), places=st.lists(st.integers(0, 280), max_size=5))
def test_it_finds_exactly_what_occurs(data: bytes, places: list[int]) -> None:
    there = {data[p : p + 16] for p in places if p + 16 <= len(data)}
    absent = {secrets.token_bytes(16) for _ in range(3)}
    assert search.occurring(data, there | absent) == there


def test_needles_across_blocks_are_found() -> None:
    data = secrets.token_bytes(search._BLOCK + 100)
    needle = data[search._BLOCK - 7 : search._BLOCK + 9]
    assert search.occurring(data, {needle, bytes(range(16))}) == {needle}
