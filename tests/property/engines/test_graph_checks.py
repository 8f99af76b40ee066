"""The checks of model files, on any bytes at all: an answer or InvalidInput, nothing else."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloister.base.errors import InvalidInput
from cloister.engines import onnx_graph, tflite_graph
from cloister.engines.flatbuffer import SIZES
from cloister.engines.onnx_schema import DATATYPES, SCHEMA
from cloister.engines.package import INDEX_FILE, Package
from cloister.testing.models import small, tflite

SEEDS = {
    "onnx": [small.sum_difference(), small.identity("BYTES")],
    "tflite": [tflite.sum_difference(), tflite.identity()],
}


@st.composite
def mutated(draw: st.DrawFn, kind: str) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS[kind])))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["flip", "set", "insert", "delete", "copy"])):
            case "flip":
                data[position] ^= 1 << draw(st.integers(0, 7))
            case "set":
                data[position] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
            case "insert":
                data[position:position] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del data[position : position + draw(st.integers(1, 8))]
            case _:
                end = draw(st.integers(position, len(data)))
                data[position:position] = data[position:end][:64]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


@given(st.binary(max_size=200) | mutated("onnx"))
@example(b"")
@example(b"\xff" * 40)
def test_onnx_check_answers_or_refuses(data: bytes):
    try:
        onnx_graph.check(data)
    except InvalidInput:
        return


@given(st.binary(max_size=200) | mutated("tflite"))
@example(b"")
@example(b"\xff" * 40)
@example(b"\x08\0\0\0TFL3")
def test_tflite_check_answers_or_refuses(data: bytes):
    try:
        tflite_graph.check(data)
    except InvalidInput:
        return


@given(mutated("onnx"))
def test_what_the_check_accepts_protobuf_reads_alike(data: bytes):
    """No parser differential: the reference parser sees the same inputs, outputs and nodes."""
    try:
        checked = onnx_graph.check(data)
    except InvalidInput:
        return
    model = onnx.load_from_string(data)
    constants = {tensor.name for tensor in model.graph.initializer}
    assert [s.name for s in checked.inputs] == [v.name for v in model.graph.input if v.name not in constants]
    assert [s.name for s in checked.outputs] == [v.name for v in model.graph.output]
    assert checked.nodes == len(model.graph.node)


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_an_index_is_read_or_refused(data: bytes):
    try:
        Package.parse(data)
    except InvalidInput:
        return


@pytest.mark.parametrize("message", SCHEMA)
def test_the_onnx_schema_is_onnx_own(message: str):
    descriptor = onnx.ModelProto.DESCRIPTOR.file
    kind = descriptor.message_types_by_name[message.split(".", maxsplit=1)[0]]
    for inner in message.split(".")[1:]:
        kind = kind.nested_types_by_name[inner]
    names = {1: "double", 2: "float", 3: "int64", 4: "int64", 5: "int64", 9: "text", 12: "bytes", 14: "int64"}
    for number, field in SCHEMA[message].items():
        theirs = kind.fields_by_number[number]
        assert theirs.name == field.name
        assert theirs.is_repeated == field.repeated
        if theirs.message_type is not None:
            assert theirs.message_type.full_name.removeprefix("onnx.") == field.kind
        else:
            assert names[theirs.type] == field.kind or (theirs.type == 12 and field.kind == "bytes")


def test_the_onnx_datatypes_are_onnx_own():
    for number, (_, width, holder) in DATATYPES.items():
        if width:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(number)
            assert dtype.itemsize == width
        assert onnx.helper.tensor_dtype_to_field(number) == holder


def test_the_tflite_schema_is_litert_own():
    """Slots and kinds against LiteRT's generated Python."""
    import inspect
    import re

    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    from cloister.engines.tflite_schema import OPERATORS
    from cloister.engines.tflite_schema import SCHEMA as OURS

    options = {number: name for name, number in vars(schema.BuiltinOptions).items() if isinstance(number, int)}
    source = inspect.getsource(schema)
    kinds = {
        "Int8": "int8",
        "Uint8": "uint8",
        "Int32": "int32",
        "Uint32": "uint32",
        "Bool": "bool",
        "Float32": "float32",
    }
    tables = {"Quantization": "QuantizationParameters"}
    for name, slots in OURS.items():
        theirs = options[int(name[6:])] if name.startswith("union:") else tables.get(name, name)
        found = {
            int(slot): kind
            for kind, slot in re.findall(
                rf"^def {theirs}Add\w+\(builder[^)]*\):\n\s+builder\.Prepend(\w+)Slot\((\d+)", source, re.MULTILINE
            )
        }
        for slot, field in slots.items():
            if field.kind in SIZES:
                assert kinds[found[slot]] == field.kind, (name, field)
            else:
                assert found[slot] == "UOffsetTRelative", (name, field)
    codes = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    shared = {"Pool2DOptions", "ReducerOptions", "MaximumMinimumOptions", "L2NormOptions"}
    for code, kind in OPERATORS.items():
        if kind and options[kind] not in shared:
            assert codes[code].replace("_", "")[:3] == options[kind].upper()[:3]


def test_packed_indexes_survive_no_change():
    from cloister.engines.optimise import pack_onnx

    index = pack_onnx(small.identity()).files[INDEX_FILE]
    for position in range(len(index)):
        changed = bytearray(index)
        changed[position] ^= 0x80
        try:
            Package.parse(bytes(changed))
        except InvalidInput:
            continue
