"""Secret bytes that do not show themselves in a repr, a log line or a traceback."""

from __future__ import annotations

import hmac
from typing import Final, final

from cloister.base.errors import InvalidInput

KEY_LENGTH: Final = 32


@final
class SecretBytes:
    """Immutable secret; read it with :meth:`reveal`, at the place where it is used and nowhere else.

    Comparison is constant-time; hashing, pickling and printing are refused or redacted. Python cannot promise
    that memory is wiped: inside a TEE the memory is the enclave's own, see spec/threat-model.md.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    @classmethod
    def key(cls, value: bytes) -> SecretBytes:
        """A 256-bit symmetric key.

        :raises InvalidInput: ``key-length`` unless it is 32 bytes.
        """
        if len(value) != KEY_LENGTH:
            raise InvalidInput("key-length", f"a key has {KEY_LENGTH} bytes, this one has {len(value)}")
        return cls(value)

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretBytes) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a secret is never a dictionary key

    def __repr__(self) -> str:
        return f"SecretBytes(<{len(self._value)} bytes>)"

    def __reduce__(self) -> str | tuple[object, ...]:
        msg = "secrets are not pickled"
        raise TypeError(msg)
