"""A bounded reader of FlatBuffers, driven by a schema (flatbuffers.dev, internals).

LiteRT's own accessors trust every offset in the file. So each table, vtable, vector and string that they would follow
is followed here first: inside the buffer, aligned, of the type the schema says, with no field the schema does not
know. Nothing is allocated that the input does not hold; what is reachable twice counts twice against the budget.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.base.errors import InvalidInput

SIZES: Final = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
}
_FORMATS: Final = {
    "bool": "B",
    "int8": "b",
    "uint8": "B",
    "int16": "h",
    "int32": "i",
    "uint32": "I",
    "float32": "f",
    "int64": "q",
    "uint64": "Q",
}
_MAX_VALUES: Final = 4096  # longest vector whose values are read; longer ones stay views
_MAX_TEXT: Final = 4096


@dataclass(frozen=True, slots=True)
class Slot:
    """A field.

    :param kind: a scalar of :data:`SIZES`, ``text``, ``blob`` (bytes, as a view), ``[scalar]``, ``[Table]``, ``Table``,
        or ``union:NAME`` where the field in slot NAME holds the type, looked up in ``Schema["union:" + type]``.
    """

    name: str
    kind: str


Schema = Mapping[str, Mapping[int, Slot]]
Table = dict[str, Any]


def malformed(what: str) -> InvalidInput:
    return InvalidInput("model-malformed", f"the model is not well-formed: {what}")


class Reader:
    """Reads one buffer.

    :param budget: how many tables and vectors may be visited.
    """

    def __init__(self, data: memoryview, schema: Schema, *, budget: int) -> None:
        self._data = data
        self._size = len(data)
        self._schema = schema
        self._budget = budget

    def root(self, table: str, identifier: bytes) -> Table:
        """The root table.

        :raises InvalidInput: ``model-malformed``, ``model-too-large``.
        """
        if self._size < 8 or bytes(self._data[4:8]) != identifier:
            raise malformed("it lacks its file identifier")
        return self._table(self._follow(0), table)

    def _number(self, position: int, kind: str) -> Any:
        width = SIZES[kind]
        if position % width or position < 0 or position + width > self._size:
            raise malformed("a number lies outside the file or across its alignment")
        return struct.unpack_from("<" + _FORMATS[kind], self._data, position)[0]

    def _follow(self, position: int) -> int:
        target = position + int(self._number(position, "uint32"))
        if target == position or target % 4 or target + 4 > self._size:
            raise malformed("an offset points outside the file")
        return target

    def _spend(self) -> None:
        self._budget -= 1
        if self._budget < 0:
            raise InvalidInput("model-too-large", "the model's graph has too many parts")

    def _table(self, position: int, name: str) -> Table:
        self._spend()
        known = self._schema[name]
        vtable = position - int(self._number(position, "int32"))
        if vtable % 2 or vtable < 0 or vtable + 4 > self._size:
            raise malformed(f"{name} has its field list outside the file")
        length, extent = struct.unpack_from("<HH", self._data, vtable)
        if length % 2 or length < 4 or vtable + length > self._size or extent < 4 or position + extent > self._size:
            raise malformed(f"{name} has a field list that does not fit")
        result: Table = {}
        for slot in range((length - 4) // 2):
            (offset,) = struct.unpack_from("<H", self._data, vtable + 4 + 2 * slot)
            if offset == 0:
                continue
            field = known.get(slot)
            if field is None:
                raise malformed(f"field {slot} of {name} is not accepted")
            if offset < 4 or offset + SIZES.get(field.kind, 4) > extent:
                raise malformed(f"{name}.{field.name} lies outside its table")
            result[field.name] = self._field(position + offset, field, result, name)
        return result

    def _field(self, position: int, field: Slot, so_far: Table, table: str) -> Any:
        kind = field.kind
        if kind in SIZES:
            value = self._number(position, kind)
            if kind == "bool" and value > 1:
                raise malformed(f"{table}.{field.name} is neither true nor false")
            return value
        target = self._follow(position)
        if kind == "text":
            return self._text(target)
        if kind == "blob":
            return self._vector(target, 1)
        if kind.startswith("union:"):
            member = f"union:{so_far.get(kind[6:], 0)}"
            if member not in self._schema:
                raise malformed(f"{table}.{field.name} is of a type that is not accepted")
            return self._table(target, member)
        if not kind.startswith("["):
            return self._table(target, kind)
        element = kind[1:-1]
        if element in SIZES:
            return self._numbers(target, element)
        places = self._vector(target, 4)
        start = target + 4
        return [self._table(self._follow(start + 4 * i), element) for i in range(len(places) // 4)]

    def _vector(self, position: int, width: int) -> memoryview:
        self._spend()
        count = int(self._number(position, "uint32"))
        start = position + 4
        if count * width > self._size - start or (count and start % width):
            raise malformed("a vector lies outside the file or across its alignment")
        return self._data[start : start + count * width]

    def _numbers(self, position: int, element: str) -> list[Any]:
        width = SIZES[element]
        raw = self._vector(position, width)
        count = len(raw) // width
        if count > _MAX_VALUES:
            raise InvalidInput("model-too-large", f"a list of the model's graph has more than {_MAX_VALUES} numbers")
        return list(struct.unpack_from(f"<{count}{_FORMATS[element]}", raw))

    def _text(self, position: int) -> str:
        raw = self._vector(position, 1)
        end = position + 4 + len(raw)
        if len(raw) > _MAX_TEXT or end >= self._size or self._data[end] != 0:
            raise malformed("a text is too long or not ended")
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise malformed("a text is not UTF-8") from None
