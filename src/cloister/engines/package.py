"""A packed model: a small index, and files that hold graph and weights (spec/model-format.md, section 6).

The index says which variants there are. A loader parses it, takes the variant that suits its CPU, decrypts that
variant's files (weights straight into :class:`cloister.engines.buffers.WeightBuffer`), and loads::

    package = Package.parse(index)
    variant = package.choose(this_cpu())
    session = package.load(variant, {name: plaintext for name in variant.files}, threads=1)

:func:`open_package` does all of it, and falls back to the plain variant where a tuned one computes something else.
Nothing here encrypts: the index and the files are what the model format encrypts and authenticates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import MAX_MANIFEST, MAX_NAME, MAX_RANK, MAX_TENSORS
from cloister.engines import registry
from cloister.engines.cpu import FEATURES, Cpu, this_cpu
from cloister.engines.known_answer import MAX_VALUES, Expected, KnownAnswer, confirm
from cloister.engines.port import DTYPES, Buffer, ModelParts, Session, TensorSpec
from cloister.wire import cbor

INDEX_FILE: Final = "model.index"
INDEX_VERSION: Final = 1
MAX_INDEX: Final = MAX_MANIFEST
_MAX_VARIANTS: Final = 8
_MAX_WEIGHT_FILES: Final = 4
_DATATYPES: Final = frozenset((*DTYPES, "BYTES", "BF16"))
_MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to load the model.

    :param graph: file that holds the graph.
    :param weights: files that hold weights.
    :param tuned_for: the CPU it was optimised for; None runs anywhere.
    """

    name: str
    graph: str
    weights: tuple[str, ...]
    tuned_for: Cpu | None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file to decrypt, graph first."""
        return (self.graph, *self.weights)

    @property
    def lent(self) -> tuple[str, ...]:
        """Files whose buffers the session keeps using until it is closed; all others are free after the load."""
        return tuple(name for name in self.weights if not name.endswith(".repacked.bin")) if self.tuned_for else ()


@dataclass(frozen=True, slots=True)
class Package:
    """The index of a packed model."""

    engine: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: tuple[Variant, ...]
    known: KnownAnswer | None

    @classmethod
    def parse(cls, index: bytes) -> Package:
        """:raises InvalidInput: on anything but an index that :meth:`encode` wrote."""
        fields = cbor.Fields(cbor.decode(index, limit=MAX_INDEX, what="the model's index"), "the model's index")
        fields.integer("version", low=INDEX_VERSION, high=INDEX_VERSION)
        engine = fields.text("engine", limit=MAX_NAME)
        inputs = _specs(fields.items("inputs", limit=MAX_TENSORS))
        outputs = _specs(fields.items("outputs", limit=MAX_TENSORS))
        variants = tuple(_variant(item) for item in fields.items("variants", limit=_MAX_VARIANTS))
        known = _known(fields.mapping("known"), outputs) if fields.has("known") else None
        fields.done()
        if not inputs or not outputs or not variants or variants[-1].tuned_for is not None:
            raise InvalidInput("model-malformed", "the model's index lacks inputs, outputs or a last, plain variant")
        return cls(engine, inputs, outputs, variants, known)

    def encode(self) -> bytes:
        """The index file's bytes."""
        value: dict[str, object] = {
            "version": INDEX_VERSION,
            "engine": self.engine,
            "inputs": [[s.name, s.datatype, list(s.shape)] for s in self.inputs],
            "outputs": [[s.name, s.datatype, list(s.shape)] for s in self.outputs],
            "variants": [_encode_variant(variant) for variant in self.variants],
        }
        if self.known is not None:
            value["known"] = {
                "seed": self.known.seed,
                "tolerance": self.known.tolerance,
                "outputs": [[n, list(e.shape), e.values] for n, e in self.known.outputs.items()],
            }
        return cbor.encode(value)

    def choose(self, cpu: Cpu) -> Variant:
        """The first variant that runs on ``cpu``; the last one always does."""
        return next(v for v in self.variants if v.tuned_for is None or cpu.runs(v.tuned_for))

    def load(self, variant: Variant, files: Mapping[str, Buffer], *, threads: int = 1, verify: bool = True) -> Session:
        """Load one variant from its decrypted files.

        :param files: by name; those of :attr:`Variant.lent` stay borrowed until the session is closed.
        :param verify: compare the known answer, at the cost of one inference, which also warms the session. A runtime
            may leave it out when this very package and variant passed in this process before, or when it calls
            :meth:`confirm` in another thread and sends no response before that returned.
        :raises InvalidInput: as :meth:`cloister.engines.port.Engine.load`, and ``model-malformed`` when index and
            graph disagree.
        :raises Unavailable: ``engine-known-answer``.
        """
        missing = [name for name in variant.files if name not in files]
        if missing:
            raise InvalidInput("model-malformed", f"the model lacks {len(missing)} of its files")
        parts = ModelParts(
            files[variant.graph], {name: files[name] for name in variant.weights}, tuned=variant.tuned_for is not None
        )
        session = registry.engine(self.engine).load(parts, threads=threads)
        try:
            if tuple(session.inputs) != self.inputs or not _same_but_known(session.outputs, self.outputs):
                raise InvalidInput("model-malformed", "the model's index and its graph disagree on inputs or outputs")
            if verify:
                self.confirm(session)
        except BaseException:
            session.close()
            raise
        return session

    def confirm(self, session: Session) -> None:
        """Compare the known answer.

        :raises Unavailable: ``engine-known-answer``: this machine computes something else than the packing one did.
        """
        if self.known is not None:
            confirm(session, self.known)


def _same_but_known(found: Sequence[TensorSpec], said: Sequence[TensorSpec]) -> bool:
    """Whether a graph's outputs are the index's; the optimiser may have worked out a size that was free."""
    return len(found) == len(said) and all(
        (f.name, f.datatype, len(f.shape)) == (s.name, s.datatype, len(s.shape))
        and all(size == free or free < 0 for size, free in zip(f.shape, s.shape, strict=True))
        for f, s in zip(found, said, strict=True)
    )


def likely_files(names: Sequence[str]) -> tuple[str, ...]:
    """Which of a packing's files a loader will probably want, told by their names alone, before the index can be read:
    the tuned variant's where there is one."""
    tuned = any(".tuned." in name for name in names)
    return tuple(n for n in names if n != INDEX_FILE and not (tuned and (".plain." in n or n == "graph.onnx")))


def open_package(
    index: bytes, fetch: Callable[[str], Buffer], *, threads: int = 1, cpu: Cpu | None = None, verify: bool = True
) -> tuple[Session, Variant]:
    """Load the best variant for this machine, or the plain one where a tuned one gives another answer here.

    :param fetch: decrypted contents of one of the package's files.
    """
    package = Package.parse(index)
    variant = package.choose(this_cpu() if cpu is None else cpu)
    while True:
        try:
            files = {name: fetch(name) for name in variant.files}
            return package.load(variant, files, threads=threads, verify=verify), variant
        except Unavailable as error:
            if error.code != "engine-known-answer" or variant.tuned_for is None:
                raise
            variant = package.variants[-1]


def _specs(items: list[object]) -> tuple[TensorSpec, ...]:
    specs = []
    for item in items:
        if not isinstance(item, list) or len(item) != 3:
            raise InvalidInput("model-malformed", "a tensor in the model's index is not name, datatype and shape")
        name, datatype, shape = item
        if not isinstance(name, str) or not name or datatype not in _DATATYPES or not _is_shape(shape, low=-1):
            raise InvalidInput("model-malformed", "a tensor in the model's index has no proper name, datatype or shape")
        specs.append(TensorSpec(name, datatype, tuple(shape)))
    if len({spec.name for spec in specs}) != len(specs):
        raise InvalidInput("model-malformed", "two tensors in the model's index have the same name")
    return tuple(specs)


def _is_shape(shape: object, *, low: int) -> bool:
    return (
        isinstance(shape, list) and len(shape) <= MAX_RANK and all(type(d) is int and low <= d < 2**31 for d in shape)
    )


def _variant(item: object) -> Variant:
    fields = cbor.Fields(item, "a variant in the model's index")
    name, graph = fields.text("name", limit=MAX_NAME), fields.text("graph", limit=MAX_NAME)
    weights = fields.items("weights", limit=_MAX_WEIGHT_FILES)
    cpu = None
    if fields.has("cpu"):
        inner = cbor.Fields(fields.mapping("cpu"), "a CPU in the model's index")
        architecture = inner.text("architecture", limit=32)
        features = inner.items("features", limit=len(FEATURES))
        inner.done()
        cpu = Cpu(architecture, frozenset(f for f in features if isinstance(f, str)))
        if len(cpu.features) != len(features) or features != sorted(cpu.features):
            raise InvalidInput("model-malformed", "a CPU in the model's index lists something else than its features")
    fields.done()
    if not all(isinstance(w, str) and 0 < len(w) <= MAX_NAME for w in weights):
        raise InvalidInput("model-malformed", "a variant in the model's index names no proper weights file")
    return Variant(name, graph, tuple(weights), cpu)


def _encode_variant(variant: Variant) -> dict[str, object]:
    value: dict[str, object] = {"name": variant.name, "graph": variant.graph, "weights": list(variant.weights)}
    if variant.tuned_for is not None:
        cpu = variant.tuned_for
        value["cpu"] = {"architecture": cpu.architecture, "features": sorted(cpu.features)}
    return value


def _known(value: object, outputs: tuple[TensorSpec, ...]) -> KnownAnswer:
    fields = cbor.Fields(value, "the known answer")
    seed = fields.integer("seed", high=2**32 - 1)
    tolerance = fields.integer("tolerance", high=_MILLION)
    expected: dict[str, Expected] = {}
    types = {spec.name: spec.datatype for spec in outputs}
    for item in fields.items("outputs", limit=MAX_TENSORS):
        if not isinstance(item, list) or len(item) != 3:
            raise InvalidInput("model-malformed", "a known output is not name, shape and values")
        name, shape, values = item
        if types.get(name, "BYTES") == "BYTES" or name in expected or not _is_shape(shape, low=0):
            raise InvalidInput("model-malformed", "a known output has no proper name or shape")
        if not isinstance(values, bytes) or len(values) > 8 * MAX_VALUES or len(values) % _stored_width(types[name]):
            raise InvalidInput("model-malformed", "a known output's values do not fit its datatype")
        expected[name] = Expected(tuple(shape), values)
    fields.done()
    return KnownAnswer(seed, tolerance, expected)


def _stored_width(datatype: str) -> int:
    """Bytes a value: half-precision floats are stored as float32."""
    return 4 if datatype in ("BF16", "FP16") else DTYPES[datatype].itemsize
