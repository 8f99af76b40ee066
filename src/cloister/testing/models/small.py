"""Tiny ONNX models, for tests of whatever loads or serves models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from cloister.engines.onnx_schema import DATATYPES
from cloister.engines.port import TensorSpec
from cloister.testing.models.graph import IR_VERSION, OPSET

ONNX_TYPES: Final = {name: number for number, (name, _, _) in DATATYPES.items()}


def value(spec: TensorSpec) -> Any:
    """A ValueInfoProto; free dimensions are called n0, n1, ..."""
    from onnx import helper

    shape = [f"n{i}" if dim < 0 else dim for i, dim in enumerate(spec.shape)]
    return helper.make_tensor_value_info(spec.name, ONNX_TYPES[spec.datatype], shape)


def model_of(
    nodes: Sequence[Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    initializers: Sequence[Any] = (),
    domains: Sequence[tuple[str, int]] = (("", OPSET),),
) -> Any:
    """A ModelProto, unchecked, so that hostile ones can be made too."""
    from onnx import helper

    graph = helper.make_graph(nodes, "g", [value(s) for s in inputs], [value(s) for s in outputs], initializers)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*pair) for pair in domains], ir_version=IR_VERSION
    )


def identity(datatype: str = "FP32", shape: tuple[int, ...] = (-1, 3)) -> bytes:
    """``y = x``."""
    from onnx import helper

    spec = TensorSpec("x", datatype, shape)
    return bytes(
        model_of(
            [helper.make_node("Identity", ["x"], ["y"])], [spec], [TensorSpec("y", datatype, shape)]
        ).SerializeToString()
    )


def sum_difference(shape: tuple[int, ...] = (-1, 3)) -> bytes:
    """``sum = a + b``, ``difference = a - b``."""
    from onnx import helper

    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    specs = [TensorSpec(name, "FP32", shape) for name in ("a", "b", "sum", "difference")]
    return bytes(model_of(nodes, specs[:2], specs[2:]).SerializeToString())


def matrix(weights: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """``y = x W``."""
    from onnx import helper, numpy_helper

    rows, columns = weights.shape
    return bytes(
        model_of(
            [helper.make_node("MatMul", ["x", "W"], ["y"])],
            [TensorSpec("x", "FP32", (-1, rows))],
            [TensorSpec("y", "FP32", (-1, columns))],
            [numpy_helper.from_array(weights, "W")],
        ).SerializeToString()
    )


def small_convnet(*, seed: int = 7, side: int = 32) -> bytes:
    """A convolutional network of 30,000 parameters, with every layer kind that the blocked layout touches."""
    from cloister.testing.models.graph import GraphWriter

    g = GraphWriter("small_convnet", seed)
    x = g.relu6(g.batch_norm(g.conv(g.image(side), 32, 3, stride=2, pads=(0, 0, 1, 1))))
    x = g.relu(g.batch_norm(g.conv(x, 0, 3, pads=(1, 1, 1, 1), depthwise=True)))
    x = g.max_pool(x, 2, 2)
    y = g.conv(x, 32, 3, pads=(1, 1, 1, 1), bias=True)
    x = g.average_pool(g.concat(g.add(x, y), y), 2, 2)
    x = g.relu(g.batch_norm(g.conv(x, 128, 1)))
    g.softmax(g.dense(g.flatten(g.global_pool(x)), 10, gain=6.0))
    return g.model()
