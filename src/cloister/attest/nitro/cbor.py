"""Read the CBOR of a Nitro document: one value, of known size and depth, made of nothing such documents do not use.

Nitro documents are not in the deterministic encoding that ``cloister.wire.cbor`` demands: keys stand in the order of
the structure, and since 2025 the payload's outermost map has an indefinite length, which ``cbor2`` can only allow
everywhere or nowhere. So this reads maps, arrays, byte and text strings, integers and null itself, each refusal with
its own code (spec/attestation.md, clause 5.1); the tests hold it against ``cbor2``.
"""

from __future__ import annotations

from typing import Final

from cloister.base.errors import InvalidInput

CborValue = int | bytes | str | None | list["CborValue"] | dict[int | str, "CborValue"]

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_INDEFINITE: Final = 31
_BREAK: Final = 0xFF
_NULL: Final = 0xF6
_MAX_DEPTH: Final = 4  # payload map, PCR map or bundle array, their items
_MAX_ITEMS: Final = 256  # 9 fields, 32 PCRs and their indexes, a bundle


def read(data: bytes, *, what: str, open_map: bool = False) -> CborValue:
    """Decode exactly one value.

    :param what: what this is, for messages.
    :param open_map: whether the outermost value may be a map of indefinite length.
    :raises InvalidInput: ``nitro-cbor-malformed``, ``nitro-cbor-trailing``, ``nitro-cbor-indefinite``,
        ``nitro-cbor-tag``, ``nitro-cbor-duplicate-key``, ``nitro-cbor-too-large``.
    """
    reader = _Reader(data, what)
    value = reader.value(0, open_map=open_map)
    if reader.at != len(data):
        raise InvalidInput("nitro-cbor-trailing", f"{what} is followed by {len(data) - reader.at} bytes")
    return value


class _Reader:
    """A position in the bytes of one document."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._items = 0
        self.at = 0

    def value(self, depth: int, *, open_map: bool = False) -> CborValue:
        """The value at the position, which moves behind it."""
        self._items += 1
        if depth > _MAX_DEPTH or self._items > _MAX_ITEMS:
            raise InvalidInput("nitro-cbor-too-large", f"{self._what} has too many items, or nests them too deep")
        first = self._take(1)[0]
        major, info = first >> 5, first & 0x1F
        if major == _SIMPLE:
            if first == _NULL:
                return None
            raise self._malformed("a float, a boolean, a stray end or another value not in use here")
        if major == _TAG:
            raise InvalidInput("nitro-cbor-tag", f"{self._what} holds a tag")
        if info == _INDEFINITE:
            if major == _MAP and open_map:
                return self._map(None, depth)
            raise InvalidInput("nitro-cbor-indefinite", f"{self._what} holds an item of indefinite length")
        argument = self._argument(info)
        match major:
            case 0:
                return argument
            case 1:
                return -1 - argument
            case 2:
                return self._take(argument)
            case 3:
                return self._text(argument)
            case 4:
                return [self.value(depth + 1) for _ in self._count(argument)]
            case _:
                return self._map(argument, depth)

    def _map(self, size: int | None, depth: int) -> dict[int | str, CborValue]:
        """A map of that many entries, or up to the break."""
        found: dict[int | str, CborValue] = {}
        left = size
        while left != 0:
            if left is None:
                if self._data[self.at : self.at + 1] == bytes([_BREAK]):
                    self.at += 1
                    break
            else:
                left -= 1
            key = self.value(depth + 1)
            if type(key) is not int and type(key) is not str:
                raise self._malformed("a map key that is neither an integer nor text")
            if key in found:
                raise InvalidInput("nitro-cbor-duplicate-key", f"{self._what} has a key twice: {str(key)[:32]!r}")
            found[key] = self.value(depth + 1)
        return found

    def _argument(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise self._malformed("a reserved head")
        return int.from_bytes(self._take(1 << (info - 24)), "big")

    def _count(self, size: int) -> range:
        """Of an array's items; more than are accepted is found out one after the last."""
        return range(min(size, _MAX_ITEMS + 1))

    def _text(self, size: int) -> str:
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as error:
            raise self._malformed("text that is not UTF-8") from error

    def _take(self, size: int) -> bytes:
        taken = self._data[self.at : self.at + size]
        if len(taken) != size:
            raise self._malformed("fewer bytes than it says")
        self.at += size
        return taken

    def _malformed(self, why: str) -> InvalidInput:
        return InvalidInput("nitro-cbor-malformed", f"{self._what} has {why}")
