"""Where bodies end."""

from __future__ import annotations

import pytest

from cloister.adapters.http.framing import Framing
from cloister.base.errors import InvalidInput

HUGE = 1 << 40


def _decode(framing: Framing, data: bytes) -> tuple[bytes, int]:
    pieces, used = framing.feed(memoryview(data), HUGE)
    return b"".join(pieces), used


def test_chunks() -> None:
    framing = Framing.chunked()
    data = b"3;ext=1;flag\r\nabc\r\n00A\r\n0123456789\r\n0\r\nX: y\r\n\r\nGET"
    assert _decode(framing, data) == (b"abc0123456789", len(data) - 3)
    assert framing.done


def test_room_is_respected() -> None:
    framing = Framing.chunked()
    pieces, used = framing.feed(memoryview(b"5\r\nabcde\r\n0\r\n\r\n"), 2)
    assert (b"".join(pieces), used, framing.remaining, framing.done) == (b"ab", 5, 3, False)


def test_a_length_and_the_end() -> None:
    assert Framing.length(0).done
    framing = Framing.length(3)
    assert _decode(framing, b"abcd") == (b"abc", 3)
    assert framing.done
    assert not Framing.length(3).end()
    assert not Framing.chunked().end()
    assert Framing.until_end().end()


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b" 1\r\n",
        b"1 \r\n",
        b"1\n",
        b"1;\r\n",
        b"1;a=\r\n",
        b"1;a\x00\r\n",
        b"1;a\rb\r\n",
        b"1\r\naXX",
        b"1\r\na\n",
        b"1\r\nab\r\n",
        b"1234567890123\r\n",
        b"1;" + b"a" * 300,
        b"0\r\nno colon\r\n",
        b"0\r\nX : y\r\n",
        b"0\r\nX: a\x00\r\n",
        b"0\r\nX: a\n",
        b"0\r\n" + b"X: y\r\n" * 2000,
        b"1\r\r\n",
    ],
)
def test_malformed_chunks_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="chunk-malformed"):
        _decode(Framing.chunked(), data)
