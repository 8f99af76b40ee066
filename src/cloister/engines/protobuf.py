"""A strict reader of protobuf messages, driven by a schema (developers.google.com/protocol-buffers, wire format).

It accepts one reading of any bytes only, so that no other parser can read something else into them: unknown fields,
repeated singular fields, groups, wrong wire types, over-long tags and lengths, and text that is not UTF-8 are all
refused. Blobs are views into the input: nothing is copied, and nothing is allocated that the input does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cloister.base.errors import InvalidInput

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_MAX_DEPTH: Final = 24


@dataclass(frozen=True, slots=True)
class Field:
    """A field that is accepted.

    :param kind: ``int64`` (also int32 and enum, read as a signed 64-bit number), ``float``, ``double``, ``bytes``,
        ``text``, or the name of a message. A repeated number is kept as the raw pieces it arrived in (``bytes`` views
        of packed values, see :class:`Packed`), because nobody needs a list of ten million floats.
    """

    name: str
    kind: str
    repeated: bool = False


Schema = Mapping[str, Mapping[int, Field]]
Message = dict[str, Any]


class Budget:
    """How many messages and fields the whole input may have."""

    __slots__ = ("fields",)

    def __init__(self, fields: int) -> None:
        self.fields = fields


@dataclass(slots=True)
class Packed:
    """Repeated numbers: how many, and for integers that were few enough, which."""

    count: int
    values: list[int]


_KEEP_VALUES: Final = 64  # shapes and axes; longer lists are weights
_WIRE: Final = {"int64": _VARINT, "float": _FIXED32, "double": _FIXED64}
_WIDTH: Final = {"float": 4, "double": 8}


def malformed(what: str) -> InvalidInput:
    return InvalidInput("model-malformed", f"the model is not well-formed: {what}")


def read(data: memoryview, message: str, schema: Schema, budget: Budget, depth: int = 0) -> Message:
    """Read ``data`` as ``message``. Singular fields map to their value, repeated messages, texts and blobs to a list,
    repeated numbers to :class:`Packed`; absent fields are absent.

    :raises InvalidInput: ``model-malformed``, ``model-too-large``.
    """
    if depth > _MAX_DEPTH:
        raise malformed("nested too deeply")
    known = schema[message]
    result: Message = {}
    position, end = 0, len(data)
    while position < end:
        budget.fields -= 1
        if budget.fields < 0:
            raise InvalidInput("model-too-large", "the model's graph has too many fields")
        tag = data[position]
        if tag < 0x80:  # the common case, without a call
            position += 1
        else:
            tag, position = _varint(data, position, 5)
        number, wire = tag >> 3, tag & 7
        field = known.get(number)
        if field is None:
            raise malformed(f"field {number} of {message} is not accepted")
        value: Any
        if wire == _BYTES:
            if position < end and data[position] < 0x80:
                length = data[position]
                position += 1
            else:
                length, position = _varint(data, position, 5)
            if length > end - position:
                raise malformed(f"{message}.{field.name} is cut short")
            value = data[position : position + length]
            position += length
            if field.kind in _WIRE:
                if not field.repeated:
                    raise malformed(f"{message}.{field.name} has the wrong wire type")
                _packed(result, field, value, message)
                continue
            if field.kind == "text":
                value = _text(value, message, field)
            elif field.kind != "bytes":
                value = read(value, field.kind, schema, budget, depth + 1)
        else:
            if _WIRE.get(field.kind) != wire:
                raise malformed(f"{message}.{field.name} has the wrong wire type")
            if wire == _VARINT:
                start = position
                value, position = _varint(data, position, 10, minimal=False)
                value = value - (1 << 64) if value >= 1 << 63 else value
            else:
                start, position = position, position + _WIDTH[field.kind]
                if position > end:
                    raise malformed(f"{message}.{field.name} is cut short")
                value = data[start:position]
            if field.repeated:
                _packed(result, field, data[start:position], message)
                continue
        if field.repeated:
            result.setdefault(field.name, []).append(value)
        elif field.name in result:
            raise malformed(f"{message}.{field.name} is given twice")
        else:
            result[field.name] = value
    return result


def _varint(data: memoryview, position: int, limit: int, *, minimal: bool = True) -> tuple[int, int]:
    """A base-128 number of at most ``limit`` bytes, below 2**64; with ``minimal``, in its shortest form only."""
    value = shift = 0
    try:
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift >= 7 * limit:
                raise malformed("a number is too long")
    except IndexError:
        raise malformed("cut short inside a number") from None
    if minimal and byte == 0 and shift > 7:
        raise malformed("a tag or length is not in its shortest form")
    if value >= 1 << 64 or (limit == 5 and value >= 1 << 32):
        raise malformed("a number is too large")
    return value, position


def _text(value: memoryview, message: str, field: Field) -> str:
    try:
        text = str(value, "utf-8")
    except UnicodeDecodeError:
        raise malformed(f"{message}.{field.name} is not UTF-8") from None
    if "\0" in text:
        raise malformed(f"{message}.{field.name} holds a NUL")
    return text


def _packed(result: Message, field: Field, data: memoryview, message: str) -> None:
    packed: Packed = result.setdefault(field.name, Packed(0, []))
    width = _WIDTH.get(field.kind)
    if width is not None:
        if len(data) % width:
            raise malformed(f"{message}.{field.name} is cut short")
        packed.count += len(data) // width
        return
    if len(data) > 10 * _KEEP_VALUES or packed.count > _KEEP_VALUES:
        # Each number ends with the one byte that has its high bit clear.
        packed.count += len(data) - _high_bits(data)
        if data[-1] >= 0x80:
            raise malformed(f"{message}.{field.name} is cut short")
        return
    position = 0
    while position < len(data):
        value, position = _varint(data, position, 10, minimal=False)
        packed.values.append(value - (1 << 64) if value >= 1 << 63 else value)
        packed.count += 1


def _high_bits(data: memoryview) -> int:
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) & 0x80))
