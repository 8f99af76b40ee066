"""Names that cannot be squatted: identities are hashes of keys, models stand under their owner (protocol.md, 4)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_NAME

ID_LENGTH: Final = 32
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")


def check_name(name: str, *, what: str) -> str:
    """A model's or policy's own name.

    :raises InvalidInput: ``name-malformed``.
    """
    if len(name) > MAX_NAME or not _NAME.fullmatch(name) or ".." in name:
        raise InvalidInput(
            "name-malformed",
            f"{what} is not a name",
            hint=f"Names are 1 to {MAX_NAME} of a-z, 0-9, '.', '_' and '-', starting with a letter or digit.",
        )
    return name


def parse_id(text: str, *, what: str) -> bytes:
    """32 bytes from 64 lower-case hexadecimal digits.

    :raises InvalidInput: ``id-malformed``.
    """
    if len(text) != 2 * ID_LENGTH or not re.fullmatch(r"[0-9a-f]+", text):
        raise InvalidInput("id-malformed", f"{what} is not an id", hint="Ids are 64 lower-case hexadecimal digits.")
    return bytes.fromhex(text)


@dataclass(frozen=True, slots=True, order=True)
class ModelId:
    """``owner id / name``; its text form is what stands in the clear in requests and routes."""

    owner: bytes
    name: str

    def __post_init__(self) -> None:
        if len(self.owner) != ID_LENGTH:
            raise InvalidInput("id-malformed", f"an owner id has {ID_LENGTH} bytes, this one {len(self.owner)}")
        check_name(self.name, what="the model's name")

    @classmethod
    def parse(cls, text: str) -> ModelId:
        """From ``<64 hex digits>/<name>``.

        :raises InvalidInput: ``id-malformed``, ``name-malformed``.
        """
        owner, slash, name = text.partition("/")
        if not slash:
            raise InvalidInput("id-malformed", "a model id is an owner id, a slash and a name")
        return cls(parse_id(owner, what="the owner in a model id"), name)

    def __str__(self) -> str:
        return f"{self.owner.hex()}/{self.name}"
