"""Walk CBOR by its heads before anything is decoded: what a Nitro document may be made of (spec/attestation.md, 5.1).

Nitro documents are not in the deterministic encoding that ``cloister.wire.cbor`` demands: keys stand in the order of the
specification, and since 2025 the payload's outermost map has an indefinite length. So the shape is bounded here, and
the decoder then only ever sees maps, arrays, byte and text strings, integers and null, of a known size and depth.
"""

from __future__ import annotations

from cloister.base.errors import InvalidInput

_INDEFINITE = 31
_BREAK = 0xFF
_NULL = 22
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)


def require_shape(data: bytes, *, depth: int, items: int, what: str, open_map: bool = False) -> None:
    """That ``data`` is exactly one value, made of nothing else than this document uses.

    :param depth: the most containers inside each other.
    :param items: the most values, keys included.
    :param open_map: whether the outermost map may have an indefinite length.
    :raises InvalidInput: ``nitro-cbor-malformed``, ``nitro-cbor-trailing``, ``nitro-cbor-indefinite``,
        ``nitro-cbor-tag``, ``nitro-cbor-too-large``.
    """
    position, seen = 0, 0
    open_at_top = False
    remaining = [1]  # values still to come, for each container that is open
    while remaining:
        if remaining[-1] == 0:
            remaining.pop()
            continue
        if position >= len(data):
            raise InvalidInput("nitro-cbor-malformed", f"{what} is cut short")
        if open_at_top and len(remaining) == 2 and data[position] == _BREAK:
            if seen % 2 == 0:  # the map itself counts as one; after it, keys and values alternate
                raise InvalidInput("nitro-cbor-malformed", f"{what} ends between a key and its value")
            position += 1
            remaining.pop()
            continue
        seen += len(remaining) <= 2
        items -= 1
        remaining[-1] -= 1
        major, argument, position = _head(data, position, what)
        if argument is None:
            if not (open_map and major == _MAP and len(remaining) == 1):
                raise InvalidInput("nitro-cbor-indefinite", f"{what} holds an item of indefinite length")
            open_at_top = True
            remaining.append(items + 1)
        elif major in (_BYTES, _TEXT):
            if argument > len(data) - position:
                raise InvalidInput("nitro-cbor-malformed", f"{what} is cut short")
            position += argument
        elif major in (_ARRAY, _MAP):
            remaining.append(min(argument, items + 1) * (2 if major == _MAP else 1))
        elif major == _TAG:
            raise InvalidInput("nitro-cbor-tag", f"{what} holds a tag")
        elif major == _SIMPLE and argument != _NULL:
            raise InvalidInput("nitro-cbor-malformed", f"{what} holds a float, a boolean or another simple value")
        if items < 0 or len(remaining) > depth + 1:
            raise InvalidInput("nitro-cbor-too-large", f"{what} has too many items, or nests them too deep")
    if position != len(data):
        raise InvalidInput("nitro-cbor-trailing", f"{what} is followed by {len(data) - position} bytes")


def _head(data: bytes, position: int, what: str) -> tuple[int, int | None, int]:
    """Major type, argument (``None`` if indefinite), position after the head."""
    major, info = data[position] >> 5, data[position] & 0x1F
    position += 1
    if info < 24:
        return major, info, position
    if info <= 27:
        length = 1 << (info - 24)
        if position + length > len(data):
            raise InvalidInput("nitro-cbor-malformed", f"{what} is cut short")
        argument = int.from_bytes(data[position : position + length], "big")
        if major == _SIMPLE:
            argument = -1  # a float or a two-byte simple value: never null
        return major, argument, position + length
    if info == _INDEFINITE and major in (_BYTES, _TEXT, _ARRAY, _MAP):
        return major, None, position
    raise InvalidInput("nitro-cbor-malformed", f"{what} has a reserved head or a stray end")
