"""Errors are for people and programs alike: stable codes, families, hints."""

from __future__ import annotations

import pytest

from cloister.base.errors import FAMILIES, CloisterError, InvalidInput, Unavailable
from cloister.base.secret import SecretBytes


def test_an_error_says_what_and_what_to_do() -> None:
    error = InvalidInput("key-length", "a key has 32 bytes, this one has 3", hint="Make one with `identity new`.")
    assert str(error) == "a key has 32 bytes, this one has 3 [key-length] Make one with `identity new`."
    assert FAMILIES["invalid-input"] is InvalidInput


def test_a_code_that_is_not_stable_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        CloisterError("Not Kebab", "message")


def test_unavailable_says_when_to_come_back() -> None:
    assert Unavailable("starting", "starting", retry_after=2.0).retry_after == 2.0


def test_a_secret_never_shows_itself() -> None:
    secret = SecretBytes.key(b"k" * 32)
    assert "k" not in repr(secret).replace("bytes", "")
    assert secret == SecretBytes(b"k" * 32)
    assert secret != SecretBytes(b"j" * 32)
    with pytest.raises(InvalidInput, match="key-length"):
        SecretBytes.key(b"short")
