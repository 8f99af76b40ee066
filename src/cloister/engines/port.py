"""The engine port: load a model from memory, describe it, run it (spec/model-format.md, section 6).

An engine never sees a path: graph and weights arrive as bytes or as buffers that it may borrow. Everything a model
file may do is bounded before the engine reads it (allow-list of operators, no custom operators, no external paths).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A model's input or output.

    :param datatype: OIP v2 name: BOOL, UINT8..UINT64, INT8..INT64, FP16, FP32, FP64, BYTES, BF16.
    :param shape: a dimension of -1 is free (batch).
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelParts:
    """A decrypted model as an engine takes it.

    :param graph: the graph; with weights inside when ``weights`` is empty.
    :param weights: initializer name to (datatype, shape, buffer); the engine may keep a view of the buffer, and the
        caller keeps it alive and unchanged until the session is closed.
    """

    graph: bytes
    weights: Mapping[str, tuple[str, tuple[int, ...], memoryview]]


class Session(Protocol):
    """One loaded model. :meth:`run` may be called from many threads at once; one copy of the weights serves all."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]: ...

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Mapping[str, Array]:
        """Infer. Inputs were already checked against :attr:`inputs` in name, type and shape.

        :raises InvalidInput: ``engine-input`` when the engine refuses these values.
        :raises Unavailable: ``engine-failed`` when it fails otherwise.
        """

    def close(self) -> None:
        """Free everything; no call may be under way."""


class Engine(Protocol):
    """A kind of engine: ``onnx``, ``litert``, ..."""

    @property
    def name(self) -> str: ...

    def load(self, parts: ModelParts, *, threads: int) -> Session:
        """Check the graph against the allow-list, then make a session.

        :raises InvalidInput: ``model-malformed``, ``operator-refused``, ``model-external-path``, ``model-too-large``.
        """
