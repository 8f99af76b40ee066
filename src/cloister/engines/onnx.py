"""ONNX Runtime behind the engine port: sessions from memory, weights borrowed, one session for many threads.

Two ways to load (PERFORMANCE: ResNet101v2 in 15 ms instead of 500, 1.1 x its weights instead of 3.5 x):

* a **tuned** graph was optimised when the model was packed. Its weights are handed over as they lie
  (``add_initializer``, no copy), and no optimiser runs. Weights that kernels reorder for themselves (of dense layers)
  are given away instead, so that only the reordered copy stays. The graph says where weights lie by naming an empty
  stand-in file, so an attempt of ONNX Runtime to read one itself fails loudly.
* a **plain** graph is optimised here, for this CPU (``add_external_initializers``, which copies).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.engines import _ort
from cloister.engines.onnx_graph import CheckedGraph, ExternalTensor, check
from cloister.engines.port import DTYPES, Array, Buffer, ModelParts, TensorSpec

_STAND_INS: Final = Path(__file__).parent / "stand_in"
_PROVIDERS: Final = ["CPUExecutionProvider"]
_BFLOAT16: Final = 16  # TensorProto.DataType
_SILENT: Final = 4
_SHRINK_EVERY: Final = 256  # calls; the one after pays some page faults
BLOCKED_LAYOUT: Final = ("NchwcTransformer",)
# Evaluates constant parts of a graph at load, outside the arena's bound: a few bytes could ask for all memory there is.
# Packing has done it already, on the owner's machine.
_FOLDING: Final = ("ConstantFolding",)


class OnnxEngine:
    """Loads ONNX models on the CPU."""

    @property
    def name(self) -> str:
        return "onnx"

    def load(self, parts: ModelParts, *, threads: int = 1) -> OnnxSession:
        """See :meth:`cloister.engines.port.Engine.load`."""
        checked = check(parts.graph)
        if checked.tuned and not parts.tuned:
            raise InvalidInput("model-malformed", "a graph tuned for a CPU is offered as one for any")
        ort = _ort.arena()
        options = _options(ort, threads)
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_DISABLE_ALL if parts.tuned else level.ORT_ENABLE_ALL
        values = [(tensor, _ort_value(ort, tensor, parts.weights)) for tensor in checked.external]
        try:
            if parts.tuned:
                options.add_session_config_entry(
                    "session.model_external_initializers_file_folder_path", str(_STAND_INS)
                )
            lent = [value for tensor, value in values if parts.tuned and is_lent(tensor.file)]
            for tensor, value in values:
                if parts.tuned and is_lent(tensor.file):
                    options.add_initializer(tensor.name, value)
            given = [(tensor.name, value) for tensor, value in values if not (parts.tuned and is_lent(tensor.file))]
            if given:
                options.add_external_initializers([name for name, _ in given], [value for _, value in given])
            session = ort.InferenceSession(
                bytes(parts.graph),
                options,
                providers=_PROVIDERS,
                disabled_optimizers=[*withheld_optimizers(checked), *_FOLDING],
            )
            session.disable_fallback()  # it would print the engine's own message
        except Exception as error:  # noqa: BLE001  # its text names nodes of the decrypted model: none of it goes on
            raise _load_error(error) from None
        session._model_bytes = None  # would keep the plaintext model alive as long as the session
        shrinking = ort.RunOptions()
        shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return OnnxSession(session, checked, lent, shrinking)


class OnnxSession:
    """A loaded ONNX model. Threads call :meth:`run` without further locks."""

    def __init__(self, session: Any, checked: CheckedGraph, borrowed: list[Any], shrinking: Any) -> None:
        self._session = session
        self._shrinking = shrinking
        self._calls = itertools.count(1)
        self._borrowed = borrowed  # keeps the views of the weights' buffers alive until close
        self._inputs = checked.inputs
        self._outputs = checked.outputs
        self._names = [spec.name for spec in checked.outputs]
        self._text_in = [s.name for s in checked.inputs if s.datatype == "BYTES"]
        self._text_out = [s.name for s in checked.outputs if s.datatype == "BYTES"]
        self._half_in = {s.name for s in checked.inputs if s.datatype == "BF16"}
        self._half_out = {s.name for s in checked.outputs if s.datatype == "BF16"}
        if (self._half_in or self._half_out) and (self._text_in or self._text_out):
            raise InvalidInput("engine-datatype", "one model cannot have both BF16 and BYTES among inputs and outputs")

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self._inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self._outputs

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """See :meth:`cloister.engines.port.Session.run`."""
        session = self._session
        if session is None:
            raise Unavailable("engine-closed", "the model was unloaded")
        names = list(outputs) or self._names
        feed = dict(inputs)
        try:
            if self._half_in or self._half_out:
                return self._run_half(session, names, feed)
            for name in self._text_in:
                feed[name] = _to_text(feed[name])
            # What the largest request so far needed would stay allocated for ever.
            options = None if next(self._calls) % _SHRINK_EVERY else self._shrinking
            found = dict(zip(names, session.run(names, feed, options), strict=True))
            for name in self._text_out:
                if name in found:
                    found[name] = _from_text(found[name])
        except CloisterError:
            raise
        except Exception as error:  # noqa: BLE001  # its text holds shapes and node names, perhaps values
            raise _run_error(error) from None
        else:
            return found

    def _run_half(self, session: Any, names: list[str], feed: dict[str, Array]) -> dict[str, Array]:
        """With BF16 among inputs or outputs: numpy has no such type, so values go by way of OrtValue."""
        ort = _ort.runtime()
        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _BFLOAT16)
            if name in self._half_in
            else ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in feed.items()
        }
        found = zip(names, session.run_with_ort_values(names, values), strict=True)
        return {name: _bfloat16_bits(value) if name in self._half_out else value.numpy() for name, value in found}

    def close(self) -> None:
        """See :meth:`cloister.engines.port.Session.close`."""
        self._session = None
        self._borrowed = []


def withheld_optimizers(checked: CheckedGraph) -> tuple[str, ...]:
    """Optimisers that must not touch this graph, wherever it is optimised."""
    return () if checked.windows_fit else BLOCKED_LAYOUT


def is_lent(file: str) -> bool:
    """Whether a tuned graph borrows this weights file until its session is closed; others are free after the load."""
    return not file.endswith(".repacked.bin")


def _options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(1, threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    # Idle threads of one model must not burn the core that another one needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")  # not in the arena
    # Otherwise bytes 4 to 8 decide which parser reads the model.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _tensor_view(tensor: ExternalTensor, weights: Mapping[str, Buffer]) -> memoryview:
    if tensor.file not in weights:
        raise InvalidInput("model-malformed", "the model lacks a weights file that its graph refers to")
    whole = memoryview(weights[tensor.file]).cast("B")
    if tensor.offset + tensor.length > len(whole):
        raise InvalidInput("model-malformed", "a tensor lies beyond the end of its weights file")
    return whole[tensor.offset : tensor.offset + tensor.length]


def _ort_value(ort: Any, tensor: ExternalTensor, weights: Mapping[str, Buffer]) -> Any:
    view = _tensor_view(tensor, weights)
    if tensor.datatype == "BF16":
        bits = np.frombuffer(view, np.uint16).reshape(tensor.shape)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(np.frombuffer(view, DTYPES[tensor.datatype]).reshape(tensor.shape))


def _to_text(array: Array) -> Array:
    try:
        items = [item.decode() if isinstance(item, bytes) else str(item) for item in array.reshape(-1).tolist()]
    except UnicodeDecodeError:
        raise InvalidInput("engine-input", "a text of the input is not UTF-8") from None
    return np.array(items, dtype=object).reshape(array.shape)


def _from_text(array: Array) -> Array:
    items = [item.encode() if isinstance(item, str) else item for item in array.reshape(-1).tolist()]
    result = np.empty(len(items), dtype=object)
    result[:] = items
    return result.reshape(array.shape)


def _bfloat16_bits(value: Any) -> Array:
    """A BF16 tensor as UINT16; numpy has no such type, so the bits are copied out by address."""
    import ctypes

    shape = tuple(value.shape())
    size = 2 * int(np.prod(shape))
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(bytearray(raw), np.uint16).reshape(shape)


def _load_error(error: Exception) -> CloisterError:
    if _out_of_memory(error):
        return Unavailable("engine-memory", "there is not enough memory to load the model")
    return InvalidInput("model-malformed", "the engine refuses the model", hint="Pack it again; packing explains why.")


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "bad_alloc" in text or ("memory" in text and "alloc" in text)


def _run_error(error: Exception) -> CloisterError:
    if type(error).__name__ == "InvalidArgument" or isinstance(error, (TypeError, ValueError)):
        return InvalidInput("engine-input", "the engine refuses these inputs: a type or shape the model cannot take")
    if _out_of_memory(error):
        return Unavailable("engine-memory", "the model needs more working memory for these inputs than it may have")
    return Unavailable("engine-failed", "the engine failed on this request")
