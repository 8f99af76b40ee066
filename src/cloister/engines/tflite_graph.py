"""What a LiteRT model may be, checked before LiteRT sees it (spec/model-format.md, section 6).

The same rules as for ONNX, and the same reasons (``onnx_graph.py``). LiteRT trusts more: it follows every offset of the
file, divides by strides, and writes wherever an operator's outputs point, so these are checked here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_GRAPH_NODES, MAX_RANK, MAX_TENSORS, MIB
from cloister.engines import tflite_schema as schema
from cloister.engines.flatbuffer import Reader, Table, malformed
from cloister.engines.port import Buffer, TensorSpec
from cloister.engines.tflite_schema import (
    ARITY,
    CONSTANT_INPUTS,
    DATATYPES,
    OPERATORS,
    POSITIVE,
    POSITIVE_OR_ABSENT,
    SCHEMA,
)

_BUDGET: Final = 1_000_000
_MAX_TENSOR_BYTES: Final = 2048 * MIB - 1
_MAX_OPTION: Final = 1 << 15
_IDENTIFIER: Final = b"TFL3"
_GREATER_CODES: Final = 127  # OperatorCode.deprecated_builtin_code holds this where builtin_code decides


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """What the check learnt; ``inputs`` and ``outputs`` carry each tensor's index as LiteRT counts them."""

    inputs: tuple[tuple[int, TensorSpec], ...]
    outputs: tuple[tuple[int, TensorSpec], ...]
    operators: int


def check(model: Buffer) -> CheckedModel:
    """Check a LiteRT flatbuffer.

    :raises InvalidInput: ``model-malformed``, ``operator-refused``, ``model-too-large``.
    """
    data = memoryview(model).cast("B")
    if len(data) > _MAX_TENSOR_BYTES:
        raise InvalidInput("model-too-large", "a LiteRT model has at most 2 GiB")
    root = Reader(data, SCHEMA, budget=_BUDGET).root("Model", _IDENTIFIER)
    if root.get("version") != 3:
        raise malformed("its schema version is not 3")
    subgraphs = root.get("subgraphs", [])
    if len(subgraphs) != 1:
        raise InvalidInput("operator-refused", "the model has not exactly one graph")
    return _graph(subgraphs[0], [_code(code) for code in root.get("operator_codes", [])], root.get("buffers", []))


def _code(code: Table) -> int:
    old, new = code.get("deprecated_builtin_code", 0), code.get("builtin_code", 0)
    number: int = max(old, new)  # as LiteRT reads it
    if "custom_code" in code or number not in OPERATORS or old not in (0, number, _GREATER_CODES) or old < 0:
        raise InvalidInput("operator-refused", "the model uses a refused operator")
    return number


def _graph(graph: Table, codes: list[int], buffers: list[Table]) -> CheckedModel:
    tensors = graph.get("tensors", [])
    operators = graph.get("operators", [])
    if len(operators) > MAX_GRAPH_NODES or len(tensors) > 4 * MAX_GRAPH_NODES:
        raise InvalidInput("model-too-large", f"the model has more than {MAX_GRAPH_NODES} operators")
    constant = [_tensor(tensor, buffers) for tensor in tensors]
    inputs, outputs = graph.get("inputs", []), graph.get("outputs", [])
    for indices, what in ((inputs, "inputs"), (outputs, "outputs")):
        if not 1 <= len(indices) <= MAX_TENSORS or len(set(indices)) != len(indices):
            raise malformed(f"it has no {what}, too many, or one twice")
        _within(indices, len(tensors), low=0)
    written = set(inputs)
    for operator in operators:
        index = operator.get("opcode_index", 0)
        if index >= len(codes):
            raise malformed("an operator has no code")
        _options(operator, codes[index])
        operator.setdefault("inputs", [])
        _arity(operator, codes[index])
        _within(operator["inputs"][:2], len(tensors), low=0)
        _within(operator["inputs"], len(tensors), low=-1 if codes[index] == schema.FULLY_CONNECTED else 0)
        _within(operator.get("outputs", []), len(tensors), low=0)
        for position in CONSTANT_INPUTS.get(codes[index], ()):
            if position < len(operator["inputs"]) and not constant[operator["inputs"][position]]:
                raise InvalidInput("operator-refused", "a shape inside the model depends on data")
        _types(operator, codes[index], tensors)
        if operator.get("intermediates"):
            raise InvalidInput("operator-refused", "an operator keeps intermediate tensors")
        for output in operator.get("outputs", []):
            # A kernel that wrote into a constant would write into every interpreter's weights.
            if output in written or constant[output]:
                raise malformed("a tensor is written twice, or is constant and written")
            written.add(output)
    if any(constant[index] for index in inputs):
        raise malformed("an input has a constant value")
    return CheckedModel(
        tuple((index, _spec(tensors[index])) for index in inputs),
        tuple((index, _spec(tensors[index])) for index in outputs),
        len(operators),
    )


def _arity(operator: Table, code: int) -> None:
    fewest, most = ARITY.get(code, (1, 1))
    results = len(operator.get("outputs", []))
    wanted = operator.get("options", {}).get("num_splits", 0) if code == schema.SPLIT else 1
    if not fewest <= len(operator["inputs"]) <= most or results != wanted:
        raise malformed("an operator has too few or too many inputs or outputs")


def _types(operator: Table, code: int, tensors: list[Table]) -> None:
    def datatype(index: int) -> str:
        return DATATYPES[tensors[index].get("type", 0)][0]

    shaping = CONSTANT_INPUTS.get(code, ())
    given = [datatype(t) for i, t in enumerate(operator["inputs"]) if i not in shaping and t >= 0]
    made = {datatype(t) for t in operator.get("outputs", [])}
    if any(datatype(operator["inputs"][i]) not in ("INT32", "INT64") for i in shaping if i < len(operator["inputs"])):
        raise malformed("a shape is not given in integers")
    if code == schema.GATHER:
        fits = given[1] in ("INT32", "INT64") and made == {given[0]}
    elif code in schema.MOVING:
        fits = {*given} == made and len(made) == 1
    elif code == schema.CAST:
        fits = True
    elif code == schema.DEQUANTIZE:
        fits = given == ["FP16"] and made == {"FP32"}
    elif code in schema.INDEXING:
        fits = {*given} == {"FP32"} and made <= {"INT32", "INT64"}
    else:
        fits = {*given, *made} == {"FP32"}
    if not fits:
        raise InvalidInput("operator-refused", "an operator computes with a type that is not accepted for it")


def _options(operator: Table, code: int) -> None:
    kind = operator.get("options_type", 0)
    wanted = OPERATORS[code]
    if kind not in (0, wanted) or (kind != 0) != ("options" in operator):
        raise malformed("an operator has another one's options")
    slots = SCHEMA.get(f"union:{wanted}", {}).values()
    options = operator.get("options", {})
    for slot in slots:
        value = options.get(slot.name)
        if slot.name in POSITIVE and not (value is not None and 1 <= value <= _MAX_OPTION):
            raise malformed("an operator's stride, window or block is not positive")
        if slot.name in POSITIVE_OR_ABSENT and value is not None and not 1 <= value <= _MAX_OPTION:
            raise malformed("an operator's dilation or count is not positive")


def _within(indices: list[int], count: int, *, low: int) -> None:
    if any(not low <= index < count for index in indices):
        raise malformed("an operator refers to a tensor that is not there")


def _tensor(tensor: Table, buffers: list[Table]) -> bool:
    """Check one tensor. :returns: whether it is constant."""
    known = DATATYPES.get(tensor.get("type", 0))
    if known is None:
        raise malformed("a tensor has an element type that is not accepted")
    if tensor.get("is_variable", 0):
        raise InvalidInput("operator-refused", "the model keeps state between requests")
    shape: list[int] = tensor.get("shape", [])
    signature: list[int] = tensor.get("shape_signature", shape)
    if len(shape) > MAX_RANK or len(signature) != len(shape):
        raise malformed(f"a tensor has more than {MAX_RANK} dimensions, or two shapes")
    size = known[1]
    for dim, free in zip(shape, signature, strict=True):
        if dim < 0 or free not in (-1, dim):
            raise malformed("a tensor's shape has a negative dimension")
        size *= dim
    if size > _MAX_TENSOR_BYTES:
        raise InvalidInput("model-too-large", "a tensor takes more than 2 GiB")
    _quantization(tensor.get("quantization", {}), shape)
    buffer = tensor.get("buffer", 0)
    if buffer >= max(1, len(buffers)):
        raise malformed("a tensor has no buffer")
    data = buffers[buffer].get("data") if buffer else None
    if data is None or not len(data):
        return False
    if len(data) != size:
        raise malformed("a tensor's size differs from its shape")
    return True


def _quantization(quantization: Table, shape: list[int]) -> None:
    scales, zeros = quantization.get("scale", []), quantization.get("zero_point", [])
    axis = quantization.get("quantized_dimension", 0)
    if len(scales) != len(zeros) or (len(scales) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scales))):
        raise malformed("a tensor's quantization does not fit its shape")


def _spec(tensor: Table) -> TensorSpec:
    name = tensor.get("name", "")
    if not name:
        raise malformed("an input or output has no name")
    own: list[int] = tensor.get("shape", [])
    shape: list[int] = tensor.get("shape_signature", own)
    return TensorSpec(name, DATATYPES[tensor.get("type", 0)][0], tuple(shape))
