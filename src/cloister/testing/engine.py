"""A small engine in pure numpy: what a runtime's tests load instead of ONNX Runtime.

Its models are CBOR maps made with :func:`fake_model`; a program is one of :data:`PROGRAMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from cloister.base.errors import InvalidInput, Unavailable
from cloister.engines.port import DTYPES, Array, ModelParts, TensorSpec
from cloister.wire import cbor

_LIMIT: Final = 64 * 1024
_FREE: Final = -1

Program = Callable[[Sequence[Any], Mapping[str, memoryview]], Sequence[Any]]

PROGRAMS: Final[Mapping[str, Program]] = {
    "identity": lambda inputs, _weights: [np.array(value) for value in inputs],
    "sum-difference": lambda inputs, _weights: [inputs[0] + inputs[1], inputs[0] - inputs[1]],
    # y = x W, with the float32 matrix W, square, in the weights file "matrix"
    "matrix": lambda inputs, weights: [inputs[0] @ _square(weights["matrix"])],
}


def fake_model(program: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """A graph for :class:`FakeEngine`."""
    specs = [[[s.name, s.datatype, list(s.shape)] for s in group] for group in (inputs, outputs)]
    return cbor.encode({"program": program, "inputs": specs[0], "outputs": specs[1]})


class FakeEngine:
    """``cloister.engines.port.Engine`` for tests; passes the same contract tests as the real ones."""

    @property
    def name(self) -> str:
        return "fake"

    def load(self, parts: ModelParts, *, threads: int = 1) -> FakeSession:
        """See :meth:`cloister.engines.port.Engine.load`; ``threads`` changes nothing."""
        del threads
        try:
            fields = cbor.Fields(cbor.decode(bytes(parts.graph), limit=_LIMIT, what="a fake model"), "a fake model")
            program = fields.text("program", limit=64)
            inputs = [TensorSpec(n, d, tuple(s)) for n, d, s in fields.items("inputs", limit=64)]
            outputs = [TensorSpec(n, d, tuple(s)) for n, d, s in fields.items("outputs", limit=64)]
            fields.done()
        except (InvalidInput, TypeError, ValueError) as error:
            raise InvalidInput("model-malformed", "not a fake model") from error
        if program not in PROGRAMS:
            raise InvalidInput("operator-refused", "the model uses a refused operator")
        weights = {name: memoryview(buffer) for name, buffer in parts.weights.items()}
        return FakeSession(PROGRAMS[program], inputs, outputs, weights)


class FakeSession:
    """A loaded fake model."""

    def __init__(
        self,
        program: Program,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        weights: Mapping[str, memoryview],
    ) -> None:
        self._program: Program | None = program
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._weights = weights

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self._inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self._outputs

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """See :meth:`cloister.engines.port.Session.run`."""
        program = self._program
        if program is None:
            raise Unavailable("engine-closed", "the model was unloaded")
        for spec in self._inputs:
            array = inputs.get(spec.name)
            if array is None or not _fits(array, spec):
                raise InvalidInput("engine-input", "the engine refuses these inputs")
        values = program([inputs[spec.name] for spec in self._inputs], self._weights)
        found = dict(zip([spec.name for spec in self._outputs], values, strict=True))
        return {name: found[name] for name in (outputs or found)}

    def close(self) -> None:
        """See :meth:`cloister.engines.port.Session.close`."""
        self._program = None
        self._weights = {}


def _fits(array: Array, spec: TensorSpec) -> bool:
    dtype = np.dtype(object) if spec.datatype == "BYTES" else DTYPES.get(spec.datatype, np.dtype(np.uint16))
    return (
        array.dtype == dtype
        and array.ndim == len(spec.shape)
        and all(want in (_FREE, got) for want, got in zip(spec.shape, array.shape, strict=True))
    )


def _square(buffer: memoryview) -> Any:
    values = np.frombuffer(buffer, np.float32)
    side = int(np.sqrt(values.size))
    return values.reshape(side, side)
