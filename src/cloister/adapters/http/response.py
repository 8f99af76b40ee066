"""Heads of answers, and chunks. Pure but for the date."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from cloister.adapters.http.content import Buffer
from cloister.adapters.http.head import encode_fields
from cloister.adapters.http.message import REASONS, Response

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_BODILESS: Final = frozenset({204, 304})


class _Date:
    """The Date line, made anew once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._line = ""

    def line(self) -> str:
        now = int(time.time())  # noqa: TID251  # an adapter: the date on an answer decides nothing
        if now != self._second:
            t = time.gmtime(now)
            day, month = _DAYS[t.tm_wday], _MONTHS[t.tm_mon - 1]
            clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
            self._line = f"date: {day}, {t.tm_mday:02} {month} {t.tm_year} {clock} GMT\r\n"
            self._second = now
        return self._line


_date = _Date()


def answer_head(
    response: Response, length: int | None, *, method: str, close: bool, chunked: bool = False
) -> tuple[bytes, bool]:
    """(head, whether no body follows it). ``length`` None and not chunked: until the end of the connection."""
    status = response.status
    bodiless = method == "HEAD" or status in _BODILESS
    parts = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\n", _date.line(), encode_fields(response.headers)]
    if status in _BODILESS:
        pass
    elif chunked:
        parts.append("transfer-encoding: chunked\r\n")
    elif length is not None:
        parts.append(f"content-length: {length}\r\n")
    if close:
        parts.append("connection: close\r\n")
    parts.append("\r\n")
    return "".join(parts).encode("latin-1"), bodiless


def chunk(piece: Buffer) -> Sequence[Buffer]:
    """One chunk, without copying its payload."""
    return (b"%x\r\n" % len(piece), piece, b"\r\n")
