"""What an ONNX model may be, checked before ONNX Runtime sees a byte of it (spec/model-format.md, section 6).

The model's owner may be the attacker, and ONNX Runtime is a large C++ program written for models one trusts. So: one
reading of the bytes (``protobuf.py``), operators by allow-list, subgraphs only where named, weights inside or in our
own named weights files, and every count, size and shape bounded. Errors name no part of the graph unless asked to
(``explain``): a model's structure is its owner's secret too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_GRAPH_BYTES, MAX_GRAPH_NODES, MAX_MODEL_BYTES, MAX_RANK, MAX_TENSORS, MIB
from cloister.engines import onnx_operators as ops
from cloister.engines.onnx_pooling import windows_fit
from cloister.engines.onnx_schema import ATTRIBUTE_TYPES, DATATYPES, SCHEMA
from cloister.engines.port import Buffer, TensorSpec
from cloister.engines.protobuf import Budget, Message, Packed, malformed, read

WEIGHT_FILES: Final = (
    "weights.shared.bin",
    "weights.plain.bin",
    "weights.tuned.bin",
    "weights.shared.repacked.bin",
    "weights.tuned.repacked.bin",
)
"""Where weights outside the graph may lie: in both variants or in one of them, and whether the engine's kernels make
their own copy in another order (``repacked``), so that lending them would keep two.

Each has an empty stand-in beside this module: ONNX Runtime wants the path to exist, and an attempt to read weights from
it fails loudly, where zeros would give silently wrong answers."""

_MAX_FIELDS: Final = 2_000_000  # about a minute of a language model's export; bounds the time of the check
_MAX_DIM: Final = 2**31 - 1
_MAX_TENSOR_BYTES: Final = 16 * 1024 * MIB
_MAX_SUBGRAPH_DEPTH: Final = 4
_MAX_NODE_VALUES: Final = 4096  # inputs or outputs of one node; DenseNet-like Concat has dozens
_MAX_FOLDED: Final = 64 * MIB  # elements that one constant shape may ask for
_ORT_FORMAT: Final = b"ORTM"  # a flatbuffer with this identifier would be read as something else entirely
_GROWS_BY: Final = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Range": 1, "EyeLike": 0, "OneHot": 1}


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """An initializer whose values lie in a weights file, at ``offset`` for ``length`` bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class CheckedGraph:
    """What the check learnt.

    :param tuned: operators bound to a CPU's layout occur.
    :param windows_fit: every pooling window is known to fit, so the blocked layout is safe (``onnx_pooling.py``).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    external: tuple[ExternalTensor, ...]
    nodes: int
    tuned: bool
    windows_fit: bool


def check(graph: Buffer, *, explain: bool = False) -> CheckedGraph:
    """Check a serialised ONNX model.

    :param explain: name operators and tensors in errors. For the owner, at pack time; never in a runtime.
    :raises InvalidInput: ``model-malformed``, ``operator-refused``, ``model-external-path``, ``model-too-large``.
    """
    data = memoryview(graph).cast("B")
    if bytes(data[4:8]) == _ORT_FORMAT:
        raise malformed("it is in ORT format")
    if len(data) >= 2**31:
        raise InvalidInput("model-too-large", "the model's graph has 2 GiB or more; keep its weights outside")
    model = read(data, "ModelProto", SCHEMA, Budget(_MAX_FIELDS))
    return _Check(explain=explain).model(model, len(data))


class _Check:
    def __init__(self, *, explain: bool) -> None:
        self._explain = explain
        self._nodes = 0
        self._weights = 0  # bytes of inline weights
        self._tuned = False
        self._inner_pool = False  # pooling inside a subgraph, where shapes are not followed
        self._opsets: dict[str, int] = {}

    def model(self, model: Message, size: int) -> CheckedGraph:
        if not 3 <= model.get("ir_version", 0) <= 13:
            raise malformed("its IR version is not one of 3 to 13")
        for entry in model.get("metadata_props", ()):
            if entry.get("key") == "ort_config":
                raise InvalidInput("operator-refused", "the model brings its own session options")
        self._opset_imports(model)
        graph = model.get("graph")
        if graph is None:
            raise malformed("it has no graph")
        constants = {tensor.get("name", "") for tensor in graph.get("initializer", ())}
        external = self._graph(graph, depth=0)
        if size - self._weights > MAX_GRAPH_BYTES:
            raise InvalidInput("model-too-large", f"the model's graph without weights has over {MAX_GRAPH_BYTES} bytes")
        inputs = tuple(self._spec(v) for v in graph.get("input", ()) if v.get("name", "") not in constants)
        outputs = tuple(self._spec(value) for value in graph.get("output", ()))
        for values, what in ((inputs, "inputs"), (outputs, "outputs")):
            if not 1 <= len(values) <= MAX_TENSORS:
                raise malformed(f"it has {len(values)} {what}, not 1 to {MAX_TENSORS}")
            if len({value.name for value in values}) != len(values):
                raise malformed(f"two of its {what} have the same name")
        constant_shapes = {t["name"]: _shape(t.get("dims")) for t in graph.get("initializer", ())}
        fit = windows_fit(graph, inputs, constant_shapes) and not self._inner_pool
        if self._tuned and not fit:
            raise malformed("it is tuned, but its pooling windows may not fit")
        return CheckedGraph(inputs, outputs, tuple(external), self._nodes, self._tuned, fit)

    def _refused(self, code: str, what: str, name: str) -> InvalidInput:
        return InvalidInput(code, f"{what}: {name[:100]!r}" if self._explain else what)

    def _opset_imports(self, model: Message) -> None:
        for entry in model.get("opset_import", ()):
            domain, version = _domain(entry.get("domain", "")), entry.get("version", 0)
            if self._opsets.get(domain, version) != version:  # exporters repeat themselves
                raise malformed("an operator domain is imported in two versions")
            if domain not in ops.OPSETS:
                raise self._refused("operator-refused", "the model imports an operator domain that is refused", domain)
            low, high = ops.OPSETS[domain]
            if not low <= version <= high:
                raise InvalidInput(
                    "operator-refused",
                    f"operator set {version} of domain {domain or 'ai.onnx'!r} is not within {low}..{high}",
                )
            self._opsets[domain] = version

    def _graph(self, graph: Message, *, depth: int) -> list[ExternalTensor]:
        if depth > _MAX_SUBGRAPH_DEPTH:
            raise InvalidInput("operator-refused", f"subgraphs are nested more than {_MAX_SUBGRAPH_DEPTH} deep")
        external: list[ExternalTensor] = []
        tensors: dict[str, Message] = {}
        for tensor in graph.get("initializer", ()):
            name = tensor.get("name", "")
            if not name or name in tensors:
                raise malformed("an initializer has no name of its own")
            tensors[name] = tensor
            found = self._tensor(tensor, outside=depth == 0)
            if found is not None:
                external.append(found)
        self._distinct_ranges(external)
        for value in (*graph.get("value_info", ()), *graph.get("input", ()), *graph.get("output", ())):
            self._value(value)
        produced: set[str] = set()
        for node in graph.get("node", ()):
            self._node(node, tensors, depth)
            for name in node.get("output", ()):
                if name and (name in produced or name in tensors):
                    raise malformed("two nodes produce the same value")
                produced.add(name)
        return external

    def _node(self, node: Message, tensors: dict[str, Message], depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_GRAPH_NODES:
            raise InvalidInput("model-too-large", f"the model has more than {MAX_GRAPH_NODES} nodes")
        domain, operator = _domain(node.get("domain", "")), node.get("op_type", "")
        if operator not in ops.OPERATORS.get(domain, frozenset()):
            raise self._refused(
                "operator-refused", "the model uses an operator that is refused", f"{domain}.{operator}"
            )
        if domain not in self._opsets:
            raise malformed("it uses an operator domain that it does not import")
        if max(len(node.get("input", ())), len(node.get("output", ()))) > _MAX_NODE_VALUES:
            raise InvalidInput("model-too-large", f"a node has more than {_MAX_NODE_VALUES} inputs or outputs")
        names = node.get("input", [])
        if (names and not names[0]) or (operator in ops.VARIADIC and not all(names)):
            raise malformed("a node leaves out an input that it needs")
        if operator in ops.SCALAR_INPUTS and any(0 in _shape(tensors[n].get("dims")) for n in names if n in tensors):
            raise malformed("a node's constant input is empty")
        graphs = ops.SUBGRAPHS.get(operator, ()) if domain == ops.ONNX else ()
        seen: set[str] = set()
        for attribute in node.get("attribute", ()):
            name = attribute.get("name", "")
            if not name or name in seen:
                raise malformed("an attribute has no name of its own")
            seen.add(name)
            self._attribute(attribute, subgraph=name in graphs, depth=depth)
        if depth and operator in ("MaxPool", "AveragePool"):
            self._inner_pool = True
        if domain == ops.NCHWC:
            self._tuned = True
            if operator == "Conv":
                self._blocked_conv(node, tensors)
        elif domain == ops.ONNX and operator in _GROWS_BY:
            self._constant_growth(node, _GROWS_BY[operator], tensors)

    def _attribute(self, attribute: Message, *, subgraph: bool, depth: int) -> None:
        holder = ATTRIBUTE_TYPES.get(attribute.get("type", 0))
        if holder is None or (attribute.keys() - {"name", "type", "doc_string", holder}):
            raise malformed("an attribute holds something else than its type says")
        self._bounds(attribute)
        if holder == "t":
            if "t" not in attribute:
                raise malformed("an attribute lacks its tensor")
            self._tensor(attribute["t"], outside=False)
        if (holder == "g") != subgraph:
            raise InvalidInput("operator-refused", "a subgraph stands where none is accepted")
        if holder == "g":
            if "g" not in attribute:
                raise malformed("an attribute lacks its graph")
            self._graph(attribute["g"], depth=depth + 1)

    def _bounds(self, attribute: Message) -> None:
        name = attribute["name"]
        low, high = ops.ATTRIBUTE_BOUNDS.get(name, (-(1 << 63), 1 << 63))
        listed = attribute.get("ints", Packed(0, []))
        values = [attribute["i"]] if "i" in attribute else listed.values
        if name in ops.ATTRIBUTE_BOUNDS and (listed.count != len(listed.values) or not values):
            raise malformed("an attribute that holds whole numbers holds none, or too many")
        if any(not low <= value <= high for value in values):
            raise malformed("an attribute's value is out of its bounds")
        if name == "stash_type" and values[0] not in ops.FLOAT_TYPES:
            raise malformed("an attribute's value is out of its bounds")

    def _tensor(self, tensor: Message, *, outside: bool) -> ExternalTensor | None:
        known = DATATYPES.get(tensor.get("data_type", 0))
        if known is None:
            raise malformed("a tensor has an element type that is not accepted")
        datatype, width, one_by_one = known
        shape = _shape(tensor.get("dims"))
        count = 1
        for dim in shape:
            count *= dim
        if count * max(width, 1) > _MAX_TENSOR_BYTES:
            raise InvalidInput("model-too-large", f"a tensor takes more than {_MAX_TENSOR_BYTES} bytes")
        holders = tensor.keys() & {"raw_data", "external_data", *(known[2] for known in DATATYPES.values())}
        if tensor.get("data_location", 0) == 1 or "external_data" in holders:
            if not outside or holders != {"external_data"} or tensor.get("data_location", 0) != 1 or not width:
                raise InvalidInput("model-external-path", "the model keeps a tensor outside itself where it may not")
            return self._external(tensor, datatype, shape, count * width)
        if tensor.get("data_location", 0) != 0 or len(holders) > 1 or (not holders and count):
            raise malformed("a tensor has no values, or has them twice")
        if "raw_data" in holders:
            if not width or len(tensor["raw_data"]) != count * width:
                raise malformed("a tensor's size differs from its shape")
            self._weights += len(tensor["raw_data"])
        elif holders:
            if holders != {one_by_one}:
                raise malformed("a tensor's values are not of its type")
            values = tensor[one_by_one]
            if (values.count if isinstance(values, Packed) else len(values)) != count:
                raise malformed("a tensor's size differs from its shape")
        return None

    def _external(self, tensor: Message, datatype: str, shape: tuple[int, ...], size: int) -> ExternalTensor:
        entries = {entry.get("key", ""): entry.get("value", "") for entry in tensor["external_data"]}
        if len(tensor["external_data"]) != 3 or entries.keys() != {"location", "offset", "length"}:
            raise InvalidInput("model-external-path", "the model keeps weights outside in a way that is not accepted")
        if entries["location"] not in WEIGHT_FILES:
            raise self._refused(
                "model-external-path", "the model refers to a file that is not its own", entries["location"]
            )
        offset, length = _decimal(entries["offset"]), _decimal(entries["length"])
        if length != size or offset > MAX_MODEL_BYTES or length > MAX_MODEL_BYTES:
            raise malformed("a tensor's place in the weights differs from its shape")
        return ExternalTensor(tensor["name"], datatype, shape, entries["location"], offset, length)

    def _distinct_ranges(self, external: list[ExternalTensor]) -> None:
        """Two tensors share all their bytes or none."""
        ends: dict[str, tuple[int, int]] = {}
        for tensor in sorted(external, key=lambda t: (t.file, t.offset, t.length)):
            start, end = ends.get(tensor.file, (-1, 0))
            if tensor.length and tensor.offset < end and (tensor.offset, tensor.offset + tensor.length) != (start, end):
                raise malformed("two tensors overlap in the weights")
            ends[tensor.file] = (tensor.offset, tensor.offset + tensor.length)

    def _blocked_conv(self, node: Message, tensors: dict[str, Message]) -> None:
        """Sizes as the optimiser writes them, so that no fault of a kernel made for them can be reached by others."""
        names = node.get("input", [])
        if not 2 <= len(names) <= 4 or names[1] not in tensors:
            raise malformed("a blocked convolution has no constant weights")
        weights = _shape(tensors[names[1]].get("dims"))
        if len(weights) != 4 or weights[0] % 8 or 0 in weights:
            raise malformed("a blocked convolution's weights do not fill blocks")
        bias = names[2] if len(names) > 2 else ""
        if bias and (bias not in tensors or _shape(tensors[bias].get("dims")) != weights[:1]):
            raise malformed("a blocked convolution's bias differs from its weights")

    def _constant_growth(self, node: Message, position: int, tensors: dict[str, Message]) -> None:
        """A constant shape is folded, so allocated, when the model is loaded."""
        names = node.get("input", [])
        tensor = tensors.get(names[position]) if position < len(names) else None
        if tensor is None or tensor.get("data_type") != 7:
            return
        values: list[int]
        if "raw_data" in tensor:
            raw = tensor["raw_data"]
            values = [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, min(len(raw), 512), 8)]
        else:
            packed = tensor.get("int64_data")
            values = packed.values if isinstance(packed, Packed) else []
        count = 1
        for value in values:
            count *= max(1, abs(value))
        if count > _MAX_FOLDED:
            raise InvalidInput("model-too-large", "a constant shape asks for an absurd tensor")

    def _value(self, value: Message) -> None:
        kind = value.get("type")
        if kind is None:
            return  # to be inferred
        tensor = kind.get("tensor_type")
        if tensor is None:
            raise InvalidInput("operator-refused", "a value of the model is not a tensor")
        if tensor.get("elem_type", 0) not in DATATYPES:
            raise malformed("a value has an element type that is not accepted")
        if "shape" in tensor:
            _dimensions(tensor["shape"])

    def _spec(self, value: Message) -> TensorSpec:
        tensor = value.get("type", {}).get("tensor_type")
        if tensor is None or "shape" not in tensor or not value.get("name"):
            raise malformed("an input or output lacks its name, type or shape")
        return TensorSpec(value["name"], DATATYPES[tensor["elem_type"]][0], _dimensions(tensor["shape"]))


def _domain(domain: str) -> str:
    return ops.ONNX if domain == "ai.onnx" else domain


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or (text[0] == "0" and text != "0"):
        raise malformed("an offset or length is not a plain number")
    return int(text)


def _shape(dims: Packed | None) -> tuple[int, ...]:
    """A tensor's own shape: every dimension known."""
    if dims is None:
        return ()
    if dims.count > MAX_RANK or any(not 0 <= dim <= _MAX_DIM for dim in dims.values):
        raise malformed(f"a tensor's shape has more than {MAX_RANK} dimensions, or a negative or absurd one")
    return tuple(dims.values)


def _dimensions(shape: Message) -> tuple[int, ...]:
    """A declared shape: -1 where a dimension is free."""
    dims = shape.get("dim", ())
    if len(dims) > MAX_RANK:
        raise malformed(f"a shape has more than {MAX_RANK} dimensions")
    result: list[int] = []
    for dim in dims:
        if "dim_value" in dim and "dim_param" in dim:
            raise malformed("a dimension is both free and fixed")
        value = dim.get("dim_value", -1)
        if "dim_value" in dim and not 0 <= value <= _MAX_DIM:
            raise malformed("a shape has a negative or absurd dimension")
        result.append(value)
    return tuple(result)
