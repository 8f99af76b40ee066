"""LiteRT (TensorFlow Lite) behind the engine port; needs the extra ``litert``.

An interpreter serves one call at a time, so a session keeps a pool of them. All read their weights from one buffer:
that is why default delegates stay off (XNNPACK would pack a private copy of the weights for each interpreter).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.engines.port import DTYPES, Array, ModelParts, TensorSpec
from cloister.engines.tflite_graph import CheckedModel, check

MAX_INTERPRETERS: Final = 16  # of one session; a further call waits for a free one


class LiteRtEngine:
    """Loads LiteRT flatbuffers on the CPU."""

    @property
    def name(self) -> str:
        return "litert"

    def load(self, parts: ModelParts, *, threads: int = 1) -> LiteRtSession:
        """See :meth:`cloister.engines.port.Engine.load`."""
        if parts.weights:
            raise InvalidInput("model-malformed", "a LiteRT model holds its weights itself")
        checked = check(parts.graph)
        try:
            from ai_edge_litert import interpreter
        except ImportError as error:
            raise Unavailable(
                "engine-missing", "LiteRT is not installed", hint="Install cloister with the extra litert."
            ) from error
        return LiteRtSession(interpreter, bytes(parts.graph), checked, max(1, threads))


@dataclass(slots=True)
class _Lane:
    """An interpreter, and whether no tensor is empty at its present input shapes."""

    interpreter: Any
    fits: bool


class LiteRtSession:
    """A loaded LiteRT model."""

    def __init__(self, library: Any, model: bytes, checked: CheckedModel, threads: int) -> None:
        self._library = library
        self._model = model
        self._threads = threads
        self._inputs = {spec.name: (index, spec) for index, spec in checked.inputs}
        self._outputs = {spec.name: (index, spec) for index, spec in checked.outputs}
        if len(self._inputs) != len(checked.inputs) or len(self._outputs) != len(checked.outputs):
            raise InvalidInput("model-malformed", "two inputs or two outputs of the model have the same name")
        self._idle: list[_Lane] = []
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(MAX_INTERPRETERS)
        self._closed = False
        self._idle.append(self._lane())  # a model that LiteRT refuses is refused now

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return tuple(spec for _, spec in self._inputs.values())

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return tuple(spec for _, spec in self._outputs.values())

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """See :meth:`cloister.engines.port.Session.run`."""
        for name, (_, spec) in self._inputs.items():
            if name not in inputs or not _fits(inputs[name], spec):
                raise InvalidInput("engine-input", "the engine refuses these inputs: a type or shape it cannot take")
        with self._borrowed() as lane:
            interpreter = lane.interpreter
            try:
                self._feed(lane, inputs)
                interpreter.invoke()
                return {name: interpreter.get_tensor(self._outputs[name][0]) for name in (outputs or self._outputs)}
            except CloisterError:
                raise
            except (ValueError, TypeError):
                raise InvalidInput("engine-input", "the engine refuses these inputs") from None
            except Exception:  # noqa: BLE001  # its text names nodes of the decrypted model
                raise Unavailable("engine-failed", "the engine failed on this request") from None

    def close(self) -> None:
        """See :meth:`cloister.engines.port.Session.close`."""
        with self._lock:
            self._closed = True
            self._idle = []
            self._model = b""

    def _feed(self, lane: _Lane, inputs: Mapping[str, Array]) -> None:
        interpreter = lane.interpreter
        resized = False
        for name, (index, spec) in self._inputs.items():
            shape = inputs[name].shape
            if -1 in spec.shape and tuple(interpreter._get_tensor_details(index, 0)["shape"]) != shape:
                interpreter.resize_tensor_input(index, shape, strict=True)
                resized = True
        if resized:
            interpreter.allocate_tensors()
            lane.fits = not _has_empty_tensor(interpreter)
        if not lane.fits:
            raise InvalidInput("engine-input", "the inputs are too small for the model")
        for name, (index, _) in self._inputs.items():
            interpreter.set_tensor(index, np.ascontiguousarray(inputs[name]))

    @contextmanager
    def _borrowed(self) -> Iterator[_Lane]:
        with self._places:
            with self._lock:
                if self._closed:
                    raise Unavailable("engine-closed", "the model was unloaded")
                lane = self._idle.pop() if self._idle else None
            if lane is None:
                lane = self._lane()
            yield lane  # one that failed is not used again
            with self._lock:
                if not self._closed:
                    self._idle.append(lane)

    def _lane(self) -> _Lane:
        try:
            interpreter = self._library.Interpreter(
                model_content=self._model,
                num_threads=self._threads,
                experimental_op_resolver_type=self._library.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            interpreter.allocate_tensors()
        except Exception:  # noqa: BLE001  # its text names nodes of the decrypted model
            raise InvalidInput("model-malformed", "the engine refuses the model") from None
        fits = not _has_empty_tensor(interpreter)
        if not fits and not any(-1 in spec.shape for _, spec in self._inputs.values()):
            raise InvalidInput("model-malformed", "the model computes a tensor of no elements")
        return _Lane(interpreter, fits)


def _has_empty_tensor(interpreter: Any) -> bool:
    """Kernels divide by sizes, or index rows that are not there."""
    return any(0 in details["shape"] for details in interpreter.get_tensor_details())


def _fits(array: Array, spec: TensorSpec) -> bool:
    return (
        array.dtype == DTYPES[spec.datatype]
        and array.ndim == len(spec.shape)
        and array.size > 0
        and all(want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True))
    )
