"""What a proxy answers to CONNECT (RFC 9110, section 9.3.6). Pure; a proxy is a stranger like any other."""

from __future__ import annotations

import re
from typing import Final

from cloister.adapters.http.origin import Proxy
from cloister.base.errors import Unavailable

_MAX_ANSWER: Final = 8192
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r]")


class TunnelAnswer:
    """Feed it until it says that the tunnel is open."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._seen = b""

    def feed(self, data: bytes) -> bool:
        """Take what the proxy sent, empty at the end of its stream; returns whether the tunnel is open.

        A server in a tunnel speaks second, so bytes behind the answer are the proxy's own and refused.

        :raises Unavailable: ``proxy-refused``: another status than 2xx, or no HTTP.
        """
        self._seen += data
        head, end, rest = self._seen.partition(b"\r\n\r\n")
        status = _STATUS.match(self._seen)
        if status is not None and status[1][:1] != b"2":
            hint = "Put user and password into HTTPS_PROXY." if status[1] == b"407" else None
            raise self._refused(f"answers {status[1].decode()} to CONNECT", hint)
        if end:
            if status is None or rest:
                raise self._refused("does not answer CONNECT as HTTP/1.1 does")
            return True
        if not data:
            raise self._refused("closed the connection instead of opening a tunnel")
        if len(head) > _MAX_ANSWER:
            raise self._refused("answers CONNECT with a head without end")
        return False

    def _refused(self, what: str, hint: str | None = None) -> Unavailable:
        return Unavailable("proxy-refused", f"the proxy {self._proxy.host}:{self._proxy.port} {what}", hint=hint)
