"""HPKE (RFC 9180), base mode, suite 1: ML-KEM-768 + X25519, HKDF-SHA256, AES-256-GCM (spec/protocol.md, section 3).

pyca's HPKE is single-shot and binds ``info`` only, so ``info`` is always context || SHA-256 of what must be bound.
"""

from __future__ import annotations

from typing import Final, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cloister.base.errors import InvalidInput, Tampered
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context, digest

PUBLIC_LENGTH: Final = 1184 + 32
PRIVATE_LENGTH: Final = 64 + 32
ENC_LENGTH: Final = 1088 + 32
OVERHEAD: Final = ENC_LENGTH + 16

_SUITE: Final = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


@final
class HpkePrivateKey:
    """A recipient's private key; its repr shows nothing of it."""

    __slots__ = ("_key", "_private", "public_key")

    def __init__(self, mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey) -> None:
        self._key = hpke.MLKEM768X25519PrivateKey(mlkem, x25519)
        self._private = (mlkem, x25519)
        self.public_key: bytes = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> HpkePrivateKey:
        """A fresh key."""
        return cls(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())

    @classmethod
    def from_secret(cls, secret: SecretBytes) -> HpkePrivateKey:
        """The key again from :meth:`secret`.

        :raises InvalidInput: ``key-length``.
        """
        raw = secret.reveal()
        if len(raw) != PRIVATE_LENGTH:
            raise InvalidInput("key-length", f"an HPKE private key has {PRIVATE_LENGTH} bytes, this one {len(raw)}")
        return cls(MLKEM768PrivateKey.from_seed_bytes(raw[:64]), X25519PrivateKey.from_private_bytes(raw[64:]))

    def secret(self) -> SecretBytes:
        """ML-KEM seed and X25519 scalar, 96 bytes."""
        mlkem, x25519 = self._private
        return SecretBytes(mlkem.private_bytes_raw() + x25519.private_bytes_raw())

    def open(self, sealed: bytes, context: Context, *bound: bytes, what: str) -> bytes:
        """Open what :func:`seal` made with the same context and bound parts.

        :raises Tampered: ``hpke-open`` when anything differs.
        """
        try:
            return _SUITE.decrypt(sealed, self._key, info=_info(context, bound))
        except (InvalidTag, ValueError) as error:
            raise Tampered("hpke-open", f"{what} was not sealed to this key, or was changed on the way") from error

    def __repr__(self) -> str:
        return f"HpkePrivateKey(public={self.public_key.hex()[:16]}...)"


def seal(public_key: bytes, plaintext: bytes, context: Context, *bound: bytes) -> bytes:
    """enc (1120 bytes) || ciphertext || tag, for the holder of the private key only.

    :raises InvalidInput: ``key-length``, ``key-malformed``.
    """
    return _SUITE.encrypt(plaintext, _public(public_key), info=_info(context, bound))


def _info(context: Context, bound: tuple[bytes, ...]) -> bytes:
    return context.encode() + b"\x00" + digest(context, *bound)


def _public(raw: bytes) -> hpke.MLKEM768X25519PublicKey:
    if len(raw) != PUBLIC_LENGTH:
        raise InvalidInput("key-length", f"an HPKE public key has {PUBLIC_LENGTH} bytes, this one {len(raw)}")
    try:
        return hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(raw[:1184]), X25519PublicKey.from_public_bytes(raw[1184:])
        )
    except ValueError as error:
        raise InvalidInput("key-malformed", "this is not an HPKE public key of suite 1") from error
