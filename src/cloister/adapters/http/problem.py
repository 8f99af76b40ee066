"""Errors as ``application/problem+json`` (RFC 9457), both ways: the only place that knows HTTP statuses of codes."""

from __future__ import annotations

import math
import re
from typing import Final

from cloister.adapters.http.content import Buffer
from cloister.adapters.http.head import Headers
from cloister.adapters.http.message import Response
from cloister.base.errors import FAMILIES, CloisterError, Unavailable

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:cloister:error:"
MAX_PROBLEM: Final = 16 * 1024
_CODE: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MAX_TEXT: Final = 2000
_MAX_CODE: Final = 64
_MAX_DETAILS: Final = 32

STATUS: Final[dict[str, int]] = {
    # where HTTP has a status of its own; every other code has that of its family
    "body-too-large": 413,
    "expectation": 417,
    "head-too-large": 431,
    "http-version": 505,
    "method-not-allowed": 405,
    "method-unknown": 501,
    "model-not-found": 404,
    "not-found": 404,
    "rate-limited": 429,
    "request-timeout": 408,
    "transfer-encoding": 501,
    "user-concurrency": 429,
    "activation-failed": 502,
    "answer-too-large": 502,
    "answer-truncated": 502,
    "bad-gateway-answer": 502,
    "connect-failed": 502,
    "no-answer": 502,
    "proxy-refused": 502,
    "tls-failed": 502,
    "deadline-exceeded": 504,
}


def to_response(error: CloisterError) -> Response:
    """The response that tells a client of ``error``."""
    import json

    status = STATUS.get(error.code, error.http_status)
    problem: dict[str, object] = {
        "type": TYPE_PREFIX + error.code,
        "title": error.family,
        "status": status,
        "detail": error.message,
    }
    if error.hint:
        problem["hint"] = error.hint
    if error.details:
        problem["details"] = error.details
    headers = [("content-type", MEDIA_TYPE), ("cache-control", "no-store")]
    if isinstance(error, Unavailable) and error.retry_after is not None:
        problem["retry_after"] = error.retry_after
        headers.append(("retry-after", str(max(0, math.ceil(error.retry_after)))))
    return Response(status, headers, json.dumps(problem, separators=(",", ":")).encode())


def internal_error() -> Response:
    """For a fault of ours: says nothing about its cause, which is in the log."""
    body = b'{"type":"urn:cloister:error:internal","title":"error","status":500,"detail":"a fault in the service"}'
    return Response(500, [("content-type", MEDIA_TYPE), ("cache-control", "no-store")], body)


def from_response(status: int, headers: Headers, body: Buffer) -> CloisterError:
    """The error a response tells of; whatever is not a problem of ours is ``Unavailable`` ``bad-gateway-answer``.

    The text comes from the network: bounded, and without control characters.
    """
    problem: dict[str, object] = {}
    if headers.get("content-type").partition(";")[0].strip().lower() == MEDIA_TYPE:
        problem = _parse(body)
    seconds = headers.get("retry-after")
    retry_after = float(seconds) if re.fullmatch(r"[0-9]{1,5}", seconds) else None
    return _read(problem, retry_after) or Unavailable(
        "bad-gateway-answer",
        f"status {status} without a problem description",
        retry_after=_seconds(problem, retry_after),
        hint="Something between here and the service answered in its place.",
    )


def from_problem(body: Buffer) -> CloisterError | None:
    """The error that a problem of ours tells of, wherever it travelled; ``None`` when it is none."""
    return _read(_parse(body), None)


def _read(problem: dict[str, object], retry_after: float | None) -> CloisterError | None:
    kind, family = _text(problem.get("type")), FAMILIES.get(_text(problem.get("title")))
    code = kind.removeprefix(TYPE_PREFIX)
    if not kind.startswith(TYPE_PREFIX) or len(code) > _MAX_CODE or _CODE.fullmatch(code) is None:
        return None
    retry_after = _seconds(problem, retry_after)
    message = _text(problem.get("detail")) or f"the service says {code}"
    hint = _text(problem.get("hint")) or None
    if family is None:  # a fault of the service, "internal"
        return Unavailable(code, message, retry_after=retry_after, hint=hint)
    given = problem.get("details")
    details: dict[str, str] = {}
    if isinstance(given, dict):
        details = {_text(key): _text(value) for key, value in list(given.items())[:_MAX_DETAILS]}
    if issubclass(family, Unavailable):
        return family(code, message, retry_after=retry_after, hint=hint, details=details)
    return family(code, message, hint=hint, details=details)


def _parse(body: Buffer) -> dict[str, object]:
    if len(body) > MAX_PROBLEM:
        return {}
    import json

    try:
        problem = json.loads(bytes(body))
    except (ValueError, RecursionError):
        return {}
    return problem if isinstance(problem, dict) else {}


def _text(value: object) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(character if character.isprintable() else " " for character in value[:_MAX_TEXT])


def _seconds(problem: dict[str, object], otherwise: float | None) -> float | None:
    value = problem.get("retry_after")
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 86400:
        return float(value)
    return otherwise
