"""What both clients share: answers, the errors of a call, how a request's head says where its body ends."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cloister.adapters.http.content import Buffer
from cloister.adapters.http.head import Headers, ResponseHead, encode_request_head, parse_response_head
from cloister.adapters.http.limits import HeadLimits
from cloister.adapters.http.origin import Origin
from cloister.adapters.http.problem import from_response
from cloister.base.errors import InvalidInput, Unavailable


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, of any status."""

    status: int
    headers: Headers
    body: bytes

    def checked(self) -> Answer:
        """This answer, if its status is below 400.

        :raises CloisterError: the error it tells of, in its family and with its code; ``bad-gateway-answer`` for a
            stranger's.
        """
        if self.status >= 400:
            raise from_response(self.status, self.headers, self.body)
        return self


class NoAnswerError(Exception):
    """The connection died before any byte of an answer; ``sent`` says whether any byte of the request went out."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__()
        self.sent = sent


def no_answer(origin: Origin) -> Unavailable:
    """The request may have been carried out, or not."""
    return Unavailable("no-answer", f"{origin} closed the connection without an answer")


def connect_failed(origin: Origin, error: Exception) -> Unavailable:
    """The request was not sent."""
    ssl = sys.modules.get("ssl")  # whoever raises an error of it has imported it
    if ssl is not None and isinstance(error, ssl.SSLError):
        reason = getattr(error, "verify_message", "") or error.reason or type(error).__name__
        return Unavailable("tls-failed", f"no TLS with {origin}: {reason}")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return Unavailable("connect-failed", f"cannot reach {origin}: {reason}")


def truncated(origin: Origin) -> Unavailable:
    """Part of the answer came."""
    return Unavailable("answer-truncated", f"{origin} closed the connection within its answer")


def deadline_exceeded(origin: Origin) -> Unavailable:
    """Out of time."""
    return Unavailable("deadline-exceeded", f"{origin} did not answer in time")


def bad_answer(origin: Origin, error: InvalidInput) -> Unavailable:
    """What came is no HTTP, or ambiguous HTTP."""
    return Unavailable("bad-gateway-answer", f"{origin} answered with what is not HTTP/1.1: {error.message}")


def request_head(
    method: str,
    origin: Origin,
    target: str,
    headers: Iterable[tuple[str, str]],
    length: int | None,
) -> bytes:
    """The head of a request with a body of ``length`` bytes, chunked for None.

    :raises InvalidInput: ``header-malformed``, ``method-unknown``.
    """
    framing: Sequence[tuple[str, str]]
    if length is None:
        framing = (("transfer-encoding", "chunked"),)
    elif length == 0 and method in {"GET", "HEAD", "DELETE", "OPTIONS"}:
        framing = ()
    else:
        framing = (("content-length", str(length)),)
    return encode_request_head(method, origin.authority, target, [*headers, *framing])


def split_head(pending: bytes, method: str, limits: HeadLimits, origin: Origin) -> tuple[ResponseHead | None, bytes]:
    """(head, what follows it), or (None, pending) while it is incomplete. Interim answers (100, 103) are passed over.

    :raises Unavailable: ``bad-gateway-answer``.
    """
    while True:
        end = pending.find(b"\r\n\r\n")
        try:
            if end < 0:
                if len(pending) > limits.max_bytes or pending.count(b"\n") != pending.count(b"\r\n"):
                    raise InvalidInput("head-too-large", "its head is too long, or holds a bare LF")
                return None, pending
            head = parse_response_head(pending[: end + 4], method, limits)
        except InvalidInput as error:
            raise bad_answer(origin, error) from error
        pending = pending[end + 4 :]
        if head.status == 101:
            raise bad_answer(origin, InvalidInput("head-malformed", "it switches protocols unasked"))
        if head.status >= 200:
            if origin.scheme == "https" and head.length is None and not head.chunked:
                # RFC 9112, 9.8: the end of a connection can be forged by anybody between us; no event loop tells
                # whether TLS was closed properly
                raise bad_answer(origin, InvalidInput("framing-ambiguous", "over TLS, it does not say how long it is"))
            return head, pending


def buffers_of(content: Buffer | Sequence[Buffer]) -> list[Buffer]:
    """A body as a list of buffers."""
    return [content] if isinstance(content, bytes | bytearray | memoryview) else list(content)
