"""Writes LiteRT models without TensorFlow: a minimal FlatBuffers builder and three small networks.

Tables are dicts in the terms of ``cloister.engines.tflite_schema``; whatever the schema can say can be written,
hostile values included.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from cloister.engines.flatbuffer import SIZES, Slot
from cloister.engines.tflite_schema import DATATYPES, SCHEMA

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
TYPES: Final = {name: number for number, (name, _) in DATATYPES.items()}
ADD, FULLY_CONNECTED, RELU, SOFTMAX, SUB = 0, 9, 19, 25, 41


def encode(root: Mapping[str, Any], *, schema: Mapping[str, Mapping[int, Slot]] = SCHEMA) -> bytes:
    """A LiteRT flatbuffer of the table ``root``; written front to back, every offset pointing forwards."""
    out = bytearray(8)
    out[4:8] = b"TFL3"
    struct.pack_into("<I", out, 0, _table(out, root, "Model", schema))
    return bytes(out)


def _pad(out: bytearray, alignment: int, ahead: int = 0) -> None:
    out.extend(bytes(-(len(out) + ahead) % alignment))


def _table(out: bytearray, value: Mapping[str, Any], name: str, schema: Mapping[str, Mapping[int, Slot]]) -> int:
    slots = schema[name]
    present = [(slot, field) for slot, field in sorted(slots.items()) if field.name in value]
    count = max((slot for slot, _ in present), default=-1) + 1
    offsets: dict[int, int] = {}
    extent = 4
    for slot, field in present:
        width = SIZES.get(field.kind, 4)
        extent += -extent % width
        offsets[slot] = extent
        extent += width
    _pad(out, 8, ahead=4 + 2 * count)
    vtable = len(out)
    out.extend(struct.pack("<HH", 4 + 2 * count, extent))
    out.extend(b"".join(struct.pack("<H", offsets.get(slot, 0)) for slot in range(count)))
    start = len(out)
    out.extend(bytes(extent))
    struct.pack_into("<i", out, start, start - vtable)
    for slot, field in present:
        place = start + offsets[slot]
        if field.kind in SIZES:
            struct.pack_into("<" + _FORMATS[field.kind], out, place, value[field.name])
        else:
            target = _reference(out, value[field.name], field.kind, value, schema)
            struct.pack_into("<I", out, place, target - place)
    return start


def _reference(
    out: bytearray, value: Any, kind: str, owner: Mapping[str, Any], schema: Mapping[str, Mapping[int, Slot]]
) -> int:
    if kind == "text":
        return _bytes(out, value.encode() + b"\0", count=len(value.encode()), alignment=4)
    if kind == "blob":
        return _bytes(out, bytes(value), count=len(value), alignment=16)
    if kind.startswith("union:"):
        return _table(out, value, f"union:{owner[kind[6:]]}", schema)
    if not kind.startswith("["):
        return _table(out, value, kind, schema)
    element = kind[1:-1]
    if element in SIZES:
        packed = struct.pack(f"<{len(value)}{_FORMATS[element]}", *value)
        return _bytes(out, packed, count=len(value), alignment=SIZES[element])
    start = _bytes(out, bytes(4 * len(value)), count=len(value), alignment=4)
    for i, item in enumerate(value):
        place = start + 4 + 4 * i
        struct.pack_into("<I", out, place, _table(out, item, element, schema) - place)
    return start


def _bytes(out: bytearray, data: bytes, *, count: int, alignment: int) -> int:
    _pad(out, max(4, alignment), ahead=4)
    start = len(out)
    out.extend(struct.pack("<I", count))
    out.extend(data)
    _pad(out, 4)
    return start


def tensor(name: str, shape: Sequence[int], *, datatype: str = "FP32", buffer: int = 0) -> dict[str, Any]:
    """A tensor; a dimension of -1 is free, and 1 until resized."""
    table: dict[str, Any] = {"shape": [max(1, d) if d < 0 else d for d in shape], "type": TYPES[datatype]}
    table |= {"buffer": buffer, "name": name}
    if -1 in shape:
        table["shape_signature"] = list(shape)
    return table


def operator(code: int, inputs: Sequence[int], outputs: Sequence[int], kind: int = 0, **options: Any) -> dict[str, Any]:
    """An operator by its index into the model's codes."""
    table: dict[str, Any] = {"opcode_index": code, "inputs": list(inputs), "outputs": list(outputs)}
    return table | ({"options_type": kind, "options": options} if kind else {})


def model_of(
    tensors: Sequence[Mapping[str, Any]],
    operators: Sequence[Mapping[str, Any]],
    codes: Sequence[int],
    *,
    inputs: Sequence[int],
    outputs: Sequence[int],
    constants: Sequence[np.ndarray[Any, np.dtype[Any]]] = (),
) -> dict[str, Any]:
    """A model as a table; ``constants`` are buffers 1, 2, ..."""
    return {
        "version": 3,
        "operator_codes": [
            {"deprecated_builtin_code": min(code, 127), "version": 1, "builtin_code": code} for code in codes
        ],
        "subgraphs": [
            {
                "tensors": tensors,
                "inputs": list(inputs),
                "outputs": list(outputs),
                "operators": operators,
                "name": "main",
            }
        ],
        "description": "",
        "buffers": [{}, *({"data": constant.tobytes()} for constant in constants)],
    }


def dense_classifier(
    layers: Sequence[tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.float32]]]],
    *,
    softmax: bool = True,
) -> bytes:
    """A multi-layer perceptron, ReLU between layers: input ``x`` (-1 x features), output ``y``.

    :param layers: for each, the weights as features x units (scikit-learn's ``coefs_``), and the biases.
    """
    constants = [np.ascontiguousarray(part, np.float32) for weights, bias in layers for part in (weights.T, bias)]
    tensors = [tensor("x", (-1, layers[0][0].shape[0]))]
    operators = []
    for i, (weights, _) in enumerate(layers):
        before = len(tensors) - 1
        last = i == len(layers) - 1
        tensors.append(tensor(f"w{i}", weights.T.shape, buffer=2 * i + 1))
        tensors.append(tensor(f"b{i}", (weights.shape[1],), buffer=2 * i + 2))
        tensors.append(tensor("y" if last and not softmax else f"h{i}", (-1, weights.shape[1])))
        parts = [before, before + 1, before + 2]
        operators.append(operator(0, parts, [before + 3], 8, activation=0 if last else 1))
    if softmax:
        tensors.append(tensor("y", (-1, layers[-1][0].shape[1])))
        operators.append(operator(1, [len(tensors) - 2], [len(tensors) - 1], 9, beta=1.0))
    codes = [FULLY_CONNECTED, SOFTMAX]
    return encode(model_of(tensors, operators, codes, inputs=[0], outputs=[len(tensors) - 1], constants=constants))


def sum_difference() -> bytes:
    """``sum = a + b``, ``difference = a - b``; float32, -1 x 3."""
    tensors = [tensor(name, (-1, 3)) for name in ("a", "b", "sum", "difference")]
    operators = [operator(0, [0, 1], [2], 11, activation=0), operator(1, [0, 1], [3], 28, activation=0)]
    return encode(model_of(tensors, operators, [ADD, SUB], inputs=[0, 1], outputs=[2, 3]))


def identity(datatype: str = "FP32") -> bytes:
    """``y = x`` by way of RESHAPE to the same shape, 1 x 3."""
    tensors = [tensor("x", (1, 3), datatype=datatype), tensor("y", (1, 3), datatype=datatype)]
    return encode(model_of(tensors, [operator(0, [0], [1], 17, new_shape=[1, 3])], [22], inputs=[0], outputs=[1]))
