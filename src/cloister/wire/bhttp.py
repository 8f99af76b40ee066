"""Binary HTTP messages (RFC 9292), the plaintext inside the envelope (spec/protocol.md, section 9).

Known-length form for requests and responses, with zero padding after the message; indeterminate-length form for
streams. Only what is in use: no informational responses, no trailers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloister.base.errors import InvalidInput
from cloister.base.limits import KIB
from cloister.crypto.stream import Buffer
from cloister.wire.padding import bucket

Field = tuple[str, str]

MAX_FIELDS: Final = 64
MAX_FIELD_SECTION: Final = 16 * KIB
_SCHEME: Final = b"https"
_KNOWN_REQUEST, _KNOWN_RESPONSE, _STREAM_REQUEST, _STREAM_RESPONSE = range(4)
_NAME_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


@dataclass(frozen=True, slots=True)
class Request:
    """An inner request; ``content`` is a view into the opened message.

    :param streamed: whether content follows as a stream (``content`` is then its beginning, still encoded).
    """

    method: str
    path: str
    fields: tuple[Field, ...]
    content: memoryview
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """An inner response; as :class:`Request`."""

    status: int
    fields: tuple[Field, ...]
    content: memoryview
    streamed: bool = False


def field(fields: Sequence[Field], name: str) -> str | None:
    """The value of the only field of this name.

    :raises InvalidInput: ``bhttp-malformed`` when there are several.
    """
    values = [value for key, value in fields if key == name]
    if len(values) > 1:
        raise InvalidInput("bhttp-malformed", f"the message has the field {name!r} more than once")
    return values[0] if values else None


# --- writing ---


def request_head(method: str, path: str, fields: Sequence[Field], content_length: int | None) -> bytes:
    """Everything before the content; ``None`` begins a stream of :func:`stream_part`."""
    control = b"".join(map(_text, (method.encode(), _SCHEME, b"", path.encode())))
    return _head(_KNOWN_REQUEST, _STREAM_REQUEST, control, encode_fields(fields), content_length)


def response_head(status: int, fields: Sequence[Field], content_length: int | None, *, encoded: bytes = b"") -> bytes:
    """Everything before the content; ``None`` begins a stream.

    :param encoded: further fields, from :func:`encode_fields`: for those that stay the same from response to response.
    """
    section = encode_fields(fields) + encoded
    return _head(_KNOWN_RESPONSE, _STREAM_RESPONSE, _integer(status), section, content_length)


def encode_fields(fields: Sequence[Field]) -> bytes:
    """A field section's lines."""
    return b"".join(_text(name.encode()) + _text(value.encode()) for name, value in fields)


def _head(known: int, stream: int, control: bytes, section: bytes, content_length: int | None) -> bytes:
    if content_length is None:
        return _integer(stream) + control + section + b"\x00"
    return _integer(known) + control + _integer(len(section)) + section + _integer(content_length)


def padding_after(length: int) -> bytes:
    """Zeros after a known-length message of ``length`` bytes: the empty trailer section, then up to the bucket."""
    return bytes(bucket(length + 1) - length)


def stream_part(content: Buffer) -> bytes:
    """One chunk of a stream's content; never empty."""
    view = memoryview(content).cast("B")
    return _integer(view.nbytes) + view.tobytes()


STREAM_END: Final = b"\x00\x00"  # end of content, empty trailer section


def _integer(value: int) -> bytes:
    """RFC 9000 variable-length integer, shortest form."""
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    return (value | 3 << 62).to_bytes(8, "big")


def _text(value: bytes) -> bytes:
    return _integer(len(value)) + value


# --- reading ---


class _Reader:
    __slots__ = ("_view", "position")

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.position = 0

    def integer(self) -> int:
        head = self.take(1)[0]
        if head < 64:
            return head
        length = 1 << (head >> 6)
        value = head & 0x3F
        for byte in self.take(length - 1):
            value = value << 8 | byte
        return value

    def take(self, length: int) -> memoryview:
        if length > self._view.nbytes - self.position:
            raise InvalidInput("bhttp-malformed", "the inner message is cut short")
        start = self.position
        self.position += length
        return self._view[start : self.position]

    def text(self, limit: int, what: str) -> str:
        length = self.integer()
        if length > limit:
            raise InvalidInput("bhttp-malformed", f"the inner message's {what} is longer than {limit} bytes")
        try:
            value = bytes(self.take(length)).decode("ascii")
        except UnicodeDecodeError as error:
            raise InvalidInput("bhttp-malformed", f"the inner message's {what} is not ASCII") from error
        if not value.isprintable():
            raise InvalidInput("bhttp-malformed", f"the inner message's {what} holds control characters")
        return value


def parse_request(message: Buffer) -> Request:
    """:raises InvalidInput: ``bhttp-malformed``."""
    view = memoryview(message)
    reader = _Reader(view)
    kind = reader.integer()
    if kind not in (_KNOWN_REQUEST, _STREAM_REQUEST):
        raise InvalidInput("bhttp-malformed", "the inner message is not a binary HTTP request")
    method = reader.text(16, "method")
    scheme = reader.text(16, "scheme")
    reader.text(256, "authority")
    path = reader.text(2048, "path")
    if scheme != _SCHEME.decode() or not method.isalpha() or not path.startswith("/"):
        raise InvalidInput("bhttp-malformed", "the inner request's method, scheme or path is malformed")
    streamed = kind == _STREAM_REQUEST
    fields = _stream_fields(reader) if streamed else _known_fields(reader)
    return Request(method, path, fields, view[reader.position :] if streamed else _content(reader, view), streamed)


def parse_response(message: Buffer) -> Response:
    """:raises InvalidInput: ``bhttp-malformed``."""
    view = memoryview(message)
    reader = _Reader(view)
    kind = reader.integer()
    if kind not in (_KNOWN_RESPONSE, _STREAM_RESPONSE):
        raise InvalidInput("bhttp-malformed", "the inner message is not a binary HTTP response")
    status = reader.integer()
    if not 200 <= status <= 599:
        raise InvalidInput("bhttp-malformed", f"the inner response's status is {status}")
    streamed = kind == _STREAM_RESPONSE
    fields = _stream_fields(reader) if streamed else _known_fields(reader)
    return Response(status, fields, view[reader.position :] if streamed else _content(reader, view), streamed)


def _known_fields(reader: _Reader) -> tuple[Field, ...]:
    length = reader.integer()
    if length > MAX_FIELD_SECTION:
        raise InvalidInput("bhttp-malformed", f"the inner message's fields exceed {MAX_FIELD_SECTION} bytes")
    section = _Reader(reader.take(length))
    fields: list[Field] = []
    while section.position < length:
        fields.append(_field(section, section.text(256, "field name")))
        if len(fields) > MAX_FIELDS:
            raise InvalidInput("bhttp-malformed", f"the inner message has more than {MAX_FIELDS} fields")
    return tuple(fields)


def _stream_fields(reader: _Reader) -> tuple[Field, ...]:
    fields: list[Field] = []
    while name := reader.text(256, "field name"):
        fields.append(_field(reader, name))
        if len(fields) > MAX_FIELDS:
            raise InvalidInput("bhttp-malformed", f"the inner message has more than {MAX_FIELDS} fields")
    return tuple(fields)


def _field(reader: _Reader, name: str) -> Field:
    if not name or not _NAME_CHARS.issuperset(name):
        raise InvalidInput("bhttp-malformed", "the inner message has a malformed field name")
    return name, reader.text(MAX_FIELD_SECTION, "field value")


def _content(reader: _Reader, view: memoryview) -> memoryview:
    content = reader.take(reader.integer())
    rest = view[reader.position :]
    if rest.tobytes() != bytes(rest.nbytes):
        raise InvalidInput("bhttp-malformed", "the inner message has trailers, or padding that is not zero")
    return content


class StreamContent:
    """Reads the content of a streamed message as its bytes arrive; bounded by a chunk."""

    def __init__(self, limit: int) -> None:
        self._pending = bytearray()
        self._limit = limit
        self._terminators = 0

    def feed(self, data: Buffer) -> list[bytes]:
        """The parts that are now complete.

        :raises InvalidInput: ``bhttp-malformed``.
        """
        self._pending += data
        parts: list[bytes] = []
        while self._pending:
            if self._terminators:
                if any(self._pending):
                    raise InvalidInput("bhttp-malformed", "the inner stream has trailers, or padding that is not zero")
                self._terminators += len(self._pending)
                self._pending.clear()
                break
            width = 1 << (self._pending[0] >> 6)
            if len(self._pending) < width:
                break
            length = int.from_bytes(self._pending[:width], "big") & ~(3 << (8 * width - 2))
            if length == 0:
                del self._pending[:width]
                self._terminators = 1
                continue
            if length > self._limit:
                raise InvalidInput("bhttp-malformed", f"a part of the inner stream is longer than {self._limit} bytes")
            if len(self._pending) < width + length:
                break
            parts.append(bytes(self._pending[width : width + length]))
            del self._pending[: width + length]
        return parts

    def close(self) -> None:
        """:raises InvalidInput: ``bhttp-malformed`` when the content never ended."""
        if not self._terminators:
            raise InvalidInput("bhttp-malformed", "the inner stream ended before its content did")
