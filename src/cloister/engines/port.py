"""The engine port: load a model from memory, describe it, run it (spec/model-format.md, section 6).

An engine never sees a path: graph and weights arrive as buffers that it may borrow. Everything a model file may do is
bounded before the engine reads it (allow-list of operators, no custom operators, no external paths), because the
model's owner may be the attacker (spec/threat-model.md, S11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Buffer = bytes | memoryview

DTYPES: Final[Mapping[str, np.dtype[np.generic]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
"""OIP v2 datatype to numpy's, for those that have one. BYTES travels as an object array of ``bytes`` or ``str``, BF16
as UINT16 holding the upper half of a float32; an engine that can do neither refuses such a model at load."""


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
    :param weights: weights file to its plaintext. The graph states which slice is which tensor. The engine may keep
        views of these buffers: the caller keeps them unchanged until the session is closed, and aligned to
        :data:`cloister.engines.buffers.ALIGNMENT`.
    :param tuned: the graph was optimised at pack time for this machine's CPU and is to be taken as it is.
    """

    graph: Buffer
    weights: Mapping[str, Buffer] = field(default_factory=dict)
    tuned: bool = False


class Session(Protocol):
    """One loaded model. :meth:`run` may be called from many threads at once; one copy of the weights serves all."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]: ...

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] = ()) -> Mapping[str, Array]:
        """Infer. Inputs were already checked against :attr:`inputs` in name, type and shape.

        Inputs that are C-contiguous are handed over without a copy and not kept; outputs belong to the caller.

        :param outputs: the outputs wanted, in this order; all of them when empty.
        :raises InvalidInput: ``engine-input`` when the engine refuses these values.
        :raises Unavailable: ``engine-memory`` when it would take too much memory, ``engine-failed`` when it fails
            otherwise, ``engine-closed`` after :meth:`close`.
        """

    def close(self) -> None:
        """Free everything; no call may be under way. The weights' buffers are the caller's again. May be repeated."""


class Engine(Protocol):
    """A kind of engine: ``onnx``, ``litert``, ..."""

    @property
    def name(self) -> str: ...

    def load(self, parts: ModelParts, *, threads: int = 1) -> Session:
        """Check the graph against the allow-list, then make a session.

        :param threads: how many threads one :meth:`Session.run` may use.
        :raises InvalidInput: ``model-malformed``, ``operator-refused``, ``model-external-path``, ``model-too-large``.
        :raises Unavailable: ``engine-missing`` when the engine's library is not installed, ``engine-unsafe`` when it
            was imported by somebody else with telemetry on.
        """
