"""Bounded HTTP GET: time, size and destination are limited, whatever the other side does (spec/attestation.md, 8.1).

Proxies are those of the environment (``HTTPS_PROXY``, ``NO_PROXY``). Redirects are refused, not followed. A deadline
covers the whole exchange, also one that trickles byte by byte: when it passes, the connection is shut down under the
reader.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import COLLATERAL_DEADLINE_S, COLLATERAL_TIMEOUT_S

_MAX_RETRY_AFTER: Final = 3600


@dataclass(frozen=True, slots=True)
class Answer:
    """A 200: the body, and the headers by lower-case name."""

    body: bytes
    headers: Mapping[str, str]


class Connection:
    """What :meth:`Fetcher.session` gives: several requests over kept connections, under one deadline."""

    def __init__(self, client: httpx.Client, watch: _Watch) -> None:
        self._client = client
        self._watch = watch

    def get(self, url: str, *, limit: int) -> Answer:
        """GET; only a 200 with a body of at most ``limit`` bytes is an answer.

        :raises Unavailable: ``collateral-unavailable`` for anything that may be otherwise later, also 404.
        :raises InvalidInput: ``collateral-malformed`` for a redirect, an encoding nobody asked for, too many bytes.
        """
        try:
            with self._client.stream("GET", url, extensions={"trace": self._watch.trace}) as response:
                self._check_status(response, url)
                body = bytearray()
                for piece in response.iter_raw():
                    body += piece
                    if len(body) > limit:
                        raise InvalidInput("collateral-malformed", f"{url} answers with more than {limit} bytes")
                headers = {name.lower(): value for name, value in response.headers.items()}
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
            why = "the deadline passed" if self._watch.expired else (str(error) or type(error).__name__)
            raise Unavailable("collateral-unavailable", f"{url} did not answer: {why}") from error
        if self._watch.expired:
            raise Unavailable("collateral-unavailable", f"{url} did not answer: the deadline passed")
        return Answer(bytes(body), headers)

    @staticmethod
    def _check_status(response: httpx.Response, url: str) -> None:
        if response.is_redirect or 300 <= response.status_code < 400:
            raise InvalidInput("collateral-malformed", f"{url} answers with a redirect, which is not followed")
        if response.status_code != 200:
            text = response.headers.get("retry-after", "")
            seconds = min(int(text), _MAX_RETRY_AFTER) if text.isascii() and text.isdigit() else None
            raise Unavailable(
                "collateral-unavailable", f"{url} answers with status {response.status_code}", retry_after=seconds
            )
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise InvalidInput("collateral-malformed", f"{url} answers in an encoding that was not asked for")


class Fetcher:
    """Opens sessions.

    :param timeout: seconds for each wait; ``deadline`` for a whole session.
    :param ca_file: certificate authorities of the server, for a PCCS in one's own house; by default the system's.
    """

    def __init__(
        self,
        *,
        timeout: float = COLLATERAL_TIMEOUT_S,
        deadline: float = COLLATERAL_DEADLINE_S,
        ca_file: Path | None = None,
    ) -> None:
        self._timeout = timeout
        self._deadline = deadline
        self._ca_file = ca_file

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """Connections that live as long as the block."""
        context: ssl.SSLContext | bool = True
        if self._ca_file is not None:
            context = ssl.create_default_context(cafile=str(self._ca_file))
        headers = {"accept-encoding": "identity", "user-agent": "cloister"}
        with (
            _Watch(self._deadline) as watch,
            httpx.Client(timeout=self._timeout, verify=context, headers=headers, follow_redirects=False) as client,
        ):
            yield Connection(client, watch)


class _Watch:
    """Shuts connections down when the deadline passes: a timeout per read alone never ends a trickle."""

    def __init__(self, deadline: float) -> None:
        self.expired = False
        self._descriptors: list[int] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(deadline, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> _Watch:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.pop())

    def trace(self, _event: str, info: dict[str, Any]) -> None:
        """httpcore's trace hook: notes each connection as it is made, by a descriptor of its own."""
        ask = getattr(info.get("return_value"), "get_extra_info", None)
        connection = ask("socket") if ask is not None else None
        if connection is None or connection.fileno() < 0:
            return
        with self._lock:
            self._descriptors.append(os.dup(connection.fileno()))
            if self.expired:
                self._shut()

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            self._shut()

    def _shut(self) -> None:
        while self._descriptors:
            with socket.socket(fileno=self._descriptors.pop()) as connection, suppress(OSError):  # gone already
                connection.shutdown(socket.SHUT_RDWR)
