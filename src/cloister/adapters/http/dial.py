"""New connections of the asynchronous client: to a Unix socket, over TCP, with TLS, through a proxy's tunnel."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from cloister.adapters.http.origin import Origin, Proxy
from cloister.adapters.http.tunnel import TunnelAnswer
from cloister.adapters.http.unix import socket_name

if TYPE_CHECKING:
    import ssl

P = TypeVar("P", bound=asyncio.BaseProtocol)
_READ: Final = 4096


async def dial(make: Callable[[], P], origin: Origin, *, tls: Callable[[], ssl.SSLContext], proxy: Proxy | None) -> P:
    """A protocol of ``make`` connected to ``origin``. The caller bounds the time.

    :param tls: asked only for ``https``: loading the system's roots takes a while.
    :raises OSError: it cannot be reached, or TLS fails. :raises Unavailable: ``proxy-refused``.
    """
    loop = asyncio.get_running_loop()
    if origin.scheme == "unix":
        with socket_name(Path(origin.path)) as name:
            return (await loop.create_unix_connection(make, name))[1]
    if origin.scheme == "http":
        return (await loop.create_connection(make, origin.host, origin.port))[1]
    if proxy is None or not proxy.serves(origin):
        return (await loop.create_connection(make, origin.host, origin.port, ssl=tls()))[1]
    sock = await _open_tunnel(proxy, origin)
    try:
        return (await loop.create_connection(make, sock=sock, ssl=tls(), server_hostname=origin.host))[1]
    except BaseException:
        sock.close()
        raise


async def _open_tunnel(proxy: Proxy, origin: Origin) -> socket.socket:
    """A connected, non-blocking socket whose other end is ``origin``."""
    loop = asyncio.get_running_loop()
    sock = await _connect(proxy.host, proxy.port)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_sendall(sock, proxy.connect_request(origin))
        answer = TunnelAnswer(proxy)
        while not answer.feed(await loop.sock_recv(sock, _READ)):
            pass
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(host: str, port: int) -> socket.socket:
    """To the first of the host's addresses that answers."""
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, kind, protocol, _, place in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, place)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure or OSError(f"{host} has no address")
