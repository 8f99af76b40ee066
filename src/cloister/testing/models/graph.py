"""A small writer of ONNX graphs in the shape that exporters of Keras models give them.

Weights are drawn from PCG64's raw stream, whose values numpy keeps from version to version, so that a model's bytes
are the same everywhere.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

OPSET: Final = 17
IR_VERSION: Final = 8
BATCH_NORM_EPSILON: Final = 1.001e-5  # Keras' value in ResNetV2 and DenseNet


def uniform(bits: np.random.PCG64, size: int) -> npt.NDArray[np.float32]:
    """``size`` numbers in [0, 1), multiples of 2**-24, exact in float32."""
    words = bits.random_raw((size + 1) // 2).view(np.uint32)[:size]
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


class GraphWriter:
    """Appends one layer after another; every method takes and returns the name of a value.

    Layout inside is NCHW; :meth:`image` transposes once, as tf2onnx does. :attr:`parameters` counts as Keras does
    (moving means and variances included).
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.parameters = 0
        self._bits = np.random.PCG64(seed)
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._channels: dict[str, int] = {}

    def image(self, side: int) -> str:
        """Declare the input ``input``: 1 x side x side x 3, float32, NHWC."""
        from onnx import TensorProto, helper

        self._inputs.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, side, side, 3]))
        return self._node("Transpose", ["input"], 3, perm=[0, 3, 1, 2])

    def conv(
        self,
        x: str,
        filters: int,
        kernel: int,
        *,
        stride: int = 1,
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        bias: bool = False,
        depthwise: bool = False,
        gain: float = 1.0,
    ) -> str:
        """Convolution; ``pads`` is top, left, bottom, right. He-scaled weights times ``gain``."""
        channels = self._channels[x]
        groups = channels if depthwise else 1
        filters = channels if depthwise else filters
        shape = (filters, channels // groups, kernel, kernel)
        inputs = [x, self._weight(shape, gain * float(np.sqrt(6.0 / (shape[1] * kernel * kernel))))]
        if bias:
            inputs.append(self._weight((filters,), 0.05))
        return self._node(
            "Conv",
            inputs,
            filters,
            dilations=[1, 1],
            group=groups,
            kernel_shape=[kernel, kernel],
            pads=list(pads),
            strides=[stride, stride],
        )

    def batch_norm(self, x: str, *, spread: float = 1.0, epsilon: float = BATCH_NORM_EPSILON) -> str:
        """Batch normalisation of a signal whose variance is about ``spread``."""
        channels = self._channels[x]
        names = [
            self._weight((channels,), 0.2, centre=1.0),
            self._weight((channels,), 0.1),
            self._weight((channels,), 0.1),
            self._weight((channels,), 0.2 * spread, centre=spread),
        ]
        return self._node("BatchNormalization", [x, *names], channels, epsilon=epsilon)

    def relu(self, x: str) -> str:
        return self._node("Relu", [x], self._channels[x])

    def relu6(self, x: str) -> str:
        low = self._constant(np.array(0.0, np.float32))
        high = self._constant(np.array(6.0, np.float32))
        return self._node("Clip", [x, low, high], self._channels[x])

    def max_pool(self, x: str, kernel: int, stride: int, *, pad: int = 0) -> str:
        return self._node(
            "MaxPool", [x], self._channels[x], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
        )

    def average_pool(self, x: str, kernel: int, stride: int) -> str:
        return self._node("AveragePool", [x], self._channels[x], kernel_shape=[kernel] * 2, strides=[stride] * 2)

    def add(self, left: str, right: str) -> str:
        return self._node("Add", [left, right], self._channels[left])

    def concat(self, left: str, right: str) -> str:
        return self._node("Concat", [left, right], self._channels[left] + self._channels[right], axis=1)

    def global_pool(self, x: str) -> str:
        return self._node("GlobalAveragePool", [x], self._channels[x])

    def flatten(self, x: str) -> str:
        return self._node("Flatten", [x], self._channels[x], axis=1)

    def dense(self, x: str, units: int, *, gain: float = 1.0) -> str:
        features = self._channels[x]
        weight = self._weight((features, units), gain * float(np.sqrt(3.0 / features)))
        return self._node("Gemm", [x, weight, self._weight((units,), 0.05)], units)

    def softmax(self, x: str) -> None:
        """Declare the output ``output``: 1 x classes."""
        from onnx import TensorProto, helper

        self._nodes.append(helper.make_node("Softmax", [x], ["output"], name="softmax", axis=1))
        self._outputs.append(helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, self._channels[x]]))

    def model(self) -> bytes:
        """The finished model, deterministic to the byte."""
        import onnx
        from onnx import helper

        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._initializers)
        model = helper.make_model(
            graph, producer_name="cloister", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString(deterministic=True))

    def _node(self, op: str, inputs: list[str], channels: int, **attributes: Any) -> str:
        from onnx import helper

        name = f"{op.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], name=f"{name}_node", **attributes))
        self._channels[name] = channels
        return name

    def _weight(self, shape: tuple[int, ...], limit: float, *, centre: float = 0.0) -> str:
        count = int(np.prod(shape))
        self.parameters += count
        values = (uniform(self._bits, count) * np.float32(2 * limit) + np.float32(centre - limit)).reshape(shape)
        return self._constant(values)

    def _constant(self, values: npt.NDArray[np.float32]) -> str:
        from onnx import numpy_helper

        name = f"weight_{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(values, name))
        return name
