"""Whatever bytes are said to be a backup: an error of ours, or exactly what was written (S8)."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.base.errors import CloisterError
from cloister.keyservice.backup.format import read_backup
from cloister.testing.backups import backup_of, inspected, put_together, take_apart
from cloister.testing.embedded import EmbeddedKeyService
from cloister.wire import cbor

KS = EmbeddedKeyService()
KS.person()
DATA = backup_of(KS)
RECORDS = take_apart(DATA)
NAMES = sorted({name for record in RECORDS for name in record})
leaves = st.one_of(st.integers(-(2**62), 2**62), st.binary(max_size=70), st.text(max_size=9), st.booleans(), st.none())
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)


def tried(data: bytes) -> bool:
    """Whether it was read to its end; anything but an error of ours gets through."""
    try:
        for _ in read_backup(io.BytesIO(data).read):
            continue
    except CloisterError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    assert not tried(data)
    assert not tried(len(data).to_bytes(4, "big") + data)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_any_changed_byte(place: int, change: int) -> None:
    assert not tried(DATA[:place] + bytes([DATA[place] ^ change]) + DATA[place + 1 :])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(RECORDS) - 1), st.sampled_from(NAMES), values)
def test_any_value_in_any_place(index: int, name: str, value: Any) -> None:
    records = [dict(record) for record in RECORDS]
    records[index][name] = value
    data = b"".join(len(item).to_bytes(4, "big") + item for item in map(cbor.encode, records))
    assert tried(data) == (records == RECORDS)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(RECORDS) - 1), max_size=8))
def test_any_order(order: list[int]) -> None:
    data = put_together([RECORDS[index] for index in order] or RECORDS[:1], honest=True)
    assert tried(data) == (order == list(range(len(RECORDS))))


def test_what_is_written_is_read() -> None:
    assert put_together(RECORDS, honest=True) == put_together(RECORDS) == DATA
    assert inspected(DATA).end.size == 2
