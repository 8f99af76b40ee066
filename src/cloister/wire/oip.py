"""Open Inference Protocol v2 with the binary tensor extension (spec/protocol.md, section 9).

The inner body of an inference is ``JSON || binary tensors``; the JSON's length stands in the field
``inference-header-content-length``. Every datatype of the protocol is read and written; numpy has no bfloat16, so BF16
tensors travel as uint16 bit patterns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_RANK, MAX_TENSORS, MIB
from cloister.crypto.stream import Buffer

Array = npt.NDArray[Any]

HEADER_LENGTH_FIELD: Final = "inference-header-content-length"
MAX_JSON: Final = 16 * MIB  # tensors as JSON lists are for people and small inputs
MAX_ELEMENTS: Final = 2**31
ALIGNMENT: Final = 64  # the JSON is padded with spaces so that the first tensor lies where an engine can borrow it

DTYPES: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype("<u1"),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
        "INT8": np.dtype("<i1"),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "FP16": np.dtype("<f2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
        "BF16": np.dtype("<u2"),
        "BYTES": np.dtype(object),
    }
)
_NAMES: Final[Mapping[np.dtype[Any], str]] = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor. ``data`` has ``shape`` and the dtype of ``datatype``; BYTES is an object array of bytes."""

    name: str
    datatype: str
    data: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the protocol."""
        return self.data.shape


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One inference.

    :param outputs: names wanted, in order; empty = all.
    :param binary: whether the caller wants outputs in binary form.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    id: str = ""
    binary: bool = True
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class InferResponse:
    """Its answer."""

    model_name: str
    outputs: tuple[Tensor, ...]
    model_version: str = ""
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def datatype_of(array: Array) -> str:
    """The protocol's name for an array's type; text arrays count as BYTES.

    :raises InvalidInput: ``tensor-datatype``.
    """
    if array.dtype.kind in "OSU":
        return "BYTES"
    name = _NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise InvalidInput("tensor-datatype", f"arrays of type {array.dtype} have no counterpart in the protocol")
    return name


def tensor(name: str, array: npt.ArrayLike) -> Tensor:
    """A tensor from anything numpy takes."""
    data = np.asarray(array)
    datatype = datatype_of(data)
    if datatype == "BYTES":
        flat = [item.encode() if isinstance(item, str) else bytes(item) for item in data.ravel().tolist()]
        data = np.array(flat, dtype=object).reshape(data.shape)
    return Tensor(name, datatype, data)


# --- writing ---


def encode_request(request: InferRequest, *, offset: int = 0) -> tuple[int, list[Buffer]]:
    """JSON length and the parts of the body, tensors uncopied where they are contiguous.

    :param offset: where the body will lie in the plaintext, so that the first tensor comes to lie aligned.
    """
    tensors, parts = _tensors(request.inputs, binary=True)
    body: dict[str, Any] = {"inputs": tensors, "parameters": {"binary_data_output": request.binary}}
    body["parameters"].update(request.parameters)
    if request.id:
        body["id"] = request.id
    if request.outputs:
        body["outputs"] = [{"name": name, "parameters": {"binary_data": request.binary}} for name in request.outputs]
    return _body(body, parts, offset)


def encode_response(response: InferResponse, *, binary: bool, offset: int = 0) -> tuple[int, list[Buffer]]:
    """As :func:`encode_request`."""
    tensors, parts = _tensors(response.outputs, binary=binary)
    body: dict[str, Any] = {"model_name": response.model_name, "outputs": tensors}
    if response.model_version:
        body["model_version"] = response.model_version
    if response.id:
        body["id"] = response.id
    if response.parameters:
        body["parameters"] = dict(response.parameters)
    return _body(body, parts, offset)


def _body(body: dict[str, Any], parts: list[Buffer], offset: int) -> tuple[int, list[Buffer]]:
    text = _WRITER.encode(body).encode()
    if parts:
        text += b" " * (-(offset + len(text)) % ALIGNMENT)
    return len(text), [text, *parts]


def _tensors(tensors: Sequence[Tensor], *, binary: bool) -> tuple[list[dict[str, Any]], list[Buffer]]:
    entries: list[dict[str, Any]] = []
    parts: list[Buffer] = []
    for item in tensors:
        entry: dict[str, Any] = {"name": item.name, "shape": list(item.shape), "datatype": item.datatype}
        if binary:
            part = _binary(item)
            entry["parameters"] = {"binary_data_size": memoryview(part).nbytes}
            parts.append(part)
        elif item.datatype == "BYTES":
            entry["data"] = [value.decode("utf-8", "replace") for value in item.data.ravel().tolist()]
        elif item.datatype in ("FP16", "BF16"):
            raise InvalidInput("tensor-datatype", f"{item.datatype} tensors travel in binary form only")
        else:
            entry["data"] = item.data.ravel().tolist()
        entries.append(entry)
    return entries, parts


def _binary(item: Tensor) -> Buffer:
    if item.datatype == "BYTES":
        return b"".join(len(value).to_bytes(4, "little") + value for value in item.data.ravel().tolist())
    data = np.ascontiguousarray(item.data, dtype=DTYPES[item.datatype])
    return data.reshape(-1).view(np.uint8).data if data.size else b""


# --- reading ---


def decode_request(body: memoryview, header_length: int | None) -> InferRequest:
    """Read an inference request; tensors are views into ``body`` where they lie aligned, copies elsewhere.

    :param header_length: the field's value, or ``None`` when the body is JSON only.
    :raises InvalidInput: ``oip-malformed``, ``tensor-datatype``, ``tensor-shape``, ``tensor-data``.
    """
    value, rest = _split(body, header_length)
    inputs = _read_tensors(value.get("inputs"), rest, "inputs")
    outputs = value.get("outputs", [])
    if not isinstance(outputs, list) or len(outputs) > MAX_TENSORS:
        raise InvalidInput("oip-malformed", f"outputs is not a list of at most {MAX_TENSORS} entries")
    names = []
    parameters = _parameters(value)
    binary = bool(parameters.get("binary_data_output", False))
    for entry in outputs:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise InvalidInput("oip-malformed", "an entry of outputs has no name")
        names.append(entry["name"])
        binary = bool(_parameters(entry).get("binary_data", binary))
    if len(set(names)) != len(names):
        raise InvalidInput("oip-malformed", "an output is asked for twice")
    return InferRequest(inputs, tuple(names), _text(value, "id"), binary, parameters)


def decode_response(body: memoryview, header_length: int | None) -> InferResponse:
    """As :func:`decode_request`."""
    value, rest = _split(body, header_length)
    outputs = _read_tensors(value.get("outputs"), rest, "outputs")
    return InferResponse(
        _text(value, "model_name"), outputs, _text(value, "model_version"), _text(value, "id"), _parameters(value)
    )


def _split(body: memoryview, header_length: int | None) -> tuple[dict[str, Any], memoryview]:
    length = body.nbytes if header_length is None else header_length
    if not 0 < length <= min(body.nbytes, MAX_JSON):
        raise InvalidInput("oip-malformed", f"the JSON part has {length} of {body.nbytes} bytes")
    try:
        value = _READER.decode(str(body[:length], "utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput("oip-malformed", "the JSON part is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidInput("oip-malformed", "the JSON part is not an object")
    return value, body[length:]


def _no_constant(name: str) -> float:
    return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[name]


# Made once: json.loads and json.dumps with arguments make one each time.
_READER: Final = json.JSONDecoder(parse_constant=_no_constant)
_WRITER: Final = json.JSONEncoder(separators=(",", ":"))


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name, "")
    if not isinstance(text, str) or len(text) > 256:
        raise InvalidInput("oip-malformed", f"{name} is not text of at most 256 characters")
    return text


def _parameters(value: dict[str, Any]) -> dict[str, Any]:
    parameters = value.get("parameters", {})
    if not isinstance(parameters, dict) or len(parameters) > 64:
        raise InvalidInput("oip-malformed", "parameters is not an object of at most 64 entries")
    return parameters


def _read_tensors(entries: object, rest: memoryview, what: str) -> tuple[Tensor, ...]:
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_TENSORS:
        raise InvalidInput("oip-malformed", f"{what} is not a list of 1 to {MAX_TENSORS} entries")
    tensors: list[Tensor] = []
    position = 0
    for entry in entries:
        if not isinstance(entry, dict):
            raise InvalidInput("oip-malformed", f"an entry of {what} is not an object")
        name, datatype = _text(entry, "name"), _text(entry, "datatype")
        if datatype not in DTYPES:
            raise InvalidInput("tensor-datatype", f"tensor {name!r}: datatype {datatype!r} is unknown")
        shape, elements = _shape(entry.get("shape"), name)
        size = _parameters(entry).get("binary_data_size")
        if size is None:
            data = _from_list(entry.get("data"), datatype, shape, elements, name)
        else:
            if type(size) is not int or not 0 <= size <= rest.nbytes - position:
                raise InvalidInput("tensor-data", f"tensor {name!r}: {size} bytes announced, fewer there")
            data = _from_bytes(rest[position : position + size], datatype, shape, elements, name)
            position += size
        tensors.append(Tensor(name, datatype, data))
    if position != rest.nbytes:
        raise InvalidInput("tensor-data", f"{rest.nbytes - position} bytes belong to no tensor")
    if len({item.name for item in tensors}) != len(tensors):
        raise InvalidInput("oip-malformed", f"a tensor stands twice in {what}")
    return tuple(tensors)


def _shape(value: object, name: str) -> tuple[tuple[int, ...], int]:
    if not isinstance(value, list) or len(value) > MAX_RANK or not all(type(d) is int and d >= 0 for d in value):
        raise InvalidInput("tensor-shape", f"tensor {name!r}: the shape is not a list of at most {MAX_RANK} sizes")
    elements = math.prod(value)
    if elements > MAX_ELEMENTS or any(d > MAX_ELEMENTS for d in value):
        raise InvalidInput("tensor-shape", f"tensor {name!r} has {elements} elements; at most {MAX_ELEMENTS}")
    return tuple(value), elements


def _from_bytes(part: memoryview, datatype: str, shape: tuple[int, ...], elements: int, name: str) -> Array:
    if datatype == "BYTES":
        return _from_strings(part, shape, elements, name)
    dtype = DTYPES[datatype]
    if part.nbytes != elements * dtype.itemsize:
        raise InvalidInput(
            "tensor-data", f"tensor {name!r}: {part.nbytes} bytes, but its shape needs {elements * dtype.itemsize}"
        )
    if datatype == "BOOL" and bytes(part).strip(b"\x00\x01"):
        raise InvalidInput("tensor-data", f"tensor {name!r}: a BOOL is neither 0 nor 1")
    array = np.frombuffer(part, dtype=dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


def _from_strings(part: memoryview, shape: tuple[int, ...], elements: int, name: str) -> Array:
    values: list[bytes] = []
    position = 0
    while position < part.nbytes:
        length = int.from_bytes(part[position : position + 4], "little")
        end = position + 4 + length
        if position + 4 > part.nbytes or end > part.nbytes or len(values) >= elements:
            raise InvalidInput("tensor-data", f"tensor {name!r}: its strings do not fill it")
        values.append(bytes(part[position + 4 : end]))
        position = end
    if len(values) != elements:
        raise InvalidInput("tensor-data", f"tensor {name!r}: {len(values)} strings, but its shape needs {elements}")
    array = np.empty(elements, dtype=object)
    array[:] = values
    return array.reshape(shape)


def _from_list(value: object, datatype: str, shape: tuple[int, ...], elements: int, name: str) -> Array:
    flat: list[Any] = []
    _flatten(value, flat, elements, name, MAX_RANK + 1)
    if len(flat) != elements:
        raise InvalidInput("tensor-data", f"tensor {name!r}: {len(flat)} values, but its shape needs {elements}")
    if datatype in ("FP16", "BF16"):
        raise InvalidInput("tensor-datatype", f"tensor {name!r}: {datatype} travels in binary form only")
    if datatype == "BYTES":
        if not all(isinstance(item, str) for item in flat):
            raise InvalidInput("tensor-data", f"tensor {name!r}: BYTES in JSON are strings")
        array = np.empty(elements, dtype=object)
        array[:] = [item.encode() for item in flat]
        return array.reshape(shape)
    dtype = DTYPES[datatype]
    kinds: tuple[type, ...] = (bool,) if datatype == "BOOL" else (int, float) if dtype.kind == "f" else (int,)
    if not all(type(item) in kinds for item in flat):
        raise InvalidInput("tensor-data", f"tensor {name!r}: a value is not {datatype}")
    try:
        return np.array(flat, dtype=dtype).reshape(shape)
    except (OverflowError, ValueError) as error:
        raise InvalidInput("tensor-data", f"tensor {name!r}: a value does not fit {datatype}") from error


def _flatten(value: object, flat: list[Any], elements: int, name: str, depth: int) -> None:
    if not isinstance(value, list) or depth == 0:
        raise InvalidInput("tensor-data", f"tensor {name!r}: data is not a list, nested at most {MAX_RANK} deep")
    for item in value:
        if isinstance(item, list):
            _flatten(item, flat, elements, name, depth - 1)
        else:
            flat.append(item)
            if len(flat) > elements:
                raise InvalidInput("tensor-data", f"tensor {name!r} has more values than its shape")
