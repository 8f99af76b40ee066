"""One exception root, four families by whose fault it is (spec/protocol.md, section 11).

    CloisterError
    ├── InvalidInput    you sent nonsense: malformed, oversized, of the wrong type or version
    ├── Refused         a rule says no: a policy, a missing grant, an expired consent
    ├── Unavailable     try again: not ready, overloaded, a dependency is away
    └── Tampered        authentication failed: somebody changed something

Every error has a stable ``code`` (kebab-case, never reused for another meaning), a message that says what was
wrong and where, and a hint that says what to do. Neither ever holds a secret or a plaintext.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

_CODE: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class CloisterError(Exception):
    """Root of all errors of this project; only its four families are raised.

    :param code: stable, kebab-case, for programs.
    :param message: one sentence for a person: what was wrong, and where.
    :param hint: what to do about it, if that is known.
    :param details: public facts (name to text), for explained denials and problem+json extensions.
    """

    family: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500

    def __init__(
        self, code: str, message: str, *, hint: str | None = None, details: dict[str, str] | None = None
    ) -> None:
        if not _CODE.fullmatch(code):
            msg = f"not a stable error code: {code!r}"
            raise AssertionError(msg)
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]" + (f" {self.hint}" if self.hint else "")


class InvalidInput(CloisterError):
    """The caller sent something malformed, oversized or of an unknown version."""

    family = "invalid-input"
    http_status = 400


class Refused(CloisterError):
    """A rule says no. The rule is named by ``code``, and by ``details`` to whoever set it."""

    family = "refused"
    http_status = 403


class Unavailable(CloisterError):
    """Nothing is wrong with the call; try again, after ``retry_after`` seconds where that is known."""

    family = "unavailable"
    http_status = 503

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        hint: str | None = None,
        details: dict[str, str] | None = None,
    ) -> None:
        super().__init__(code, message, hint=hint, details=details)
        self.retry_after = retry_after


class Tampered(CloisterError):
    """Authentication failed: the bytes are not what their author made."""

    family = "tampered"
    http_status = 400


FAMILIES: Final[dict[str, type[CloisterError]]] = {
    cls.family: cls for cls in (InvalidInput, Refused, Unavailable, Tampered)
}
