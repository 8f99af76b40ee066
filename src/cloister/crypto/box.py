"""AES-256-GCM for one message under one key (spec/protocol.md, section 3).

Every key is derived for exactly one message, so the nonce is zero; nothing here may be used with a key that seals
twice.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.base.errors import Tampered

TAG_LENGTH: Final = 16
_NONCE: Final = bytes(12)


def seal_once(key: bytes, plaintext: bytes, bound: bytes) -> bytes:
    """Ciphertext || tag, under a key that seals nothing else."""
    return AESGCM(key).encrypt(_NONCE, plaintext, bound)


def open_once(key: bytes, sealed: bytes, bound: bytes, *, what: str) -> bytes:
    """:raises Tampered: ``box-open``."""
    try:
        return AESGCM(key).decrypt(_NONCE, sealed, bound)
    except (InvalidTag, ValueError) as error:
        raise Tampered("box-open", f"{what} was made under another key, or was changed on the way") from error
