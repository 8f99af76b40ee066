"""Limits of the HTTP server and clients, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.base.limits import KIB, MAX_REQUEST_BODY, MAX_RESPONSE_BODY, MIB

SCRATCH = 16 * KIB  # one read while waiting for a head: holds any small request whole, and little of a large body
SEND_BUFFER = 2 * MIB  # of a Unix socket: 602 KB go out in one call; the usual 208 KiB cost 25 % more processor
WINDOW = 256 * KIB  # half of a stream's buffer; one half is read while the other is being used


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Of a request's or response's head.

    :param max_bytes: our own heads have about 300 bytes; proxies in front add a few hundred.
    :param max_headers: parsing and lookup stay short.
    """

    max_bytes: int = 16 * KIB
    max_headers: int = 64


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Of one server. Times are in seconds.

    :param max_body: largest request body ``Request.body`` takes; a sealed body is a little longer than its plaintext.
    :param max_connections: open connections; one more takes the place of one that keeps us waiting (``crowd.py``), or
        is answered 503 and closed.
    :param idle_s: a connection with nothing under way.
    :param head_s: from a head's first byte to its last (slowloris).
    :param body_idle_s: between two reads of a body the application waits for.
    :param min_body_rate: bytes per second a sender must reach over the whole body, after ``body_idle_s`` of grace.
    :param write_stall_s: a client that takes nothing of its answer; after as long also one that takes less of it than
        ``min_body_rate``.
    :param linger_s: how long the rest of a refused body is read and dropped, so that the answer is not lost to a reset.
    """

    head: HeadLimits = HeadLimits()
    max_body: int = MAX_REQUEST_BODY + MIB
    max_connections: int = 4096
    idle_s: float = 75.0
    head_s: float = 10.0
    body_idle_s: float = 10.0
    min_body_rate: int = 4 * KIB
    write_stall_s: float = 30.0
    linger_s: float = 2.0


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Of one client. Times are in seconds.

    :param max_answer: largest body a buffered answer may have; streams are bounded by whoever reads them.
    :param connect_s: for a connection, TLS and a proxy's tunnel included.
    :param deadline_s: for a whole buffered call, or until the head of a streamed one; calls may name their own.
    :param stall_s: between two reads of a streamed answer.
    :param keep_s: how long an idle connection is kept; below the server's ``idle_s``, so that it seldom dies in use.
    :param max_per_origin: open connections to one origin; further calls wait.
    :param max_waiting: calls waiting for a connection; one more is refused as ``client-overloaded``.
    """

    head: HeadLimits = HeadLimits()
    max_answer: int = MAX_RESPONSE_BODY + MIB
    connect_s: float = 10.0
    deadline_s: float = 60.0
    stall_s: float = 30.0
    keep_s: float = 30.0
    max_per_origin: int = 256
    max_waiting: int = 4096
