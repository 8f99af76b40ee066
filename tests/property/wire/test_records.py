"""Records of streams: however they are cut, the same come out; anything else is refused, within bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.base.errors import InvalidInput, Tampered
from cloister.wire.padding import bucket
from cloister.wire.records import RecordReader, encode_record

LIMIT = 5000

BODIES = st.lists(st.binary(max_size=300) | st.integers(0, LIMIT).map(bytes), max_size=5)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    ends = sorted({min(i, len(data)) for i in at} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@given(BODIES, st.lists(st.integers(0, 30000), max_size=8), st.data())
def test_what_is_written_is_read_however_it_is_cut(bodies: list[bytes], at: list[int], data: st.DataObject) -> None:
    headers = [data.draw(st.integers(0, len(body))) for body in bodies]
    stream = b"".join(encode_record(h, [b[: h // 2], b[h // 2 :]]) for h, b in zip(headers, bodies, strict=True))
    reader = RecordReader(LIMIT)
    found = [record for part in cut(stream, at) for record in reader.feed(part)]
    reader.close()
    assert [(r.header_length, bytes(r.body)) for r in found] == list(zip(headers, bodies, strict=True))


@given(st.integers(0, LIMIT), st.integers(0, LIMIT))
def test_a_size_tells_no_more_than_its_bucket(one: int, two: int) -> None:
    lengths = [len(encode_record(0, [bytes(size)])) for size in (one, two)]
    assert (lengths[0] == lengths[1]) == (bucket(8 + one) == bucket(8 + two))


@given(st.binary(max_size=300), st.integers(1, 400))
def test_a_stream_that_ends_within_a_record_is_truncated(body: bytes, missing: int) -> None:
    whole = bytes(encode_record(0, [body]))
    reader = RecordReader(LIMIT)
    kept = whole[: max(1, len(whole) - missing)]
    assert not list(reader.feed(kept))
    with pytest.raises(Tampered, match="stream-truncated"):
        reader.close()


@given(st.binary(min_size=1, max_size=100), st.data())
def test_one_record_has_one_encoding(body: bytes, data: st.DataObject) -> None:
    """Any other bit is another record, or none."""
    whole = encode_record(len(body), [body])
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    reader = RecordReader(LIMIT)
    try:
        found = list(reader.feed(whole))
        reader.close()
    except (InvalidInput, Tampered):
        return
    assert [bytes(encode_record(r.header_length, [r.body])) for r in found] == [bytes(whole)]
    assert (found[0].header_length, bytes(found[0].body)) != (len(body), body)


@given(st.lists(st.binary(max_size=64), max_size=20))
def test_any_bytes_are_records_or_refused_and_never_kept_beyond_one(parts: list[bytes]) -> None:
    reader = RecordReader(LIMIT)
    try:
        for part in parts:
            for record in reader.feed(part):
                assert record.header_length <= record.body.nbytes <= LIMIT + bucket(8)
            assert len(reader._pending) <= 4 + bucket(8 + LIMIT)
        reader.close()
    except (InvalidInput, Tampered):
        return


@given(st.integers(LIMIT + 1, 2**32 - 1))
def test_a_length_beyond_the_limit_is_refused_before_anything_is_kept(size: int) -> None:
    if size <= bucket(8 + LIMIT):
        return
    with pytest.raises(InvalidInput, match="record-malformed"):
        list(RecordReader(LIMIT).feed(size.to_bytes(4, "big")))
