"""A tunnel through an HTTP proxy, for the asynchronous client."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Final

from cloister.adapters.http.origin import Origin, Proxy

MAX_ANSWER: Final = 8192
ACCEPTED: Final = re.compile(rb"HTTP/1\.[01] 2[0-9][0-9][ \r]")


async def open_tunnel(proxy: Proxy, origin: Origin) -> socket.socket:
    """A connected, non-blocking socket whose other end is ``origin``.

    :raises ConnectionError: the proxy refuses, or does not speak HTTP.
    :raises OSError: it cannot be reached.
    """
    loop = asyncio.get_running_loop()
    places = await loop.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    sock = socket.socket(places[0][0], socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, places[0][4])
        await loop.sock_sendall(sock, proxy.connect_request(origin))
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            more = await loop.sock_recv(sock, MAX_ANSWER)
            answer += more
            if not more or len(answer) > MAX_ANSWER:
                raise ConnectionError("the proxy's answer is not HTTP")
        check_tunnel(answer)
    except BaseException:
        sock.close()
        raise
    return sock


def check_tunnel(answer: bytes) -> None:
    """Raise ConnectionError unless the proxy's answer opens the tunnel."""
    if ACCEPTED.match(answer) is None:
        raise ConnectionError("the proxy refuses a tunnel")
