"""Sizes are padded to buckets, so that the network sees a class and not a length (claim S10; protocol.md, 10).

Eight buckets an octave: growth is at most 12.5 %, and nothing is smaller than 256 bytes.
"""

from __future__ import annotations

from typing import Final

from cloister.base.errors import InvalidInput

MINIMUM: Final = 256


def bucket(length: int) -> int:
    """The padded length: the least bucket that holds ``length`` bytes."""
    if length <= MINIMUM:
        return MINIMUM
    step = 1 << ((length - 1).bit_length() - 4)
    return -(-length // step) * step


def pad(message: bytes) -> bytes:
    """u32 length || message || zeros up to the bucket."""
    framed = len(message).to_bytes(4, "big") + message
    return framed + bytes(bucket(len(framed)) - len(framed))


def unpad(padded: bytes, *, what: str) -> bytes:
    """The message again.

    :raises InvalidInput: ``padding-malformed``.
    """
    length = int.from_bytes(padded[:4], "big")
    if len(padded) < MINIMUM or 4 + length > len(padded) or bucket(4 + length) != len(padded):
        raise InvalidInput("padding-malformed", f"{what} is not padded as specified")
    if any(padded[4 + length :]):
        raise InvalidInput("padding-malformed", f"{what} has padding that is not zero")
    return padded[4 : 4 + length]
