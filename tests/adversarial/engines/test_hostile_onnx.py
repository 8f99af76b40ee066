"""A model's owner is the attacker (S11): what ONNX Runtime must never see."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloister.base.errors import CloisterError, InvalidInput
from cloister.engines.onnx import OnnxEngine
from cloister.engines.onnx_graph import check
from cloister.engines.optimise import pack_onnx
from cloister.engines.port import ModelParts, TensorSpec
from cloister.testing.models import small

X = TensorSpec("x", "FP32", (-1, 3))
Y = TensorSpec("y", "FP32", (-1, 3))


def refused(model: bytes, code: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        OnnxEngine().load(ModelParts(model))
    assert caught.value.code == code
    return str(caught.value)


def of(*nodes, initializers=(), domains=(("", 17),), outputs=(Y,), **changes) -> bytes:
    model = small.model_of(list(nodes), [X], outputs, list(initializers), domains)
    for name, value in changes.items():
        setattr(model, name, value)
    return model.SerializeToString()


def external(location: str, offset: str = "0", length: str = "12", dims=(3,)) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return tensor


ADD_W = helper.make_node("Add", ["x", "w"], ["y"])


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "", "weights.bin", "."])
def test_files_of_others(location: str):
    refused(of(ADD_W, initializers=[external(location)]), "model-external-path")


def test_external_data_where_it_may_not_be():
    constant = helper.make_node("Constant", [], ["w"], value=external("weights.plain.bin"))
    refused(of(constant, ADD_W), "model-external-path")
    both = external("weights.plain.bin")
    both.raw_data = bytes(12)
    refused(of(ADD_W, initializers=[both]), "model-external-path")
    fourth = external("weights.plain.bin")
    fourth.external_data.add(key="checksum", value="0")
    refused(of(ADD_W, initializers=[fourth]), "model-external-path")


@pytest.mark.parametrize(
    ("offset", "length"),
    [("-1", "12"), ("0", "13"), ("0x0", "12"), ("9" * 30, "12"), ("00", "12"), ("", "12"), (" 0", "12")],
)
def test_places_in_the_weights_that_are_not(offset: str, length: str):
    refused(of(ADD_W, initializers=[external("weights.plain.bin", offset, length)]), "model-malformed")


def test_weights_beyond_the_end_of_their_file():
    model = of(ADD_W, initializers=[external("weights.plain.bin", "4")])
    for weights in ({}, {"weights.plain.bin": bytes(12)}):
        with pytest.raises(InvalidInput, match="model-malformed"):
            OnnxEngine().load(ModelParts(model, weights))


def test_operators_of_others_and_other_domains():
    refused(
        of(helper.make_node("Evil", ["x"], ["y"], domain="evil"), domains=[("", 17), ("evil", 1)]), "operator-refused"
    )
    refused(of(helper.make_node("Evil", ["x"], ["y"], domain="evil")), "operator-refused")
    for operator in ("Loop", "RandomNormalLike", "Bernoulli", "SequenceConstruct", "ImageDecoder", "RegexFullMatch"):
        refused(of(helper.make_node(operator, ["x"], ["y"])), "operator-refused")
    for operator in ("EPContext", "Tokenizer", "BeamSearch", "SampleOp"):
        node = helper.make_node(operator, ["x"], ["y"], domain="com.microsoft")
        refused(of(node, domains=[("", 17), ("com.microsoft", 1)]), "operator-refused")
    refused(of(helper.make_node("Identity", ["x"], ["y"]), domains=[("", 999)]), "operator-refused")


def test_names_of_operators_are_told_at_pack_time_only():
    model = of(helper.make_node("SecretArchitecture", ["x"], ["y"]))
    assert "SecretArchitecture" not in refused(model, "operator-refused")
    with pytest.raises(InvalidInput, match="SecretArchitecture"):
        pack_onnx(model)


def test_functions_and_training():
    function = helper.make_function(
        "f", "F", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model = onnx.load_from_string(of(helper.make_node("Identity", ["x"], ["y"])))
    model.functions.append(function)
    refused(model.SerializeToString(), "model-malformed")
    model.ClearField("functions")
    model.training_info.add()
    refused(model.SerializeToString(), "model-malformed")


def test_a_model_may_not_configure_its_session():
    model = onnx.load_from_string(of(helper.make_node("Identity", ["x"], ["y"])))
    model.metadata_props.add(key="ort_config", value='{"session_options": {"enable_profiling": 1}}')
    refused(model.SerializeToString(), "operator-refused")


def test_another_format_in_disguise():
    model = onnx.load_from_string(of(helper.make_node("Identity", ["x"], ["y"])))
    model.producer_name = "ORTM and more"  # bytes 4 to 8 are now the mark of ORT's own format
    data = model.SerializeToString()
    assert data[4:8] == b"ORTM"
    refused(data, "model-malformed")


def test_subgraphs_are_checked_like_graphs():
    def branch(node) -> onnx.GraphProto:
        return helper.make_graph([node], "b", [], [small.value(Y)])

    def conditional(then, otherwise) -> bytes:
        condition = numpy_helper.from_array(np.array(True), "c")
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch(then), else_branch=branch(otherwise))
        return of(node, initializers=[condition])

    good = helper.make_node("Identity", ["x"], ["y"])
    OnnxEngine().load(ModelParts(conditional(good, good))).close()
    refused(conditional(good, helper.make_node("Loop", ["x"], ["y"])), "operator-refused")
    hidden = helper.make_node("Constant", [], ["y"], value=external("../../etc/passwd"))
    refused(conditional(good, hidden), "model-external-path")
    refused(of(helper.make_node("Identity", ["x"], ["y"], sneaky=branch(good))), "operator-refused")
    nested = good
    for _ in range(5):
        nested = helper.make_node("If", ["c"], ["y"], then_branch=branch(nested), else_branch=branch(good))
    refused(of(nested, initializers=[numpy_helper.from_array(np.array(True), "c")]), "operator-refused")
    for _ in range(5):
        nested = helper.make_node("If", ["c"], ["y"], then_branch=branch(nested), else_branch=branch(good))
    refused(of(nested, initializers=[numpy_helper.from_array(np.array(True), "c")]), "model-malformed")


@pytest.mark.parametrize("dims", [(-1, 3), (2**40, 3), (2**31 - 1,) * 8, (1,) * 9, (2**62,)])
def test_absurd_weights(dims: tuple[int, ...]):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(12))
    with pytest.raises(InvalidInput):
        check(of(ADD_W, initializers=[tensor]))


@pytest.mark.parametrize("shape", [(2**40, 3), (-5, 3), (1,) * 9])
def test_absurd_inputs(shape: tuple[int, ...]):
    model = onnx.load_from_string(of(helper.make_node("Identity", ["x"], ["y"])))
    dims = model.graph.input[0].type.tensor_type.shape
    dims.ClearField("dim")
    for dim in shape:
        dims.dim.add(dim_value=dim)
    refused(model.SerializeToString(), "model-malformed")


def test_a_few_bytes_that_ask_for_terabytes():
    shape = numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "s")
    for node in (helper.make_node("ConstantOfShape", ["s"], ["y"]), helper.make_node("Expand", ["x", "s"], ["y"])):
        refused(of(node, initializers=[shape]), "model-too-large")


def test_a_computed_shape_that_asks_for_gigabytes_fails_alone():
    spec = [TensorSpec("s", "INT64", (2,))], [TensorSpec("y", "FP32", (-1, -1))]
    bomb = small.model_of([helper.make_node("ConstantOfShape", ["s"], ["y"])], *spec).SerializeToString()
    session = OnnxEngine().load(ModelParts(bomb))
    for side in (100_000, 2**31, 2**40):
        with pytest.raises(CloisterError) as caught:
            session.run({"s": np.array([side, side])})
        assert caught.value.code in ("engine-memory", "engine-failed", "engine-input")
    assert session.run({"s": np.array([2, 3])})["y"].shape == (2, 3)
    session.close()


def test_a_shape_computed_from_constants_is_not_evaluated_at_load():
    sides = numpy_helper.from_array(np.array([1 << 15, 1 << 15]), "s")
    nodes = [helper.make_node("Mul", ["s", "s"], ["t"]), helper.make_node("ConstantOfShape", ["t"], ["z"])]
    spec = [TensorSpec("x", "FP32", (-1,))], [TensorSpec("y", "FP32", (-1, -1))]
    bomb = small.model_of([*nodes, helper.make_node("Add", ["x", "z"], ["y"])], *spec, [sides]).SerializeToString()
    session = OnnxEngine().load(ModelParts(bomb))  # 2**60 elements
    with pytest.raises(CloisterError):
        session.run({"x": np.ones(1, np.float32)})
    session.close()


def test_inputs_and_attributes_that_end_the_process():
    """Each was a SIGSEGV of ONNX Runtime 1.31, found by building random nodes."""
    for operator in ("Min", "Max", "Mean"):
        refused(of(helper.make_node(operator, ["x", "", "x"], ["y"])), "model-malformed")
    indices = numpy_helper.from_array(np.array([0], np.int64), "i")
    refused(
        of(helper.make_node("GatherND", ["x", "i"], ["y"], batch_dims=-100), initializers=[indices]), "model-malformed"
    )
    empty = numpy_helper.from_array(np.ones(0, np.int64), "d")
    values = numpy_helper.from_array(np.ones(2, np.float32), "v")
    refused(of(helper.make_node("OneHot", ["x", "d", "v"], ["y"]), initializers=[empty, values]), "model-malformed")
    scale = numpy_helper.from_array(np.ones(3, np.float32), "s")
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y"], stash_type=100)
    refused(of(node, initializers=[scale]), "model-malformed")


def test_values_that_do_not_fit_their_shape():
    for tensor in (
        TensorProto(name="w", data_type=1, dims=[3], raw_data=bytes(8)),
        TensorProto(name="w", data_type=1, dims=[3], float_data=[1.0]),
        TensorProto(name="w", data_type=1, dims=[3], int64_data=[1, 2, 3]),
        TensorProto(name="w", data_type=1, dims=[3]),
        TensorProto(name="w", data_type=1, dims=[3], raw_data=bytes(12), float_data=[1.0, 2.0, 3.0]),
        TensorProto(name="w", data_type=99, dims=[3], raw_data=bytes(12)),
        TensorProto(name="", data_type=1, dims=[3], raw_data=bytes(12)),
    ):
        refused(of(ADD_W, initializers=[tensor]), "model-malformed")
    twice = numpy_helper.from_array(np.ones(3, np.float32), "w")
    refused(of(ADD_W, initializers=[twice, twice]), "model-malformed")


def test_two_readings_of_the_same_bytes():
    good = of(helper.make_node("Identity", ["x"], ["y"]))
    refused(good + b"\x08\x08", "model-malformed")  # the IR version twice
    refused(good + bytes([7 << 3 | 2, 0]), "model-malformed")  # a second graph, which protobuf would merge
    refused(good + bytes([30 << 3 | 2 & 0x7F | 0x80, 1, 0]), "model-malformed")  # a field that nobody knows
    refused(good + bytes([1 << 3 | 3, 1 << 3 | 4]), "model-malformed")  # a group
    assert good[0] == 8
    refused(bytes([0x88, 0x00]) + good[1:], "model-malformed")  # a tag written longer than it is


def test_blocked_convolutions_with_other_sizes_than_the_optimiser_writes():
    files = pack_onnx(small.small_convnet()).files
    if "graph.tuned.onnx" not in files:
        pytest.skip("no blocked layout on this CPU")
    model = onnx.load_from_string(files["graph.tuned.onnx"])
    blocked = [node for node in model.graph.node if node.domain == "com.microsoft.nchwc" and node.op_type == "Conv"]
    if not blocked:
        pytest.skip("no blocked layout on this CPU")
    bias = next(t for t in model.graph.initializer if t.name == blocked[0].input[2])
    del bias.dims[:]
    bias.dims.append(1)
    bias.ClearField("external_data")
    bias.data_location = TensorProto.DEFAULT
    bias.raw_data = bytes(4)
    with pytest.raises(InvalidInput, match="bias differs"):
        check(model.SerializeToString())
    blocked[0].input[1] = blocked[1].input[0]
    with pytest.raises(InvalidInput, match="no constant weights"):
        check(model.SerializeToString())


def test_telemetry_is_off_or_nothing_is_served():
    code = (
        "import os; os.environ.pop('ORT_DISABLE_TELEMETRY', None); {}\n"
        "from cloister.engines import _ort\n"
        "_ort.runtime(); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    clean = subprocess.run([sys.executable, "-c", code.format("")], capture_output=True, text=True, check=True)
    assert clean.stdout == "1\n"
    fake = "import sys, types; sys.modules['onnxruntime'] = types.ModuleType('onnxruntime')"
    unsafe = subprocess.run([sys.executable, "-c", code.format(fake)], capture_output=True, text=True, check=False)
    assert "engine-unsafe" in unsafe.stderr


def pooling(operator: str, shape: tuple[int, ...], **attributes) -> bytes:
    """A convolution (so that the blocked layout is used) and a pooling node over 32 channels."""
    weights = numpy_helper.from_array(np.ones((32, 32, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node(operator, ["h"], ["y"], **attributes),
    ]
    specs = [TensorSpec("x", "FP32", shape)], [TensorSpec("y", "FP32", (-1, -1, -1, -1))]
    return small.model_of(nodes, *specs, [weights]).SerializeToString()


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_a_pooling_window_larger_than_its_image_does_not_end_the_process(operator: str):
    """ONNX Runtime's blocked kernels divide by zero here."""
    for shape in ((1, 32, 1, 1), (1, 32, 1, 4), (-1, 32, 1, 4)):
        refused(pooling(operator, shape, kernel_shape=[2, 2]), "model-malformed")
    free = pooling(operator, (-1, 32, -1, -1), kernel_shape=[2, 2])
    assert not check(free).windows_fit
    session = OnnxEngine().load(ModelParts(free))
    for side in (1, 2, 5):
        found = session.run({"x": np.ones((1, 32, side, side), np.float32)})["y"]
        assert found.shape == (1, 32, side - 1, side - 1)
    session.close()
    packed = pack_onnx(pooling(operator, (-1, 32, -1, 8), kernel_shape=[1, 2]))
    assert b"nchwc" not in packed.files["graph.tuned.onnx"]


def test_usual_networks_keep_the_blocked_layout():
    from cloister.testing.models.vision import mobilenet_v1

    for model in (small.small_convnet(), mobilenet_v1(side=64).onnx):
        assert check(model).windows_fit
    assert check(pooling("MaxPool", (-1, 32, 8, 8), kernel_shape=[3, 3], pads=[1, 1, 1, 1])).windows_fit
    assert check(pooling("MaxPool", (-1, 32, 1, 1), kernel_shape=[2, 2], auto_pad="SAME_UPPER")).windows_fit
