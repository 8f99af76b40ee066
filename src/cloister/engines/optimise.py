"""Packing an ONNX model for fast loads: graph and weights apart, and a variant tuned for this CPU.

Runs on the owner's machine, outside any TEE; the only module here that imports the ``onnx`` package. Plaintext passes
through memory files only, never a disk.

Kernels of dense layers reorder their weights when a session is made. Those weights go into files of their own
(``.repacked``), which a loader releases after the load: lent like the others they would stay in memory twice.

Weights that both variants hold byte for byte lie in ``weights.shared.bin``, the rest beside each. The blocked layout of
convolutions differs from the plain one, so vision models are stored almost twice; a loader fetches one variant.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.base.errors import InvalidInput
from cloister.engines import _ort, known_answer, registry
from cloister.engines.buffers import aligned
from cloister.engines.cpu import this_cpu
from cloister.engines.onnx import BLOCKED_LAYOUT, withheld_optimizers
from cloister.engines.onnx_graph import WEIGHT_FILES, check
from cloister.engines.package import INDEX_FILE, Package, Variant
from cloister.engines.port import ModelParts, Session

SHARED, PLAIN, TUNED, SHARED_REPACKED, TUNED_REPACKED = WEIGHT_FILES
GRAPH_PLAIN: Final = "graph.onnx"
GRAPH_TUNED: Final = "graph.tuned.onnx"
GRAPH_LITERT: Final = "graph.tflite"
_THRESHOLD: Final = 1024  # bytes; smaller tensors (shapes, limits) stay inside, where shape inference needs them
_REORDERING: Final = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "DynamicQuantizeMatMul", "MatMulInteger"})
_MIN_TOLERANCE: Final = 100  # ppm: kernels of one CPU differ in the order of sums
_MAX_TOLERANCE: Final = 20_000  # ppm between plain and tuned; more is a fault, not rounding
_SAFETY: Final = 20  # other CPUs that run the plain variant sum in other orders


@dataclass(frozen=True, slots=True)
class PackedModel:
    """What packing made.

    :param package: the index, parsed.
    :param files: name to plaintext, the index (:data:`cloister.engines.package.INDEX_FILE`) among them; each is to
        be encrypted as it is.
    """

    package: Package
    files: Mapping[str, bytes]


def pack_onnx(model: bytes, *, tuned: bool = True, seed: int = 20) -> PackedModel:
    """Pack a serialised ONNX model that holds its weights.

    :param tuned: also make the variant for this machine's CPU, where its optimised graph passes the check.
    :param seed: of the known answer's input.
    :raises InvalidInput: as :func:`cloister.engines.onnx_graph.check`, naming the operator; ``model-unstable`` when
        the tuned variant computes something else than the plain one.
    """
    import onnx

    try:
        plain = onnx.load_from_string(model)
    except Exception as error:  # protobuf's own errors, for any bytes at all
        raise InvalidInput("model-malformed", "not an ONNX model") from error
    _trim(plain)
    checked = check(plain.SerializeToString(), explain=True)
    if checked.tuned or checked.external:
        raise InvalidInput("model-malformed", "the model was already packed or tuned", hint="Pack the exported model.")
    original = plain
    plain = _folded(plain)
    raw = _session({GRAPH_PLAIN: original.SerializeToString()}, Variant("plain", GRAPH_PLAIN, (), None))
    known = known_answer.record(raw, seed=seed, tolerance=_MAX_TOLERANCE)
    raw.close()
    graphs = [plain]
    if tuned:
        best = _tuned(plain, withheld_optimizers(checked))
        graphs = [best, plain] if best is not None else graphs
    files, variants = _split(graphs)
    worst = 0
    for variant in variants:
        session = _session(files, variant)
        worst = max(worst, _deviation(session, known))
        session.close()
    tolerance = min(_MAX_TOLERANCE, max(_MIN_TOLERANCE, _SAFETY * worst))
    known = known_answer.KnownAnswer(known.seed, tolerance, known.outputs)
    package = Package("onnx", checked.inputs, checked.outputs, tuple(variants), known)
    index = package.encode()
    return PackedModel(Package.parse(index), {INDEX_FILE: index, **files})


def _folded(model: Any) -> Any:
    """The graph with its constant parts evaluated: still standard operators that run anywhere."""
    import onnx

    ort = _ort.runtime()
    level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    folded = onnx.load_from_string(_optimised(model.SerializeToString(), (), level=level))
    _trim(folded)
    return folded


def _tuned(plain: Any, withheld: tuple[str, ...]) -> Any | None:
    """The optimised graph; without the blocked layout where the check cannot follow it, and none where it fuses into
    operators that are refused (a plain graph may still be fused so at load, where its parts were checked)."""
    import onnx

    tuned = onnx.load_from_string(_optimised(plain.SerializeToString(), withheld))
    _trim(tuned)
    try:
        check(tuned.SerializeToString())
    except InvalidInput:
        if withheld:
            return None
        return _tuned(plain, BLOCKED_LAYOUT)
    return tuned


def pack_litert(model: bytes, *, seed: int = 20) -> PackedModel:
    """Pack a LiteRT flatbuffer: one variant, one file.

    :raises InvalidInput: as :func:`cloister.engines.tflite_graph.check`.
    """
    variant = Variant("plain", GRAPH_LITERT, (), None)
    session = registry.engine("litert").load(ModelParts(model))
    known = known_answer.record(session, seed=seed, tolerance=_MIN_TOLERANCE)
    package = Package("litert", tuple(session.inputs), tuple(session.outputs), (variant,), known)
    session.close()
    index = package.encode()
    return PackedModel(Package.parse(index), {INDEX_FILE: index, GRAPH_LITERT: model})


def _deviation(session: Session, known: known_answer.KnownAnswer) -> int:
    found = known_answer.deviation(session, known)
    if not 0 <= found <= _MAX_TOLERANCE:
        raise InvalidInput(
            "model-unstable",
            "the optimised model computes something else than the original, or not twice the same",
            hint="Random operators, NaN outputs and overflow do this; pack with tuned=False if it is the optimiser.",
        )
    return found


def _session(files: Mapping[str, bytes], variant: Variant) -> Session:
    parts = ModelParts(
        files[variant.graph], {name: files[name] for name in variant.weights}, tuned=variant.tuned_for is not None
    )
    return registry.engine("onnx").load(parts)


def _optimised(model: bytes, withheld: tuple[str, ...], *, level: Any = None) -> bytes:
    """The graph as ONNX Runtime optimises it, by default for this CPU; weights inside."""
    ort = _ort.runtime()
    options = ort.SessionOptions()
    if level is not None:
        options.graph_optimization_level = level
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.load_model_format", "ONNX")
    descriptor = os.memfd_create("optimised", os.MFD_CLOEXEC)
    try:
        options.optimized_model_filepath = f"/proc/self/fd/{descriptor}"
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(withheld))
        with open(descriptor, "rb", closefd=False) as stream:  # a descriptor has no path
            stream.seek(0)
            return stream.read()
    finally:
        os.close(descriptor)


def _trim(model: Any) -> None:
    """Drop what an engine does not need and a user need not learn: who made it with what, notes, unused domains."""
    for field in ("producer_name", "producer_version", "domain", "doc_string", "metadata_props", "model_version"):
        model.ClearField(field)
    model.graph.ClearField("doc_string")
    used = {_domain(node.domain) for graph in _graphs(model.graph) for node in graph.node} | {""}
    versions: dict[str, int] = {}
    for entry in model.opset_import:  # skl2onnx writes some twice
        domain = _domain(entry.domain)
        if domain in used and versions.setdefault(domain, entry.version) != entry.version:
            raise InvalidInput(
                "model-malformed", f"two versions of operator domain {domain or 'ai.onnx'!r} are imported"
            )
    model.ClearField("opset_import")
    for domain, version in versions.items():
        model.opset_import.add(domain=domain, version=version)
    for graph in _graphs(model.graph):
        for node in graph.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _graphs(graph: Any) -> Iterable[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


class _Blob:
    """Grows a weights file; equal values are stored once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._known: dict[bytes, int] = {}

    def put(self, values: bytes) -> int:
        """:returns: the offset of ``values``, a multiple of the alignment."""
        digest = hashlib.sha256(values).digest()
        if digest not in self._known:
            self.data.extend(bytes(aligned(len(self.data)) - len(self.data)))
            self._known[digest] = len(self.data)
            self.data.extend(values)
        return self._known[digest]


def _split(models: list[Any]) -> tuple[dict[str, bytes], list[Variant]]:
    """Move weights out of the graphs (the last one is the plain one) and name the variants."""
    contents = [{hashlib.sha256(raw).digest() for _, raw in _large(model)} for model in models]
    shared = contents[0] & contents[1] if len(contents) == 2 else set()
    repacked = _repacked(models[0]) if len(models) == 2 else set()
    blobs = {name: _Blob() for name in WEIGHT_FILES}
    files: dict[str, bytes] = {}
    variants: list[Variant] = []
    for model in models:
        is_plain = model is models[-1]
        graph, own = (GRAPH_PLAIN, PLAIN) if is_plain else (GRAPH_TUNED, TUNED)
        used: set[str] = set()
        for tensor, raw in _large(model):
            digest = hashlib.sha256(raw).digest()
            again = digest in repacked and (digest in shared or not is_plain)
            place = (SHARED_REPACKED, SHARED) if digest in shared else (TUNED_REPACKED, own)
            file = place[0] if again else place[1]
            _move_out(tensor, file, blobs[file].put(raw), len(raw))
            used.add(file)
        files[graph] = model.SerializeToString()
        weights = tuple(name for name in WEIGHT_FILES if name in used)
        variants.append(Variant("plain" if is_plain else "tuned", graph, weights, None if is_plain else this_cpu()))
    files.update({name: bytes(blob.data) for name, blob in blobs.items() if blob.data})
    return files, variants


def _repacked(model: Any) -> set[bytes]:
    """Digests of the weights that only kernels use which reorder them."""
    uses: dict[str, set[bool]] = {}
    for graph in _graphs(model.graph):
        for node in graph.node:
            for position, name in enumerate(node.input):
                uses.setdefault(name, set()).add(node.op_type in _REORDERING and position == 1)
    verdicts: dict[bytes, set[bool]] = {}
    for tensor, raw in _large(model):
        verdicts.setdefault(hashlib.sha256(raw).digest(), set()).update(uses.get(tensor.name, {False}))
    return {digest for digest, found in verdicts.items() if found == {True}}


def _large(model: Any) -> Iterable[tuple[Any, bytes]]:
    """Initializers worth moving out, with their values as they lie in memory."""
    from onnx import TensorProto, numpy_helper

    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.STRING, TensorProto.BFLOAT16) or tensor.data_location:
            continue
        raw = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
        if len(raw) >= _THRESHOLD:
            yield tensor, raw


def _move_out(tensor: Any, file: str, offset: int, length: int) -> None:
    from onnx import TensorProto

    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
