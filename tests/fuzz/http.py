"""Coverage-guided fuzzing of the HTTP parsers: any bytes give a value or ``InvalidInput``.

What we take for a chunked body, httptools takes too, and for the same bytes.

uv run --group fuzz python -P tests/fuzz/http.py -max_total_time=60
"""

from __future__ import annotations

import contextlib
import sys

import atheris

with atheris.instrument_imports(include=["cloister"]):
    from cloister.adapters.http.framing import Framing
    from cloister.adapters.http.head import parse_request_head, parse_response_head
    from cloister.adapters.http.limits import HeadLimits
    from cloister.base.errors import InvalidInput

import httptools

LIMITS = HeadLimits()


class Oracle:
    """httptools' opinion of a chunked body."""

    def __init__(self) -> None:
        self.body = b""
        self.done = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done = True


def heads(data: bytes) -> None:
    """Both head parsers; what a request's says about its body is one thing, not two."""
    try:
        request = parse_request_head(data, LIMITS)
    except InvalidInput:
        pass
    else:
        lower = data.lower()
        assert not (request.headers.get_all("content-length") and request.headers.get_all("transfer-encoding"))
        assert (request.length is None) == ("transfer-encoding" in request.headers)
        assert lower.count(b"\n") == lower.count(b"\r\n")
    with contextlib.suppress(InvalidInput):
        parse_response_head(data, "GET", LIMITS)


def chunks(data: bytes, cut: int) -> None:
    """In one piece and in two: the same payload, and httptools agrees."""
    whole, halves = Framing.chunked(), Framing.chunked()
    try:
        pieces, used = whole.feed(memoryview(data), 1 << 40)
    except InvalidInput:
        return
    body = b"".join(pieces)
    first, eaten = halves.feed(memoryview(data)[:cut], 1 << 40)
    second, more = halves.feed(memoryview(data)[eaten:], 1 << 40) if eaten == cut else ([], 0)
    assert b"".join(first) + b"".join(second) == body
    assert eaten + more == used
    if whole.done:
        oracle = Oracle()
        parser = httptools.HttpRequestParser(oracle)
        parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        parser.feed_data(data[:used])
        assert oracle.done
        assert oracle.body == body


def one(data: bytes) -> None:
    """The first byte chooses the parser and the cut."""
    if not data:
        return
    if data[0] & 1:
        heads(data[1:])
        heads(b"POST / HTTP/1.1\r\nHost: x\r\n" + data[1:] + b"\r\n\r\n")
    else:
        chunks(data[1:], min(data[0] >> 1, len(data) - 1))


def main() -> None:
    """Fuzz until told to stop."""
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
