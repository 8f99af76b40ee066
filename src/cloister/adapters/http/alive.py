"""Notices peers that are gone without a word: a cut network, a machine that lost its power or its address.

Nothing tells a connection of that. Without asking, a request on a kept one waits for its whole deadline, and the next
one for its own.
"""

from __future__ import annotations

import socket
from typing import Any, Final

IDLE_S: Final = 5  # of silence until the peer's kernel is asked whether it is there; its process need not answer
INTERVAL_S: Final = 2
COUNT: Final = 3  # questions without an answer end the connection: 11 s after the last sign of life
# For what was sent and not acknowledged, while which nobody is asked. Only where bodies are taken as they come: a peer
# that takes nothing because it is busy looks the same, so not for streams.
UNACKNOWLEDGED_MS: Final = 15_000


def notice_death(sock: Any, *, streams: bool) -> None:
    """Set the options of a connected TCP socket; ``streams``: a peer may take nothing for a while."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, COUNT)
    if not streams:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
