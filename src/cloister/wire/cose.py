"""COSE_Sign1 (RFC 9052) with Ed25519 and the context in ``external_aad`` (spec/protocol.md, section 3).

One shape only: tag-less array of four, protected header exactly ``{1: -8}``, empty unprotected header.
"""

from __future__ import annotations

from typing import Final

from cloister.base.errors import InvalidInput
from cloister.crypto.digest import Context
from cloister.crypto.sign import SIGNATURE_LENGTH, SigningKey, verify_raw
from cloister.wire import cbor

_PROTECTED: Final = cbor.encode({1: -8})


def _to_be_signed(context: Context, payload: bytes) -> bytes:
    return cbor.encode(["Signature1", _PROTECTED, context.encode(), payload])


def sign1(key: SigningKey, context: Context, payload: bytes) -> bytes:
    """Sign a payload for one purpose."""
    return cbor.encode([_PROTECTED, {}, payload, key.sign_raw(_to_be_signed(context, payload))])


def peek1(data: bytes, *, limit: int, what: str) -> bytes:
    """The payload, **unverified**: only to find out whose key must verify it.

    :raises InvalidInput: ``cose-malformed`` and the codes of ``cbor.decode``.
    """
    return _split(data, limit=limit, what=what)[0]


def verify1(data: bytes, context: Context, public_key: bytes, *, limit: int, what: str) -> bytes:
    """The payload, after its signature verified under this key and this context.

    :raises InvalidInput: ``cose-malformed`` and the codes of ``cbor.decode``.
    :raises Tampered: ``signature-invalid``.
    """
    payload, signature = _split(data, limit=limit, what=what)
    verify_raw(public_key, signature, _to_be_signed(context, payload), what=what)
    return payload


def _split(data: bytes, *, limit: int, what: str) -> tuple[bytes, bytes]:
    value = cbor.decode(data, limit=limit, what=what)
    match value:
        case [bytes(protected), dict(unprotected), bytes(payload), bytes(signature)]:
            if protected != _PROTECTED or unprotected or len(signature) != SIGNATURE_LENGTH:
                raise InvalidInput("cose-malformed", f"{what} has headers or a signature of a form not in use here")
            return payload, signature
        case _:
            raise InvalidInput("cose-malformed", f"{what} is not a COSE_Sign1 array of four")
