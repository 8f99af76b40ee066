"""Key derivation equals RFC 5869 as pyca has it."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.crypto.digest import Context, derive, digest


@pytest.mark.parametrize("length", [1, 16, 32, 33, 64, 100])
@pytest.mark.parametrize("secret", [b"", b"k" * 32, b"long" * 100])
def test_derive_is_hkdf_sha256(length: int, secret: bytes) -> None:
    info = Context.REQUEST_CHUNKS.encode() + b"\x00" + digest(Context.REQUEST_CHUNKS, b"a", b"bc")
    expected = HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(secret)
    assert derive(Context.REQUEST_CHUNKS, secret, b"a", b"bc", length=length) == expected
