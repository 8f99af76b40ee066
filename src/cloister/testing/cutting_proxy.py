"""A network that breaks at a chosen byte: a TCP relay that counts what passes each way and cuts where it is told.

It knows nothing of what it carries, so it stands before any server.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Final, final

_READ: Final = 1 << 16
_NO_LINGER: Final = b"\x01\x00\x00\x00\x00\x00\x00\x00"

UP: Final = "up"
DOWN: Final = "down"


@dataclass(slots=True)
class Passed:
    """What passed one way since the last :meth:`CuttingProxy.arm`, and after how many bytes it ends."""

    data: bytearray
    left: int | None = None


@final
class CuttingProxy:
    """In front of ``127.0.0.1:port``; a context manager.

    :ivar port: where to connect instead.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._passed = {UP: Passed(bytearray()), DOWN: Passed(bytearray())}
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._silent = False
        self._closing = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> CuttingProxy:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closing = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._server.close()
        self.cut()
        for thread in list(self._threads):
            thread.join(30)

    def arm(self, way: str | None = None, after: int = 0) -> None:
        """Count from here; with ``way``, cut every connection once after so many bytes that way."""
        with self._lock:
            for each in self._passed.values():
                each.data.clear()
                each.left = None
            if way is not None:
                self._passed[way].left = after

    def passed(self, way: str) -> bytes:
        """What passed that way since :meth:`arm`, over all connections."""
        with self._lock:
            return bytes(self._passed[way].data)

    @property
    def fired(self) -> bool:
        """Whether the cut that was asked for has happened."""
        with self._lock:
            return all(each.left is None for each in self._passed.values())

    def cut(self) -> None:
        """Reset every connection there is, now."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                    end.shutdown(socket.SHUT_RDWR)  # wakes who reads

    def silence(self, *, on: bool) -> None:
        """Swallow everything, with connections open: a network that went away without a word."""
        with self._lock:
            self._silent = on

    def _start(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True, name="cutting-proxy")  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if self._closing:
                    near.close()
                    far.close()
                    return
                self._pairs.append((near, far))
            done = threading.Semaphore(0)
            self._start(self._relay, near, far, UP, done)
            self._start(self._relay, far, near, DOWN, done)
            self._start(self._bury, near, far, done)

    def _relay(self, source: socket.socket, sink: socket.socket, way: str, done: threading.Semaphore) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_READ):
                data, last = self._admit(way, data)
                sink.sendall(data)
                if last:
                    self.cut()
                    break
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        done.release()

    def _admit(self, way: str, data: bytes) -> tuple[bytes, bool]:
        """What of it passes, and whether that was the last."""
        with self._lock:
            if self._silent:
                return b"", False
            passed, last = self._passed[way], False
            if passed.left is not None:
                data, last = data[: passed.left], len(data) >= passed.left
                passed.left = None if last else passed.left - len(data)
            passed.data += data
            return data, last

    def _bury(self, near: socket.socket, far: socket.socket, done: threading.Semaphore) -> None:
        done.acquire()
        done.acquire()
        near.close()
        far.close()
