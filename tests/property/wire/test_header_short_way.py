"""The short way to read a request's header accepts what the long way accepts, and reads it the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloister.base.errors import InvalidInput
from cloister.base.ids import ModelId
from cloister.wire import cbor, envelope
from cloister.wire.envelope import RequestHeader

blobs = st.binary(min_size=32, max_size=32)
headers = st.builds(
    RequestHeader,
    st.sampled_from(["request-key", "service-key"]),
    st.builds(ModelId, blobs, st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)),
    blobs,
    blobs,
    blobs,
    st.integers(0, 2**62),
)


def the_long_way(data: bytes) -> RequestHeader | str:
    fields = cbor.Fields(cbor.decode(data, limit=4096, what="a header"), "a header")
    fields.integer("suite", low=1, high=1)
    header = RequestHeader(
        fields.text("mode", limit=16),
        ModelId.parse(fields.text("model", limit=200)),
        fields.blob("user", exactly=32),
        fields.blob("key", exactly=32),
        fields.blob("nonce", exactly=32),
        fields.integer("iat"),
    )
    fields.done()
    if header.mode not in ("request-key", "service-key"):
        raise InvalidInput("field-range", "mode")
    return header


@given(headers)
def test_what_is_written_is_read(header: RequestHeader) -> None:
    data = header.encode()
    assert RequestHeader.decode(data) == header == the_long_way(data)
    if 2**16 <= header.issued_at < 2**32:
        assert envelope._decode_usual(data) == header


@given(headers, st.data())
def test_changed_bytes_are_judged_alike(header: RequestHeader, data: st.DataObject) -> None:
    raw = bytearray(header.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(raw[: data.draw(st.integers(len(raw) - 2, len(raw)))])
    try:
        expected: object = the_long_way(changed)
    except InvalidInput:
        expected = None
    try:
        found: object = RequestHeader.decode(changed)
    except InvalidInput:
        found = None
    assert found == expected
