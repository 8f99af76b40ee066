"""Errors survive the wire; strangers' bodies become no more than ``bad-gateway-answer``."""

from __future__ import annotations

import pytest

from cloister.adapters.http.head import Headers
from cloister.adapters.http.problem import MEDIA_TYPE, from_response, internal_error, to_response
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInput("body-too-large", "too large", hint="less"), 413),
        (InvalidInput("key-length", "a key"), 400),
        (Refused("no-grant", "no grant", details={"model": "a/b"}), 403),
        (Tampered("envelope-tampered", "changed"), 400),
        (Unavailable("queue-full", "later", retry_after=1.5), 503),
    ],
)
def test_there_and_back(error: CloisterError, status: int) -> None:
    response = to_response(error)
    assert response.status == status
    assert isinstance(response.content, bytes)
    back = from_response(status, Headers(response.headers), response.content)
    assert type(back) is type(error)
    assert (back.code, back.message, back.hint, back.details) == (error.code, error.message, error.hint, error.details)
    if isinstance(error, Unavailable):
        assert isinstance(back, Unavailable)
        assert back.retry_after == error.retry_after
        assert Headers(response.headers).get("retry-after") == "2"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"[" * 10_000,
        b'{"type":"urn:cloister:error:Not A Code","title":"refused"}',
        b'{"type":"urn:other:x","title":"refused"}',
        b'{"type":7}',
        b"\xff",
        b'{"type":"' + b"a" * 20_000 + b'"}',
    ],
)
def test_anything_else_is_a_bad_answer(body: bytes) -> None:
    error = from_response(502, Headers([("content-type", MEDIA_TYPE), ("retry-after", "3")]), body)
    assert isinstance(error, Unavailable)
    assert (error.code, error.retry_after) == ("bad-gateway-answer", 3.0)


def test_a_strangers_text_is_bounded_and_printable() -> None:
    body = b'{"type":"urn:cloister:error:x","title":"refused","detail":"' + b"a\\u001b[31m" * 1000 + b'"}'
    error = from_response(403, Headers([("content-type", MEDIA_TYPE)]), body)
    assert isinstance(error, Refused)
    assert error.message.isprintable()
    assert len(error.message) <= 2000


def test_a_fault_of_ours_says_nothing() -> None:
    response = internal_error()
    assert isinstance(response.content, bytes)
    error = from_response(500, Headers(response.headers), response.content)
    assert isinstance(error, Unavailable)
    assert error.code == "internal"
