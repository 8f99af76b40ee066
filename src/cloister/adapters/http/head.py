"""Heads of requests and responses (RFC 9112, sections 2 to 6): by httptools, and what it leaves open. Pure.

httptools sees the head only, so that it never copies a body. It refuses bare LF, folded lines, control characters and a
Content-Length beside a Transfer-Encoding; everything two parties could read differently is refused here again,
in the open, so that no version of it can let request smuggling back in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import httptools

from cloister.adapters.http.framing import Framing
from cloister.adapters.http.limits import HeadLimits
from cloister.base.errors import InvalidInput

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9]) [^\r\n]*\r\n")
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Headers:
    """Header fields in the order received, names in lower case, values decoded as Latin-1."""

    __slots__ = ("_first", "items")

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self.items: tuple[tuple[str, str], ...] = tuple(items)
        self._first: dict[str, str] = {}
        for name, value in reversed(self.items):
            self._first[name] = value

    def get(self, name: str, default: str = "") -> str:
        """The first value of this name, in any case."""
        return self._first.get(name.lower(), default)

    def get_all(self, name: str) -> tuple[str, ...]:
        """Every value of this name, in order."""
        wanted = name.lower()
        return tuple([value for key, value in self.items if key == wanted])

    def tokens(self, name: str) -> frozenset[str]:
        """The members of a comma-separated list header, in lower case."""
        if name.lower() not in self._first:
            return frozenset()
        return frozenset(
            token for value in self.get_all(name) for part in value.split(",") if (token := part.strip().lower())
        )

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._first

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"Headers({[name for name, _ in self.items]})"  # names only: values may be credentials


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request before its body. ``length`` is None when the body is chunked."""

    method: str
    path: str
    query: str
    headers: Headers
    minor: int
    keep_alive: bool
    length: int | None
    expects_continue: bool

    def framing(self) -> Framing:
        """Where the body ends."""
        return Framing.chunked() if self.length is None else Framing.length(self.length)


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A response before its body. ``length`` is None when it is not known; then ``chunked`` or until the end."""

    status: int
    headers: Headers
    keep_alive: bool
    length: int | None
    chunked: bool

    def framing(self) -> Framing:
        """Where the body ends."""
        if self.chunked:
            return Framing.chunked()
        return Framing.until_end() if self.length is None else Framing.length(self.length)


class _Fields:
    """What httptools calls back with."""

    def __init__(self, limit: int) -> None:
        self.items: list[tuple[str, str]] = []
        self._limit = limit

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.items) >= self._limit:
            raise InvalidInput("head-too-large", f"more than {self._limit} header fields")
        self.items.append((name.decode("ascii").lower(), value.decode("latin-1").rstrip(" \t")))


def incomplete_head_is_bad(head: bytes, limits: HeadLimits) -> bool:
    """Whether bytes without an end of head can be refused already: too long, or with a bare LF."""
    return len(head) > limits.max_bytes or head.count(b"\n") != head.count(b"\r\n")


def _fields(parser_class: Any, head: bytes, limits: HeadLimits) -> Headers:
    if len(head) > limits.max_bytes:
        raise InvalidInput("head-too-large", f"a head exceeds {limits.max_bytes} bytes")
    lines = head.count(b"\r\n")
    if head.count(b"\n") != lines or head.count(b"\r") != lines:
        raise InvalidInput("head-malformed", "a head holds a bare CR or LF")
    if b"\0" in head or b"\r\n " in head or b"\r\n\t" in head:
        raise InvalidInput("head-malformed", "a head holds a NUL or a folded line")
    fields = _Fields(limits.max_headers)
    try:
        parser_class(fields).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # an offer to speak something else: not taken
    except httptools.HttpParserCallbackError as error:
        if isinstance(error.__context__, InvalidInput):
            raise error.__context__ from None
        raise InvalidInput("head-malformed", "a header field cannot be read") from error
    except httptools.HttpParserError as error:
        raise InvalidInput("head-malformed", f"a head is not HTTP/1.1: {error}") from error
    return Headers(fields.items)


def _body_rules(headers: Headers, minor: int) -> tuple[int | None, bool]:
    """(length, chunked) as the headers say: RFC 9112, section 6.3, with every doubtful case refused."""
    if "transfer-encoding" not in headers and "content-length" not in headers:
        return None, False
    lengths = headers.get_all("content-length")
    codings = headers.get_all("transfer-encoding")
    if codings:
        if lengths:
            raise InvalidInput("framing-ambiguous", "Content-Length beside Transfer-Encoding")
        if len(codings) != 1 or codings[0].lower() != "chunked" or minor == 0:
            raise InvalidInput("transfer-encoding", "the only transfer encoding spoken here is chunked, in HTTP/1.1")
        return None, True
    if len(lengths) != 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise InvalidInput("framing-ambiguous", "Content-Length is repeated or not a number")
    return int(lengths[0]), False


def parse_request_head(head: bytes, limits: HeadLimits) -> RequestHead:
    """A request's head, from its first byte through the empty line.

    :raises InvalidInput: ``head-malformed``, ``head-too-large``, ``framing-ambiguous``, ``transfer-encoding``,
        ``method-unknown``, ``http-version``, ``expectation``.
    """
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise InvalidInput("head-malformed", "the request line is not `METHOD target HTTP/1.1`")
    if line[3] != b"1" or line[4] not in b"01":
        raise InvalidInput("http-version", "only HTTP/1.1 and HTTP/1.0 are spoken here")
    method, minor = line[1].decode(), int(line[4])
    if method not in METHODS:
        raise InvalidInput("method-unknown", "this method is not known here")
    headers = _fields(httptools.HttpRequestParser, head, limits)
    hosts = len(headers.get_all("host"))
    if hosts > 1 or (hosts == 0 and minor == 1):
        raise InvalidInput("head-malformed", "a request names exactly one Host")
    length, chunked = _body_rules(headers, minor)
    expect = headers.get("expect").lower()
    if expect not in {"", "100-continue"}:
        raise InvalidInput("expectation", "the only expectation met here is 100-continue")
    path, query = _target(line[2].decode())
    return RequestHead(
        method=method,
        path=path,
        query=query,
        headers=headers,
        minor=minor,
        keep_alive=minor == 1 and "close" not in headers.tokens("connection"),
        length=None if chunked else length or 0,
        expects_continue=bool(expect) and minor == 1,
    )


def parse_response_head(head: bytes, method: str, limits: HeadLimits) -> ResponseHead:
    """A response's head; ``method`` is that of its request.

    :raises InvalidInput: as for a request; a client reports it as ``bad-gateway-answer``.
    """
    line = _STATUS_LINE.match(head)
    if line is None:
        raise InvalidInput("head-malformed", "the status line is not `HTTP/1.1 NNN reason`")
    minor, status = int(line[1]), int(line[2])
    headers = _fields(httptools.HttpResponseParser, head, limits)
    length, chunked = _body_rules(headers, minor)
    if method == "HEAD" or status < 200 or status in {204, 304}:
        length, chunked = 0, False
    endless = length is None and not chunked
    return ResponseHead(
        status=status,
        headers=headers,
        keep_alive=minor == 1 and not endless and "close" not in headers.tokens("connection"),
        length=length,
        chunked=chunked,
    )


def _target(target: str) -> tuple[str, str]:
    """Path and query of origin-form, absolute-form (which every server must take) or ``*``."""
    if target.startswith("http://"):
        slash = target.find("/", len("http://"))
        target = target[slash:] if slash >= 0 else "/"
    if not target.startswith("/") and target != "*":
        raise InvalidInput("head-malformed", "a request target starts with a slash")
    path, _, query = target.partition("?")
    return path, query


def encode_fields(headers: Iterable[tuple[str, str]]) -> str:
    """Header lines; a name or value that could end its line early is a bug or an attack, and refused.

    :raises InvalidInput: ``header-malformed``.
    """
    lines = []
    for name, value in headers:
        if _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise InvalidInput("header-malformed", f"header {name[:64]!r} cannot be sent")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines)


def encode_request_head(method: str, host: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """A request's head; ``headers`` already say how the body is framed.

    :raises InvalidInput: ``header-malformed``, ``method-unknown``.
    """
    if method not in METHODS:
        raise InvalidInput("method-unknown", f"cannot send method {method[:16]!r}")
    line = f"{method} {target} HTTP/1.1\r\n"
    if not target.startswith("/") or _REQUEST_LINE.fullmatch(line.encode("utf-8")) is None:
        raise InvalidInput("header-malformed", "a request target is visible ASCII and starts with a slash")
    return (line + encode_fields([("host", host), *headers]) + "\r\n").encode("latin-1")
