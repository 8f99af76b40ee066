"""Where a message body ends (RFC 9112, sections 6 and 7): a length, chunks, or the end of the stream. Pure.

Written by hand, unlike the heads, because a parser with callbacks copies every body byte; it is some sixty lines,
compared with httptools by a property test and by tests/fuzz/http.py. Stricter than the RFC: no blanks in a chunk-size
line, no bare CR or LF anywhere, extensions and trailers short (and dropped).
"""

from __future__ import annotations

import re
from typing import Final

from cloister.base.errors import InvalidInput

MAX_LINE: Final = 256  # a chunk-size line with its extension, or one trailer line
MAX_TRAILERS: Final = 4096
_ENDLESS: Final = 1 << 62
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_EXTENSION: Final = rb";" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb'|"[\t\x20\x21\x23-\x5b\x5d-\x7e]*"))?'
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,12})(?:" + _EXTENSION + rb")*")
_TRAILER: Final = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*")

# states of a chunked body
_DATA: Final = 0
_DATA_END: Final = 1
_SIZE_LINE: Final = 2
_TRAILERS: Final = 3


class Framing:
    """Progress through one body. Make it with :meth:`length`, :meth:`chunked` or :meth:`until_end`.

    ``remaining`` payload bytes may be read straight to where they belong and reported with :meth:`took`; any other
    bytes pass through :meth:`feed`.
    """

    __slots__ = ("_chunked", "_line", "_state", "_trailer_bytes", "_until_end", "done", "remaining")

    def __init__(self, remaining: int, *, chunked: bool = False, until_end: bool = False) -> None:
        self.remaining = remaining
        self.done = not chunked and remaining == 0
        self._chunked = chunked
        self._until_end = until_end
        self._state = _SIZE_LINE if chunked else _DATA
        self._line = b""
        self._trailer_bytes = 0

    @classmethod
    def length(cls, size: int) -> Framing:
        """A body of ``size`` bytes."""
        return cls(size)

    @classmethod
    def chunked(cls) -> Framing:
        """A body in chunks."""
        return cls(0, chunked=True)

    @classmethod
    def until_end(cls) -> Framing:
        """A response body that ends with its connection."""
        return cls(_ENDLESS, until_end=True)

    def took(self, count: int) -> None:
        """``count`` payload bytes, at most ``remaining``, have been dealt with."""
        self.remaining -= count
        if self.remaining == 0:
            if self._chunked:
                self._state = _DATA_END
            else:
                self.done = True

    def feed(self, data: memoryview, room: int) -> tuple[list[memoryview], int]:
        """Split ``data`` into payload; stop at the end of the message or after ``room`` payload bytes.

        :returns: payload pieces (views of ``data``), and how many bytes of ``data`` were used.
        :raises InvalidInput: ``chunk-malformed``.
        """
        pieces: list[memoryview] = []
        position, end = 0, len(data)
        while position < end and not self.done:
            if self.remaining:
                count = min(self.remaining, end - position, room)
                if count == 0:
                    break
                pieces.append(data[position : position + count])
                position += count
                room -= count
                self.took(count)
            else:
                position += self._feed_line(data, position)
        return pieces, position

    def end(self) -> bool:
        """The stream ended here: was the body complete?"""
        if self._until_end:
            self.done = True
        return self.done

    def _feed_line(self, data: memoryview, start: int) -> int:
        part = bytes(data[start : start + MAX_LINE + 2 - len(self._line)])
        if self._state == _DATA_END and not b"\r\n".startswith((self._line + part)[:2]):
            raise InvalidInput("chunk-malformed", "a chunk is longer than its size says")
        newline = part.find(b"\n")
        if newline < 0:
            self._line += part
            if len(self._line) >= MAX_LINE + 2:
                raise InvalidInput("chunk-malformed", f"a chunk-size or trailer line exceeds {MAX_LINE} bytes")
            return len(part)
        line, self._line = self._line + part[: newline + 1], b""
        if not line.endswith(b"\r\n"):
            raise InvalidInput("chunk-malformed", "a chunk-size or trailer line does not end in CRLF")
        self._take_line(line[:-2])
        return newline + 1

    def _take_line(self, line: bytes) -> None:
        if self._state == _SIZE_LINE:
            match = _SIZE.fullmatch(line)
            if match is None:
                raise InvalidInput("chunk-malformed", "a chunk size is not hexadecimal")
            self.remaining = int(match[1], 16)
            self._state = _DATA if self.remaining else _TRAILERS
        elif self._state == _DATA_END:
            self._state = _SIZE_LINE
        elif not line:
            self.done = True
        else:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_TRAILERS or _TRAILER.fullmatch(line) is None:
                raise InvalidInput("chunk-malformed", "a trailer is malformed, or trailers are too long")
