"""What the client library takes for its socket: it bounds what a hostile server says, and how long that takes.

pg8000 is written in Python, so whatever arrives corrupts no memory; but it believes every length, count and request.
Here each message's kind and length is looked at before it gets there, each exchange has a deadline and a number of
bytes, and a password is only ever used for SCRAM: never sent in the clear, nor as MD5.
"""

from __future__ import annotations

import re
import socket
import time
from typing import TYPE_CHECKING, Final, final

from cloister.base.limits import KIB, MAX_STORE_RECORD, MAX_STORE_REPLY, STORE_PAGE_ROWS
from cloister.keyservice.storage.postgres.url import PostgresUrl

if TYPE_CHECKING:
    import ssl

_SSL_REQUEST: Final = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_READ: Final = 64 * KIB
_AUTHENTICATION: Final = b"R"
_ROW: Final = b"D"
_MAX_ROW: Final = 2 * MAX_STORE_RECORD + KIB  # records come in hexadecimal
_SMALL: Final = 16 * KIB
_STATUSES: Final = 256  # parameters a server reports on one connection; some fifteen are usual
# Kinds of messages: an error, authentication, a key, a parameter, ready, what a statement does; none of COPY's.
_KNOWN: Final = frozenset(b"ERKSZT1C23nNtDIsA")
_SASL, _SASL_CONTINUE, _SASL_FINAL = 10, 11, 12
_MAX_ITERATIONS: Final = 1_000_000  # of PBKDF2, which the server chooses: half a second
_ITERATIONS: Final = re.compile(rb",i=(\d+)")


class LineError(Exception):
    """The connection is of no use any more; the text says why, without a word of the server's."""


@final
class Line:
    """A connection, with TLS where the URL says so.

    :raises LineError: it cannot be reached, or does not prove its name, until ``deadline`` (of ``time.monotonic``).
    """

    def __init__(self, url: PostgresUrl, deadline: float, *, password: bool) -> None:
        self._password = password
        self._received = bytearray()
        self._waiting = bytearray()
        self._body: tuple[bytes, int] | None = None
        self._statuses = 0
        self.begin(deadline)
        self._socket = self._connect(url)

    def begin(self, deadline: float) -> None:
        """A new exchange: what it may take."""
        self._deadline = deadline
        self._bytes = MAX_STORE_REPLY
        self._rows = STORE_PAGE_ROWS + 1

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise LineError("it gives no answer in time")
        return left

    def _connect(self, url: PostgresUrl) -> socket.socket:
        try:
            if url.socket:
                found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    found.settimeout(self._left())
                    found.connect(url.socket)
                except BaseException:
                    found.close()
                    raise
                return found
            found = socket.create_connection((url.host, url.port), self._left())
        except TimeoutError as error:
            raise LineError("it cannot be reached in time") from error
        except OSError as error:
            raise LineError(f"it cannot be reached: {error.strerror or type(error).__name__}") from error
        try:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._secured(found, url) if url.tls else found
        except BaseException:
            found.close()
            raise

    def _secured(self, plain: socket.socket, url: PostgresUrl) -> ssl.SSLSocket:
        import ssl

        try:
            context = ssl.create_default_context(cafile=None if url.roots is None else str(url.roots))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            plain.settimeout(self._left())
            plain.sendall(_SSL_REQUEST)
            if plain.recv(1) != b"S":  # one byte and no more: what comes behind it is TLS
                raise LineError("it speaks no TLS; sslmode=disable does without")
            plain.settimeout(self._left())
            return context.wrap_socket(plain, server_hostname=url.host)
        except ssl.SSLCertVerificationError as error:
            raise LineError(f"its certificate is not good: {error.verify_message}") from error
        except OSError as error:
            raise LineError(f"TLS fails: {error.strerror or type(error).__name__}") from error

    # --- what the library calls ---

    def makefile(self, mode: str) -> Line:
        """The library's only way to read and write."""
        if mode != "rwb":
            raise AssertionError(mode)
        return self

    def read(self, size: int) -> bytes:
        """A message's head of five bytes, then its body, by turns.

        :raises LineError: it was cut, takes too long, or says what no server has to say.
        """
        if self._body is None:
            head = self._take(5)
            kind, length = head[:1], int.from_bytes(head[1:], "big", signed=True) - 4
            self._check_head(kind, length)
            self._body = kind, length
            return head
        (kind, length), self._body = self._body, None
        if size != length:
            raise AssertionError("the library reads another number of bytes than the head says")
        body = self._take(length)
        if kind == _AUTHENTICATION:
            self._check_authentication(body)
        return body

    def _check_head(self, kind: bytes, length: int) -> None:
        most = _MAX_ROW if kind == _ROW else _SMALL
        if kind[0] not in _KNOWN or not 0 <= length <= most:
            raise LineError("it does not speak as PostgreSQL does")
        if kind == _ROW:
            self._rows -= 1
        elif kind == b"S":
            self._statuses += 1
        if self._rows < 0 or self._statuses > _STATUSES:
            raise LineError("it says more than it was asked for")

    def _check_authentication(self, body: bytes) -> None:
        code = int.from_bytes(body[:4], "big")
        if code == 0:
            return
        if code not in (_SASL, _SASL_CONTINUE, _SASL_FINAL):
            raise LineError("it asks for a password in another way than SCRAM-SHA-256")
        if not self._password:
            raise LineError("it asks for a password: say password_file=FILE, or PGPASSWORD in the environment")
        found = _ITERATIONS.search(body) if code == _SASL_CONTINUE else None
        if found is not None and (len(found[1]) > 9 or int(found[1]) > _MAX_ITERATIONS):
            raise LineError("it asks for more rounds of SCRAM than anybody needs")

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            try:
                self._socket.settimeout(self._left())
                data = self._socket.recv(_READ)
            except TimeoutError as error:
                raise LineError("it gives no answer in time") from error
            except OSError as error:
                raise LineError(f"the connection failed: {error.strerror or type(error).__name__}") from error
            if not data:
                raise LineError("the connection was closed")
            self._bytes -= len(data)
            if self._bytes < 0:
                raise LineError("it says more than it was asked for")
            self._received += data
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def write(self, data: bytes) -> None:
        """Kept until :meth:`flush`."""
        self._waiting += data

    def flush(self) -> None:
        """:raises LineError: it cannot be sent in time."""
        data, self._waiting = memoryview(bytes(self._waiting)), bytearray()
        try:
            while data:
                self._socket.settimeout(self._left())
                data = data[self._socket.send(data) :]
        except TimeoutError as error:
            raise LineError("it takes nothing in time") from error
        except OSError as error:
            raise LineError(f"the connection failed: {error.strerror or type(error).__name__}") from error

    def close(self) -> None:
        """At once."""
        self._socket.close()
