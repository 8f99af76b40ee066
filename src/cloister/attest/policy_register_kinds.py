"""Expectations about 64-bit registers: XFAM, XFRM, AMD's mitigation vectors.

CBOR and TOML as used here hold integers of 63 bits. A register with its highest bit set is 8 bytes big endian in CBOR,
and text such as ``"0x8000000000000001"`` in TOML; every register may be written as such text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cloister.attest.policy_kinds import Field, Kind, Outcome, Subject, Value, integer, items, one_of, wrong

_REGISTER: Final = 2**64 - 1
_PLAIN: Final = 2**63 - 1
_TEXT: Final = re.compile(r"0x[0-9A-Fa-f]{1,16}")


def _read(plain: object, where: str) -> int:
    if type(plain) is bytes and len(plain) == 8:
        value = int.from_bytes(plain, "big")
        if value > _PLAIN:  # otherwise there would be two encodings
            return value
    return integer(plain, where, _REGISTER)


def _write(value: int) -> object:
    return value if value <= _PLAIN else value.to_bytes(8, "big")


def _from_toml(raw: object, where: str) -> object:
    if not isinstance(raw, str):
        return raw
    if not _TEXT.fullmatch(raw):
        raise wrong("policy-field-type", where, 'is neither an integer nor text such as "0xe7"')
    return _write(int(raw, 16))


@dataclass(frozen=True, slots=True)
class Registers(Kind):
    """Allow-list of values of a register."""

    def read(self, plain: object, where: str) -> Value:
        return tuple(sorted({_read(item, f"{where}[{i}]") for i, item in enumerate(items(plain, where))}))

    def write(self, value: Value) -> object:
        return [_write(item) for item in value] if isinstance(value, tuple) else value

    def from_toml(self, raw: object, where: str) -> object:
        return [_from_toml(item, f"{where}[{i}]") for i, item in enumerate(items(raw, where))]

    def check(self, value: Value, field: Field, subject: Subject) -> Outcome:
        actual = subject.get(field.reference)
        accepted = value if isinstance(value, tuple) else ()
        passed = type(actual) is int and actual in accepted
        return Outcome(passed, f"one of {', '.join(map(hex, accepted)) or 'none'}", _hex(actual))

    def observe(self, field: Field, subject: Subject) -> object:
        actual = subject.get(field.reference)
        return [_write(actual)] if type(actual) is int and 0 <= actual <= _REGISTER else None

    def words(self, value: Value, field: Field) -> str:
        return one_of(field, tuple(map(hex, value)) if isinstance(value, tuple) else ())


@dataclass(frozen=True, slots=True)
class RequiredBits(Kind):
    """Bits that must be set in a register; others may be."""

    def read(self, plain: object, where: str) -> Value:
        return _read(plain, where)

    def write(self, value: Value) -> object:
        return _write(value) if isinstance(value, int) else value

    def from_toml(self, raw: object, where: str) -> object:
        return _from_toml(raw, where)

    def check(self, value: Value, field: Field, subject: Subject) -> Outcome:
        actual, wanted = subject.get(field.reference), value if isinstance(value, int) else _REGISTER
        return Outcome(type(actual) is int and actual & wanted == wanted, f"all bits of {wanted:#x}", _hex(actual))

    def observe(self, field: Field, subject: Subject) -> object:
        actual = subject.get(field.reference)
        return _write(actual) if type(actual) is int and 0 <= actual <= _REGISTER else None

    def words(self, value: Value, field: Field) -> str:
        return f"{field.label} must have all bits of {value:#x}."


def _hex(value: object) -> str:
    return hex(value) if type(value) is int else "absent"
