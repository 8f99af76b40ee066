"""Heads: what two parties could read differently is refused by both."""

from __future__ import annotations

import pytest

from cloister.adapters.http.head import Headers, encode_request_head, parse_request_head, parse_response_head
from cloister.adapters.http.limits import HeadLimits
from cloister.base.errors import InvalidInput

LIMITS = HeadLimits()


def _request(*lines: bytes, start: bytes = b"POST /a?b=c HTTP/1.1", host: bool = True) -> bytes:
    return b"\r\n".join((start, *((b"Host: x",) if host else ()), *lines, b"", b""))


def test_a_head_is_read() -> None:
    head = parse_request_head(_request(b"Content-Length: 5", b"X-A: 1", b"x-a:  2 "), LIMITS)
    assert (head.method, head.path, head.query, head.length, head.keep_alive) == ("POST", "/a", "b=c", 5, True)
    assert head.headers.get_all("X-a") == ("1", "2")
    assert head.headers.get("x-A") == "1"
    assert "X-A" in head.headers
    assert "secret" not in repr(Headers([("authorization", "secret")]))


def test_the_absolute_form_is_taken() -> None:
    assert parse_request_head(_request(start=b"GET http://h:1/p?q HTTP/1.1"), LIMITS).path == "/p"


REFUSED = [
    # name, head, code
    ("both framings", _request(b"Content-Length: 5", b"Transfer-Encoding: chunked"), None),
    ("both framings, other order", _request(b"Transfer-Encoding: chunked", b"Content-Length: 5"), None),
    ("length twice, equal", _request(b"Content-Length: 5", b"Content-Length: 5"), None),
    ("length twice, different", _request(b"Content-Length: 5", b"Content-Length: 6"), None),
    ("length as a list", _request(b"Content-Length: 5, 5"), None),
    ("length with a sign", _request(b"Content-Length: +5"), None),
    ("negative length", _request(b"Content-Length: -1"), None),
    ("hexadecimal length", _request(b"Content-Length: 0x10"), None),
    ("empty length", _request(b"Content-Length:"), None),
    ("length beyond 64 bits", _request(b"Content-Length: 99999999999999999999"), None),
    ("length with a blank inside", _request(b"Content-Length: 5 5"), None),
    ("unknown coding", _request(b"Transfer-Encoding: gzip, chunked"), "transfer-encoding"),
    ("coding twice", _request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), None),
    ("coding not last", _request(b"Transfer-Encoding: chunked, identity"), None),
    ("coding disguised", _request(b"Transfer-Encoding: xchunked"), None),
    ("coding with a vertical tab", _request(b"Transfer-Encoding: \x0bchunked"), None),
    ("coding in HTTP/1.0", _request(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0"), "transfer-encoding"),
    ("blank before the colon", _request(b"Content-Length : 5"), None),
    ("folded line", _request(b"X: a", b" b"), "head-malformed"),
    ("folded with a tab", _request(b"X: a", b"\tb"), "head-malformed"),
    ("bare LF", b"GET / HTTP/1.1\nHost: x\n\n\r\n\r\n", "head-malformed"),
    ("bare LF inside", _request(b"X: a\nContent-Length: 5"), "head-malformed"),
    ("bare CR inside", _request(b"X: a\rContent-Length: 5"), "head-malformed"),
    ("NUL", _request(b"X: a\0b"), "head-malformed"),
    ("control character", _request(b"X: a\x01b"), "head-malformed"),
    ("no name", _request(b": a"), "head-malformed"),
    ("no colon", _request(b"abc"), "head-malformed"),
    ("no Host", _request(host=False), "head-malformed"),
    ("two Hosts", _request(b"Host: y"), "head-malformed"),
    ("two blanks", _request(start=b"GET  / HTTP/1.1"), "head-malformed"),
    ("no version", _request(start=b"GET /"), "head-malformed"),
    ("HTTP/2", _request(start=b"GET / HTTP/2.0"), "http-version"),
    ("HTTP/1.2", _request(start=b"GET / HTTP/1.2"), "http-version"),
    ("other protocol", _request(start=b"GET / RTSP/1.0"), "head-malformed"),
    ("method in lower case", _request(start=b"get / HTTP/1.1"), "head-malformed"),
    ("unknown method", _request(start=b"BREW / HTTP/1.1"), "method-unknown"),
    ("tunnel", _request(start=b"CONNECT a:1 HTTP/1.1"), "method-unknown"),
    ("target without slash", _request(start=b"GET a HTTP/1.1"), "head-malformed"),
    ("target with a byte above 127", _request(start=b"GET /\xff HTTP/1.1"), "head-malformed"),
    ("other expectation", _request(b"Expect: miracle"), "expectation"),
    ("too many fields", _request(*[b"X: a"] * 65), "head-too-large"),
    ("too long", _request(b"X: " + b"a" * 20_000), "head-too-large"),
    ("nothing", b"\r\n\r\n", "head-malformed"),
]


@pytest.mark.parametrize(("head", "code"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_could_be_read_in_two_ways_is_refused(head: bytes, code: str | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_request_head(head, LIMITS)
    assert code is None or caught.value.code == code


def test_an_upgrade_is_not_taken() -> None:
    head = parse_request_head(_request(b"Connection: Upgrade", b"Upgrade: h2c", start=b"GET / HTTP/1.1"), LIMITS)
    assert head.path == "/"


@pytest.mark.parametrize(
    ("lines", "method", "length", "chunked", "keep"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "GET", 3, False, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", None, True, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", "GET", None, False, False),
        (b"HTTP/1.1 204 \r\n\r\n", "GET", 0, False, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "HEAD", 0, False, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n", "GET", 3, False, False),
    ],
)
def test_a_response_head_says_where_its_body_ends(
    lines: bytes, method: str, length: int | None, chunked: bool, keep: bool
) -> None:
    head = parse_response_head(lines, method, LIMITS)
    assert (head.length, head.chunked, head.keep_alive) == (length, chunked, keep)


def test_nothing_can_be_slipped_into_a_head_that_is_sent() -> None:
    for target, headers in (("/a b", []), ("a", []), ("/", [("x", "a\r\ny: b")]), ("/", [("x y", "a")]), ("/é", [])):
        with pytest.raises(InvalidInput, match="header-malformed"):
            encode_request_head("GET", "h", target, headers)
