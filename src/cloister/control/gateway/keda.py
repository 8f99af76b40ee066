"""What KEDA and an external scaler say to each other, as bytes (KEDA's public interface ``externalscaler``, proto3).

Four messages of a few fields: written here instead of generated, which would bring protobuf's library and a generated
file for some sixty lines. What is not known is skipped, as proto3 asks; what is cut off or out of range is refused.

    ScaledObjectRef        1 name, 2 namespace, 3 map of metadata (1 key, 2 value)
    GetMetricsRequest      1 ScaledObjectRef, 2 metric name
    IsActiveResponse       1 bool
    GetMetricSpecResponse  1 repeated: 1 metric name, 2 target as integer, 3 target as double
    GetMetricsResponse     1 repeated: 1 metric name, 2 value as integer, 3 value as double
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cloister.base.errors import InvalidInput
from cloister.base.limits import KIB

MAX_MESSAGE: Final = 64 * KIB  # a ScaledObject's metadata is a few hundred bytes
_VARINT: Final = 0
_BYTES: Final = 2


@dataclass(frozen=True, slots=True)
class ScaledObject:
    """What a trigger belongs to, and what it says."""

    name: str
    namespace: str
    metadata: dict[str, str]


def read_scaled_object(data: bytes) -> ScaledObject:
    """:raises InvalidInput: ``scaler-message``."""
    name = namespace = ""
    metadata: dict[str, str] = {}
    for number, value in _fields(data):
        match number:
            case 1:
                name = _text(value)
            case 2:
                namespace = _text(value)
            case 3:
                pair = {field: _text(item) for field, item in _fields(_bytes(value)) if field in (1, 2)}
                metadata[pair.get(1, "")] = pair.get(2, "")
            case _:
                pass  # of a later version
    return ScaledObject(name, namespace, metadata)


def read_metrics_request(data: bytes) -> tuple[ScaledObject, str]:
    """The scaled object, and the metric that is asked for.

    :raises InvalidInput: ``scaler-message``.
    """
    about, metric = ScaledObject("", "", {}), ""
    for number, value in _fields(data):
        match number:
            case 1:
                about = read_scaled_object(_bytes(value))
            case 2:
                metric = _text(value)
            case _:
                pass
    return about, metric


def write_active(active: bool) -> bytes:  # the message is one boolean
    """IsActiveResponse."""
    return b"\x08\x01" if active else b""


def write_metric(name: str, value: int) -> bytes:
    """GetMetricSpecResponse or GetMetricsResponse with one metric: both have the same fields."""
    inner = _prefixed(1, name.encode()) + b"\x10" + _varint(value) + b"\x19" + struct.pack("<d", value)
    return _prefixed(1, inner)


def _prefixed(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field; groups, which proto3 does not have, are refused."""
    if len(data) > MAX_MESSAGE:
        raise _malformed(f"has more than {MAX_MESSAGE} bytes")
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise _malformed("has a field without a number")
        value: int | bytes
        if kind == _VARINT:
            value, at = _read_varint(data, at)
        else:
            match kind:
                case 1:
                    length = 8
                case 2:
                    length, at = _read_varint(data, at)
                case 5:
                    length = 4
                case _:
                    raise _malformed(f"has a field of the kind {kind}")
            if length > len(data) - at:
                raise _malformed("ends within a field")
            value, at = data[at : at + length], at + length
        yield number, value


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _malformed("ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise _malformed("has a number of more than ten bytes")


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise _malformed("has a number where text belongs")
    return value


def _text(value: int | bytes) -> str:
    try:
        return _bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed("has text that is not UTF-8") from error


def _malformed(what: str) -> InvalidInput:
    return InvalidInput("scaler-message", f"the scaler's caller sent a message that {what}")
