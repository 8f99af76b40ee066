"""A secret in ``n`` shares of which any ``k`` give it back and fewer say nothing (Shamir; spec/protocol.md, 13.24.3).

Thin over PyCryptodome, the optional extra ``custodians``: its field is that of 128 bits, so a secret of 32 bytes is
shared as two halves, each under a polynomial of its own. Nothing here tells a wrong share: who combines compares each
with what was committed to before (docs/adr/0017).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.secret import SecretBytes

if TYPE_CHECKING:
    from Crypto.Protocol.SecretSharing import Shamir

_HALF: Final = 16
_MAX_SHARES: Final = 255  # numbers of shares are written as one byte


def split(secret: SecretBytes, threshold: int, count: int) -> tuple[SecretBytes, ...]:
    """``count`` shares of a 32-byte secret, 32 bytes each; the first is that of number 1.

    :raises InvalidInput: ``sharing-bounds``, ``key-length``. :raises Unavailable: ``custodians-extra-missing``.
    """
    if not 1 <= threshold <= count <= _MAX_SHARES:
        raise InvalidInput("sharing-bounds", f"{threshold} of {count} shares are not to be had")
    shamir, raw = _library(), SecretBytes.key(secret.reveal()).reveal()
    halves = [shamir.split(threshold, count, raw[at : at + _HALF]) for at in (0, _HALF)]
    return tuple(SecretBytes(first + second) for (_, first), (_, second) in zip(*halves, strict=True))


def combine(shares: Mapping[int, SecretBytes]) -> SecretBytes:
    """The secret, from exactly ``k`` shares by their numbers; of others something else.

    :raises InvalidInput: ``sharing-bounds``, ``key-length``. :raises Unavailable: ``custodians-extra-missing``.
    """
    if not shares or not all(1 <= number <= _MAX_SHARES for number in shares):
        raise InvalidInput("sharing-bounds", "shares are numbered from 1, and there must be some")
    shamir = _library()
    raw = {number: SecretBytes.key(share.reveal()).reveal() for number, share in shares.items()}
    halves = [shamir.combine([(number, share[at : at + _HALF]) for number, share in raw.items()]) for at in (0, _HALF)]
    return SecretBytes(halves[0] + halves[1])


def require() -> None:
    """:raises Unavailable: ``custodians-extra-missing`` unless secrets can be shared here."""
    _library()


def _library() -> type[Shamir]:
    try:
        from Crypto.Protocol.SecretSharing import Shamir
    except ImportError as error:
        raise Unavailable(
            "custodians-extra-missing",
            "this installation cannot share secrets among custodians",
            hint="pip install 'cloister[custodians]'; it is then part of what is measured.",
        ) from error
    return Shamir
