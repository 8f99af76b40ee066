"""Streams: whatever the cloud does to the frames, the reader gets a prefix of the truth and then an error."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.base.errors import CloisterError, InvalidInput, Tampered
from cloister.crypto.stream import ChunkOpener, ChunkSealer
from cloister.wire import bhttp, envelope

KEY = bytes(32)
parts_of = st.lists(st.binary(max_size=200), max_size=6)


def sealed(parts: list[bytes]) -> list[bytes]:
    return list(envelope.seal_stream(ChunkSealer(KEY, b"b"), parts))


@given(parts=parts_of, cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_any_split_of_the_bytes_gives_the_same_stream(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(sealed(parts))
    reader = envelope.FrameReader(ChunkOpener(KEY, b"b"))
    got = []
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    for start, end in pairwise(edges):
        got.extend(reader.feed(data[start:end]))
    reader.close()
    assert b"".join(got) == b"".join(parts)


@given(parts=st.lists(st.binary(max_size=50), min_size=1, max_size=6), change=st.data())
def test_what_the_cloud_changes_is_an_error(parts: list[bytes], change: st.DataObject) -> None:
    frames = sealed(parts)
    action = change.draw(st.sampled_from(["drop", "repeat", "swap", "cut", "flip", "append"]))
    index = change.draw(st.integers(0, len(frames) - 1))
    altered = list(frames)
    if action == "drop":
        del altered[index]
    elif action == "repeat":
        altered.insert(index, altered[index])
    elif action == "swap":
        other = change.draw(st.integers(0, len(frames) - 1))
        altered[index], altered[other] = altered[other], altered[index]
    data = bytearray(b"".join(altered))
    if action == "cut":
        del data[change.draw(st.integers(0, len(data) - 1)) :]
    elif action == "flip":
        data[change.draw(st.integers(0, len(data) - 1))] ^= 1 << change.draw(st.integers(0, 7))
    elif action == "append":
        data += change.draw(st.binary(min_size=1, max_size=40))
    if bytes(data) == b"".join(frames):
        return
    reader = envelope.FrameReader(ChunkOpener(KEY, b"b"))
    got: list[bytes] = []

    def read() -> None:
        got.extend(reader.feed(bytes(data)))
        reader.close()

    with pytest.raises(CloisterError) as refused:
        read()
    assert isinstance(refused.value, (Tampered, InvalidInput))
    assert b"".join(parts).startswith(b"".join(got))


@given(
    message=st.binary(max_size=3000),
    fields=st.lists(st.tuples(st.from_regex(r"[a-z][a-z-]{0,10}", fullmatch=True), st.text("abc /;=", max_size=20))),
)
def test_binary_http_reads_what_it_writes(message: bytes, fields: list[tuple[str, str]]) -> None:
    head = bhttp.request_head("POST", "/v2", fields, len(message))
    padded = head + message + bhttp.padding_after(len(head) + len(message))
    request = bhttp.parse_request(padded)
    assert (request.method, request.path, request.fields) == ("POST", "/v2", tuple(fields))
    assert bytes(request.content) == message


@given(parts=st.lists(st.binary(min_size=1, max_size=100), max_size=5), cut=st.integers(0, 600))
def test_streamed_binary_http(parts: list[bytes], cut: int) -> None:
    head = bhttp.response_head(200, [("a", "b")], None)
    data = head + b"".join(map(bhttp.stream_part, parts)) + bhttp.STREAM_END + bytes(7)
    response = bhttp.parse_response(data)
    assert response.streamed
    content = bhttp.StreamContent(1000)
    body = bytes(response.content)
    got = content.feed(body[:cut]) + content.feed(body[cut:])
    content.close()
    assert got == parts


def test_a_stream_that_never_ends_is_an_error() -> None:
    content = bhttp.StreamContent(1000)
    content.feed(bhttp.stream_part(b"abc"))
    with pytest.raises(InvalidInput, match="ended before"):
        content.close()
