"""Does every pooling window fit what it slides over?

ONNX Runtime's blocked (NCHWc) pooling divides by its output's height: a window that does not fit ends the process
(1.31: MaxPool 2x2 over one row, SIGFPE; the plain kernels give an empty tensor). So shapes are followed from the
inputs through the operators of convolutional networks. Where that ends before a pooling node (a free height, an
operator not known here), the blocked layout is not used for the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cloister.engines.port import TensorSpec
from cloister.engines.protobuf import Message, Packed, malformed

Shape = tuple[int, ...]  # -1: not known

_SAME_TEXT: Final = """
Abs BatchNormalization Cast Celu Ceil Clip Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity
InstanceNormalization LRN LeakyRelu Log Mish Neg PRelu QuickGelu Relu Round Selu Sigmoid Softmax Softplus Softsign Sqrt
Tanh ThresholdedRelu
"""
_SAME: Final = frozenset(_SAME_TEXT.split())
_BROADCAST: Final = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Pow"})
_POOLS: Final = frozenset({"MaxPool", "AveragePool"})
_CONVOLUTIONS: Final = frozenset({"Conv", "FusedConv"})
_GLOBAL: Final = frozenset({"GlobalAveragePool", "GlobalMaxPool"})


def windows_fit(graph: Message, inputs: tuple[TensorSpec, ...], constants: Mapping[str, Shape]) -> bool:
    """Whether all pooling windows are known to fit.

    :param constants: shapes of the initializers.
    :raises InvalidInput: ``model-malformed`` when one is known not to.
    """
    shapes: dict[str, Shape] = {**constants, **{spec.name: spec.shape for spec in inputs}}
    all_known = True
    for node in graph.get("node", ()):
        operator = node.get("op_type", "")
        names, results = node.get("input", []), node.get("output", [])
        attributes = {a.get("name", ""): a for a in node.get("attribute", ())}
        found = _follow(operator, [shapes.get(name) for name in names], attributes)
        if operator in _POOLS:
            spatial = found[2:] if found is not None else (-1,)
            if any(dim == 0 for dim in spatial):
                raise malformed("a pooling window is larger than what it slides over")
            all_known = all_known and all(dim > 0 for dim in spatial)
        if found is not None and results:
            shapes[results[0]] = found
    return all_known


def _follow(operator: str, inputs: list[Shape | None], attributes: Mapping[str, Message]) -> Shape | None:
    """The first output's shape, None where it is not known."""
    first = inputs[0] if inputs else None
    if operator in _BROADCAST:
        return _broadcast(inputs)
    if first is None:
        return None
    if operator in _SAME:
        return first
    if operator == "Transpose":
        order = _ints(attributes, "perm", [])
        return tuple(first[i] for i in order) if sorted(order) == list(range(len(first))) else None
    if operator == "Concat":
        return _concatenate(inputs, attributes)
    if len(first) < 3:
        return None
    if operator in ("ReorderInput", "ReorderOutput"):
        return _reorder(operator, first, attributes)
    if operator in _GLOBAL:
        return (*first[:2], *(1 for _ in first[2:]))
    if operator in _POOLS:
        kernel = _ints(attributes, "kernel_shape", [])
        return _slide(first, kernel, first[1], attributes)
    weights = inputs[1] if len(inputs) > 1 else None
    if operator in _CONVOLUTIONS and weights is not None and len(weights) == len(first):
        return _slide(first, _ints(attributes, "kernel_shape", list(weights[2:])), weights[0], attributes)
    return None


def _slide(shape: Shape, kernel: list[int], channels: int, attributes: Mapping[str, Message]) -> Shape | None:
    """ONNX's formula for convolutions and pooling; 0 where the window does not fit."""
    rank = len(shape) - 2
    strides, dilations = _ints(attributes, "strides", [1] * rank), _ints(attributes, "dilations", [1] * rank)
    pads = _ints(attributes, "pads", [0] * 2 * rank)
    padding = bytes(attributes.get("auto_pad", {}).get("s", b"NOTSET"))
    ceiling = attributes.get("ceil_mode", {}).get("i", 0)
    if [len(kernel), len(strides), len(dilations), len(pads)] != [rank, rank, rank, 2 * rank]:
        return None
    if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0:
        return None
    result = []
    for i, size in enumerate(shape[2:]):
        window = (kernel[i] - 1) * dilations[i] + 1
        free = size + pads[i] + pads[i + rank] - window
        if size < 0:
            result.append(-1)
        elif padding in (b"SAME_UPPER", b"SAME_LOWER"):
            result.append(-(-size // strides[i]))
        elif free < 0:
            result.append(0)
        else:
            result.append((-(-free // strides[i]) if ceiling else free // strides[i]) + 1)
    return (shape[0], channels, *result)


def _reorder(operator: str, shape: Shape, attributes: Mapping[str, Message]) -> Shape:
    """Into the blocked layout, whose channels are rounded up to blocks, and out of it."""
    channels_last = attributes.get("channels_last", {}).get("i", 0)
    if operator == "ReorderInput":
        return (shape[0], shape[-1], *shape[1:-1]) if channels_last else shape
    channels = attributes.get("channels", {}).get("i", shape[1])
    return (shape[0], *shape[2:], channels) if channels_last else (shape[0], channels, *shape[2:])


def _broadcast(inputs: list[Shape | None]) -> Shape | None:
    result: Shape = ()
    for shape in inputs:
        if shape is None:
            return None
        rank = max(len(result), len(shape))
        pairs = zip((1,) * (rank - len(result)) + result, (1,) * (rank - len(shape)) + shape, strict=True)
        # Of a known size above 1 and an unknown one, the known one decides.
        result = tuple(max(a, b) if -1 not in (a, b) or max(a, b) > 1 else -1 for a, b in pairs)
    return result


def _concatenate(inputs: list[Shape | None], attributes: Mapping[str, Message]) -> Shape | None:
    shapes = [shape for shape in inputs if shape is not None]
    axis = attributes.get("axis", {}).get("i", 1)
    rank = len(shapes[0]) if shapes else 0
    if len(shapes) != len(inputs) or any(len(shape) != rank for shape in shapes) or not -rank <= axis < rank:
        return None
    joined = [shape[axis] for shape in shapes]
    result = list(shapes[0])
    result[axis] = -1 if -1 in joined else sum(joined)
    return tuple(result)


def _ints(attributes: Mapping[str, Message], name: str, default: list[int]) -> list[int]:
    values: Any = attributes.get(name, {}).get("ints")
    return list(values.values) if isinstance(values, Packed) and len(values.values) == values.count else default
