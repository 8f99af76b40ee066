"""MobileNetV1, ResNet101v2 and DenseNet121 at 224x224x3, as in Keras Applications, with seeded weights.

The architectures are those of the papers (Howard et al. 2017, He et al. 2016, Huang et al. 2017) with Keras' padding
and parameter counts. Weights are random but scaled, so that outputs are finite and differ from input to input; they
classify nothing. Time, memory and size are those of trained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cloister.testing.models.graph import GraphWriter

SIDE: Final = 224
CLASSES: Final = 1000


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model's ONNX bytes and its number of parameters, counted as Keras does."""

    name: str
    onnx: bytes
    parameters: int


def mobilenet_v1(*, seed: int = 1, side: int = SIDE) -> DemoModel:
    """MobileNetV1, width 1.0: 4,253,864 parameters, about 17 MB. ``side`` other than 224 is for quick tests."""
    g = GraphWriter("mobilenet_v1", seed)
    x = g.conv(g.image(side), 32, 3, stride=2, pads=(0, 0, 1, 1))
    x = g.relu6(g.batch_norm(x, epsilon=1e-3))
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for filters, stride in blocks:
        pads = (1, 1, 1, 1) if stride == 1 else (0, 0, 1, 1)
        x = g.conv(x, 0, 3, stride=stride, pads=pads, depthwise=True)
        x = g.relu6(g.batch_norm(x, epsilon=1e-3))
        x = g.relu6(g.batch_norm(g.conv(x, filters, 1), epsilon=1e-3))
    x = g.conv(g.global_pool(x), CLASSES, 1, bias=True, gain=8.0)
    g.softmax(g.flatten(x))
    return DemoModel(g.name, g.model(), g.parameters)


def resnet101_v2(*, seed: int = 2, side: int = SIDE) -> DemoModel:
    """ResNet101v2: 44,675,560 parameters, about 178 MB."""
    g = GraphWriter("resnet101_v2", seed)
    x = g.conv(g.image(side), 64, 7, stride=2, pads=(3, 3, 3, 3), bias=True)
    x = g.max_pool(x, 3, 2, pad=1)
    for filters, blocks, last_stride in ((64, 3, 2), (128, 4, 2), (256, 23, 2), (512, 3, 1)):
        for block in range(blocks):
            stride = last_stride if block == blocks - 1 else 1
            x = _residual(g, x, filters, stride, project=block == 0)
    x = g.relu(g.batch_norm(x, spread=4.0))
    g.softmax(g.dense(g.flatten(g.global_pool(x)), CLASSES, gain=8.0))
    return DemoModel(g.name, g.model(), g.parameters)


def _residual(g: GraphWriter, x: str, filters: int, stride: int, *, project: bool) -> str:
    active = g.relu(g.batch_norm(x, spread=2.0))
    if project:
        shortcut = g.conv(active, 4 * filters, 1, stride=stride, bias=True)
    else:
        shortcut = g.max_pool(x, 1, stride) if stride > 1 else x
    y = g.relu(g.batch_norm(g.conv(active, filters, 1)))
    y = g.relu(g.batch_norm(g.conv(y, filters, 3, stride=stride, pads=(1, 1, 1, 1))))
    return g.add(shortcut, g.conv(y, 4 * filters, 1, bias=True, gain=0.4))


def densenet121(*, seed: int = 3, side: int = SIDE) -> DemoModel:
    """DenseNet121: 8,062,504 parameters, about 32 MB."""
    g = GraphWriter("densenet121", seed)
    x = g.conv(g.image(side), 64, 7, stride=2, pads=(3, 3, 3, 3))
    x = g.max_pool(g.relu(g.batch_norm(x)), 3, 2, pad=1)
    channels = 64
    for block, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            y = g.conv(g.relu(g.batch_norm(x)), 128, 1)
            y = g.conv(g.relu(g.batch_norm(y)), 32, 3, pads=(1, 1, 1, 1))
            x = g.concat(x, y)
            channels += 32
        if block < 3:
            channels //= 2
            x = g.average_pool(g.conv(g.relu(g.batch_norm(x)), channels, 1), 2, 2)
    x = g.global_pool(g.relu(g.batch_norm(x)))
    g.softmax(g.dense(g.flatten(x), CLASSES, gain=8.0))
    return DemoModel(g.name, g.model(), g.parameters)


VISION_MODELS: Final[Mapping[str, Callable[[], DemoModel]]] = {
    "mobilenet_v1": mobilenet_v1,
    "resnet101_v2": resnet101_v2,
    "densenet121": densenet121,
}
