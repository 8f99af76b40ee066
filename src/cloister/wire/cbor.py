"""Deterministic CBOR (RFC 8949, section 4.2), read strictly (spec/protocol.md, section 2).

Decoding accepts exactly one encoding of each value: shortest integers, definite lengths, sorted unique keys, no tags,
no floats, no undefined, nothing after the value. It is decided by encoding again and comparing, so it holds whatever
the library accepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Final, TypeVar

import cbor2

from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_CBOR_DEPTH, MAX_CBOR_ITEMS

T = TypeVar("T")
_MAX_INT: Final = 2**63 - 1


def encode(value: object) -> bytes:
    """The one encoding of a value built of int, bytes, str, bool, None, list/tuple and dict (int or str keys)."""
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, *, limit: int, what: str) -> Any:
    """Read one value.

    :param limit: the most bytes accepted.
    :param what: what this is, for the error message.
    :raises InvalidInput: ``cbor-too-long``, ``cbor-malformed``, ``cbor-not-deterministic``, ``cbor-too-deep``.
    """
    if len(data) > limit:
        raise InvalidInput("cbor-too-long", f"{what} has {len(data)} bytes; at most {limit} are accepted")
    _check_shape(data, what)
    stream = BytesIO(data)
    try:
        value = cbor2.CBORDecoder(stream, allow_indefinite=False, allow_duplicate_keys=False).decode()
    except Exception as error:  # any failure of the library on hostile bytes is the sender's
        raise InvalidInput("cbor-malformed", f"{what} is not well-formed CBOR") from error
    _check_types(value, what)
    if encode(value) != data:
        raise InvalidInput("cbor-not-deterministic", f"{what} is not in deterministic CBOR, or has trailing bytes")
    return value


def decode_sealed(data: bytes, *, what: str) -> Any:
    """Read one value that was encoded here, or read by :func:`decode`, before it was sealed, and was just opened.

    Never for what came from elsewhere: other encodings of the same value, and of anything else, pass.

    :raises InvalidInput: ``cbor-malformed``.
    """
    try:
        return cbor2.loads(data)
    except Exception as error:  # sealed by a fault of ours
        raise InvalidInput("cbor-malformed", f"{what} is not well-formed CBOR") from error


def _check_shape(data: bytes, what: str) -> None:
    """Walk the heads only: bounds depth and item count, and refuses tags, before anything is allocated."""
    position = 0
    items = 0
    remaining: list[int] = [1]
    size = len(data)
    while remaining:
        if remaining[-1] == 0:
            remaining.pop()
            continue
        remaining[-1] -= 1
        items += 1
        if items > MAX_CBOR_ITEMS:
            raise InvalidInput("cbor-too-deep", f"{what} holds more than {MAX_CBOR_ITEMS} items")
        if position >= size:
            raise InvalidInput("cbor-malformed", f"{what} is cut short")
        major, info = data[position] >> 5, data[position] & 0x1F
        position += 1
        if info < 24:
            argument = info
        elif info <= 27:
            length = 1 << (info - 24)
            if position + length > size:
                raise InvalidInput("cbor-malformed", f"{what} is cut short")
            argument = int.from_bytes(data[position : position + length], "big")
            position += length
        else:
            raise InvalidInput("cbor-malformed", f"{what} has an indefinite length or a reserved head")
        if major in (2, 3):
            if argument > size - position:
                raise InvalidInput("cbor-malformed", f"{what} is cut short")
            position += argument
        elif major in (4, 5):
            if argument > MAX_CBOR_ITEMS:
                raise InvalidInput("cbor-too-deep", f"{what} holds more than {MAX_CBOR_ITEMS} items")
            remaining.append(argument * (2 if major == 5 else 1))
            if len(remaining) > MAX_CBOR_DEPTH:
                raise InvalidInput("cbor-too-deep", f"{what} is nested deeper than {MAX_CBOR_DEPTH}")
        elif major == 6 or (major == 7 and info not in (20, 21, 22)):
            raise InvalidInput("cbor-malformed", f"{what} holds a tag, a float or another value not in use here")


def _check_types(value: object, what: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) not in (int, str):
                raise InvalidInput("cbor-malformed", f"{what} has a map key that is neither integer nor text")
            _check_types(item, what)
    elif isinstance(value, list):
        for item in value:
            _check_types(item, what)
    elif type(value) is int:
        if not -_MAX_INT <= value <= _MAX_INT:
            raise InvalidInput("cbor-malformed", f"{what} holds an integer beyond 63 bits")
    elif value is not None and type(value) not in (bytes, str, bool):
        raise InvalidInput("cbor-malformed", f"{what} holds a value of type {type(value).__name__}")


class Fields:
    """Typed access to a decoded map, in which unknown and missing fields are errors.

    Read every field with the typed methods, then call :meth:`done`.
    """

    def __init__(self, value: object, what: str) -> None:
        """:raises InvalidInput: ``field-type`` unless ``value`` is a map with text keys."""
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise InvalidInput("field-type", f"{what} is not a map with text keys")
        self._rest: dict[str, object] = dict(value)
        self._what = what

    def _take(self, name: str, kind: type[T], *, optional: bool) -> T | None:
        if name not in self._rest:
            if optional:
                return None
            raise InvalidInput("field-missing", f"{self._what} lacks {name!r}")
        value = self._rest.pop(name)
        if type(value) is not kind:
            raise InvalidInput("field-type", f"{self._what}: {name!r} is {type(value).__name__}, not {kind.__name__}")
        return value

    def _need(self, name: str, kind: type[T]) -> T:
        value = self._take(name, kind, optional=False)
        assert value is not None  # noqa: S101  # _take raised otherwise
        return value

    def has(self, name: str) -> bool:
        """Whether an optional field is there."""
        return name in self._rest

    def integer(self, name: str, *, low: int = 0, high: int = _MAX_INT) -> int:
        """An integer within bounds."""
        value = self._need(name, int)
        if not low <= value <= high:
            raise InvalidInput("field-range", f"{self._what}: {name!r} is {value}, not within {low}..{high}")
        return value

    def boolean(self, name: str) -> bool:
        """True or false."""
        return self._need(name, bool)

    def text(self, name: str, *, limit: int) -> str:
        """Text of at most ``limit`` characters."""
        value = self._need(name, str)
        if len(value) > limit:
            raise InvalidInput("field-range", f"{self._what}: {name!r} has more than {limit} characters")
        return value

    def blob(self, name: str, *, exactly: int | None = None, limit: int | None = None) -> bytes:
        """Bytes, of an exact length or up to a limit."""
        value = self._need(name, bytes)
        if exactly is not None and len(value) != exactly:
            raise InvalidInput("field-range", f"{self._what}: {name!r} has {len(value)} bytes, not {exactly}")
        if limit is not None and len(value) > limit:
            raise InvalidInput("field-range", f"{self._what}: {name!r} has more than {limit} bytes")
        return value

    def items(self, name: str, *, limit: int) -> list[Any]:
        """A list of at most ``limit`` items."""
        value = self._need(name, list)
        if len(value) > limit:
            raise InvalidInput("field-range", f"{self._what}: {name!r} has more than {limit} items")
        return value

    def mapping(self, name: str) -> dict[Any, Any]:
        """A nested map, to be read with another :class:`Fields`."""
        return self._need(name, dict)

    def leave_newer(self) -> None:
        """Instead of :meth:`done`, between replicas: what a newer version adds is no error (protocol.md, 13.26.8)."""
        self._rest.clear()

    def done(self) -> None:
        """:raises InvalidInput: ``field-unknown`` if any field was not read."""
        if self._rest:
            names = ", ".join(sorted(self._rest)[:5])
            raise InvalidInput("field-unknown", f"{self._what} has fields unknown to this version: {names[:200]}")


def plain(value: object) -> object:
    """Tuples to lists and mappings to dicts, so that what was decoded equals what was encoded."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    return value
