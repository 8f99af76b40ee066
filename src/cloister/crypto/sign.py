"""Ed25519 signatures under a context (spec/protocol.md, section 3).

What is signed is never the caller's bytes alone: COSE (``wire.cose``) puts the context into ``external_aad``, and
:func:`sign`, for the places that are not COSE, signs the digest of context and parts.
"""

from __future__ import annotations

from typing import Final, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.base.errors import InvalidInput, Tampered
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context, digest

PUBLIC_KEY_LENGTH: Final = 32
SIGNATURE_LENGTH: Final = 64


@final
class SigningKey:
    """An Ed25519 private key; its repr shows the public half only."""

    __slots__ = ("_key", "public_key")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key: bytes = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: SecretBytes) -> SigningKey:
        """The key of a 32-byte seed.

        :raises InvalidInput: ``key-length``.
        """
        return cls(Ed25519PrivateKey.from_private_bytes(SecretBytes.key(seed.reveal()).reveal()))

    def seed(self) -> SecretBytes:
        """The 32 bytes from which the key can be made again."""
        return SecretBytes(self._key.private_bytes_raw())

    def sign_raw(self, message: bytes) -> bytes:
        """Sign bytes that already hold their context; for COSE."""
        return self._key.sign(message)

    def sign(self, context: Context, *parts: bytes) -> bytes:
        """64-byte signature over the digest of context and parts."""
        return self._key.sign(digest(context, *parts))

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public_key.hex()[:16]}...)"


def verify_raw(public_key: bytes, signature: bytes, message: bytes, *, what: str) -> None:
    """:raises Tampered: ``signature-invalid``. :raises InvalidInput: ``key-length`` for a key that is none."""
    if len(public_key) != PUBLIC_KEY_LENGTH:
        raise InvalidInput("key-length", f"{what}: an Ed25519 public key has 32 bytes, this one {len(public_key)}")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise Tampered("signature-invalid", f"{what}: the signature does not verify") from error


def verify(public_key: bytes, signature: bytes, context: Context, *parts: bytes, what: str) -> None:
    """Check a signature of :meth:`SigningKey.sign`; returns nothing, raises as :func:`verify_raw`."""
    verify_raw(public_key, signature, digest(context, *parts), what=what)
