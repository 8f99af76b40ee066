"""A network that fails: an HTTP relay which cuts, corrupts, delays and refuses answers as it is told.

Faults are decided for each request, so that a test can say "the second range, after 5,000 bytes".
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

_READ = 1 << 16


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one answer; nothing by default.

    :param status: answer this at once, with ``headers`` and ``body``, without asking anybody.
    :param cut_after: bytes of the body after which the connection is reset.
    :param head: changes the answer's head.
    :param body: changes its body.
    :param bytes_a_second: of the body.
    :param delay_s: before the answer.
    """

    status: int = 0
    headers: str = ""
    body: Callable[[bytes], bytes] = lambda body: body
    cut_after: int | None = None
    head: Callable[[str], str] = lambda head: head
    bytes_a_second: int = 0
    delay_s: float = 0.0


Rule = Callable[[str, int], Fault | None]
"""Given a request's head and how many came before it, what happens to its answer."""


class FaultyProxy:
    """In front of ``http://host:port``; a context manager. One request a connection, a thread each.

    :ivar rule: which fault a request meets.
    :ivar heads: of all requests, in order.
    """

    def __init__(self, origin: str, rule: Rule = lambda _head, _number: None) -> None:
        host, _, port = origin.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        self.rule = rule
        self.heads: list[str] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def address(self) -> str:
        """Where to connect instead."""
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> FaultyProxy:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.05)
        self._accepting = threading.Thread(target=self._accept, name="faulty-proxy")
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._accepting.join()
        for thread in self._threads:
            thread.join()
        self._server.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._server.accept()
                connection.settimeout(10)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            head, rest = _head(connection)
            if not head:
                return
            with self._lock:
                number = len(self.heads)
                self.heads.append(head)
            fault = self.rule(head, number) or Fault()
            body = _body(connection, head, rest)
            self._closing.wait(fault.delay_s)
            if fault.status:
                content = fault.body(b"")
                answer = f"HTTP/1.1 {fault.status} Fault\r\n{fault.headers}content-length: {len(content)}\r\n\r\n"
            else:
                with socket.create_connection(self._target, 30) as upstream:
                    upstream.sendall(head.encode("latin-1") + body)
                    answer, rest = _head(upstream)
                    bodiless = head.startswith("HEAD")
                    content = b"" if bodiless else fault.body(_body(upstream, answer, rest, until_closed=True))
                answer = fault.head(answer)
            self._send(connection, answer, content, fault)

    def _send(self, connection: socket.socket, head: str, content: bytes, fault: Fault) -> None:
        lines = [line for line in head.split("\r\n") if line and not line.lower().startswith("connection:")]
        connection.sendall("\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1"))
        if fault.cut_after is not None:
            connection.sendall(content[: fault.cut_after])
            time.sleep(0.05)  # a reset overtakes what lies unread
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            return
        if fault.bytes_a_second:
            step = max(1, fault.bytes_a_second // 20)
            for start in range(0, len(content), step):
                if self._closing.wait(0.05):
                    return
                connection.sendall(content[start : start + step])
            return
        connection.sendall(content)


def _head(connection: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(_READ)
        if not more:
            return "", b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1") + "\r\n\r\n", rest


def _body(connection: socket.socket, head: str, data: bytes, *, until_closed: bool = False) -> bytes:
    lengths = [line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
    length = int(lengths[0]) if lengths else -1 if until_closed else 0
    parts, have = [data], len(data)
    while have != length:
        more = connection.recv(_READ)
        if not more:
            break
        parts.append(more)
        have += len(more)
    return b"".join(parts)
