"""Packing, choosing a variant, and the known answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloister.base.errors import InvalidInput, Unavailable
from cloister.engines import known_answer
from cloister.engines.buffers import allocate
from cloister.engines.cpu import Cpu, this_cpu
from cloister.engines.onnx import OnnxEngine
from cloister.engines.optimise import PackedModel, pack_onnx
from cloister.engines.package import INDEX_FILE, Package, open_package
from cloister.engines.port import ModelParts, TensorSpec
from cloister.testing.models import small


@pytest.fixture(scope="module")
def convnet() -> bytes:
    return small.small_convnet()


@pytest.fixture(scope="module")
def packed(convnet: bytes) -> PackedModel:
    return pack_onnx(convnet)


def buffers(packed: PackedModel) -> dict[str, memoryview]:
    result = {}
    for name, data in packed.files.items():
        result[name] = allocate(len(data))
        result[name][:] = data
    return result


def test_packed_variants_answer_as_the_original(convnet: bytes, packed: PackedModel):
    x = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    raw = OnnxEngine().load(ModelParts(convnet)).run({"input": x})["output"]
    assert [v.name for v in packed.package.variants] == ["tuned", "plain"]
    for variant in packed.package.variants:
        session = packed.package.load(variant, buffers(packed))
        assert np.allclose(session.run({"input": x})["output"], raw, atol=1e-5)
        session.close()


def test_packing_is_deterministic(convnet: bytes, packed: PackedModel):
    assert pack_onnx(convnet).files == packed.files


def test_the_index_survives_its_encoding(packed: PackedModel):
    assert Package.parse(packed.files[INDEX_FILE]) == packed.package


def test_another_cpu_gets_the_plain_variant(packed: PackedModel):
    here = this_cpu()
    files = buffers(packed)
    assert packed.package.choose(here).name == "tuned"
    assert (
        packed.package.choose(replace(here, features=frozenset())).name in ("plain", "tuned")[: 1 + (here.block == 0)]
    )
    assert packed.package.choose(Cpu("riscv64", here.features)).name == "plain"
    session, variant = open_package(packed.files[INDEX_FILE], files.__getitem__, cpu=Cpu("riscv64", frozenset()))
    assert variant.name == "plain"
    session.close()


def test_a_cpu_with_more_runs_what_was_tuned_for_less():
    old = Cpu("x86_64", frozenset(["avx", "avx2", "fma"]))
    new = Cpu("x86_64", old.features | {"avx_vnni"})
    wide = Cpu("x86_64", old.features | {"avx512f"})
    assert new.runs(old)
    assert not old.runs(new)
    assert not wide.runs(old)  # another block size


def test_a_tuned_variant_that_answers_wrongly_falls_back_to_plain(packed: PackedModel):
    files = buffers(packed)
    values = np.frombuffer(files["weights.tuned.bin"], np.float32)
    values *= -1
    with pytest.raises(Unavailable) as caught:
        packed.package.load(packed.package.variants[0], files)
    assert caught.value.code == "engine-known-answer"
    session, variant = open_package(packed.files[INDEX_FILE], files.__getitem__)
    assert variant.name == "plain"
    session.close()


def test_a_plain_variant_that_answers_wrongly_is_refused(packed: PackedModel):
    files = buffers(packed)
    np.frombuffer(files["weights.plain.bin"], np.float32)[:] *= -1
    with pytest.raises(Unavailable, match="engine-known-answer"):
        packed.package.load(packed.package.variants[-1], files)


def test_a_tuned_graph_taken_for_a_plain_one_is_refused(packed: PackedModel):
    tuned = packed.package.variants[0]
    files = buffers(packed)
    parts = ModelParts(files[tuned.graph], {n: files[n] for n in tuned.weights}, tuned=False)
    if this_cpu().block:
        with pytest.raises(InvalidInput, match="model-malformed"):
            OnnxEngine().load(parts)


def test_an_untuned_graph_taken_as_tuned_is_right_or_refused(packed: PackedModel):
    """Never silently wrong: ONNX Runtime would read weights from the empty stand-ins, and fails."""
    plain = packed.package.variants[-1]
    files = buffers(packed)
    session = packed.package.load(replace(plain, tuned_for=this_cpu()), files)
    session.close()


def test_missing_short_and_swapped_files_are_refused(packed: PackedModel):
    files = buffers(packed)
    variant = packed.package.variants[0]
    with pytest.raises(InvalidInput, match="lacks 1 of its files"):
        packed.package.load(variant, {n: files[n] for n in variant.files[:-1]})
    with pytest.raises(InvalidInput, match="beyond the end"):
        packed.package.load(variant, {**files, variant.files[-1]: files[variant.files[-1]][:-64]})
    other = replace(packed.package, inputs=(replace(packed.package.inputs[0], name="other"),))
    with pytest.raises(InvalidInput, match="disagree"):
        other.load(variant, files)


def test_without_tuning_there_is_one_variant(convnet: bytes):
    packed = pack_onnx(convnet, tuned=False)
    assert [v.name for v in packed.package.variants] == ["plain"]
    session, _ = open_package(packed.files[INDEX_FILE], packed.files.__getitem__)
    session.close()


def test_weights_start_aligned_and_equal_ones_are_stored_once(packed: PackedModel):
    from cloister.engines.onnx_graph import check

    for variant in packed.package.variants:
        external = check(packed.files[variant.graph]).external
        assert external
        assert all(tensor.offset % 64 == 0 for tensor in external)
    assert "weights.shared.repacked.bin" in packed.files
    assert packed.package.variants[0].lent == ("weights.tuned.bin",)
    assert packed.package.variants[-1].lent == ()


def test_nothing_of_the_exporter_remains(packed: PackedModel):
    assert not any(b"cloister" in data for name, data in packed.files.items() if name.endswith(".onnx"))


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "FP64", "BF16", "BOOL", "INT8", "INT64", "UINT32", "BYTES"])
def test_known_answers_of_every_kind(datatype: str):
    packed = pack_onnx(small.identity(datatype))
    session, _ = open_package(packed.files[INDEX_FILE], packed.files.__getitem__)
    known = packed.package.known
    assert known is not None
    assert known_answer.deviation(session, known) == 0
    session.close()


def test_a_packed_model_is_not_packed_again(packed: PackedModel):
    with pytest.raises(InvalidInput, match="already packed"):
        pack_onnx(packed.files["graph.onnx"])


def test_a_model_that_fuses_into_refused_operators_is_packed_plain():
    """Dynamic quantisation: MatMulIntegerToFloat is refused in a file, and fine where ONNX Runtime makes it itself."""
    from onnx import helper, numpy_helper

    from cloister.engines.port import TensorSpec

    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["product"]),
        helper.make_node("Cast", ["product"], ["real"], to=1),
        helper.make_node("Mul", ["scale", "w_scale"], ["scales"]),
        helper.make_node("Mul", ["real", "scales"], ["y"]),
    ]
    weights = np.arange(-32, 32, dtype=np.int8).reshape(8, 8)
    initializers = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.array(0.1, np.float32), "w_scale"),
    ]
    specs = [TensorSpec("x", "FP32", (-1, 8))], [TensorSpec("y", "FP32", (-1, 8))]
    packed = pack_onnx(small.model_of(nodes, *specs, initializers).SerializeToString())
    session, _ = open_package(packed.files[INDEX_FILE], packed.files.__getitem__)
    x = np.random.default_rng(0).random((4, 8), np.float32)
    assert np.allclose(session.run({"x": x})["y"], x @ (weights * np.float32(0.1)), atol=0.05)
    session.close()


def test_a_size_that_the_optimiser_works_out_is_no_disagreement():
    """A free output size may follow from constants: the optimised graph states it, the index what the owner said."""
    from onnx import helper, numpy_helper

    constants = [
        numpy_helper.from_array(np.array([1, 64], np.int64), "n"),
        numpy_helper.from_array(np.zeros((1, 2), np.int64), "i"),
        numpy_helper.from_array(np.ones(1, np.float32), "u"),
    ]
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["empty"]),
        helper.make_node("ScatterND", ["empty", "i", "u"], ["holes"]),
        helper.make_node("Add", ["holes", "x"], ["y"]),
    ]
    inputs, outputs = [TensorSpec("x", "FP32", (1, 64))], [TensorSpec("y", "FP32", (-1, -1))]
    packed = pack_onnx(bytes(small.model_of(nodes, inputs, outputs, constants).SerializeToString()))
    for variant in packed.package.variants:
        session = packed.package.load(variant, buffers(packed))
        assert session.run({"x": np.zeros((1, 64), np.float32)})["y"].sum() == 1
        session.close()
    other = replace(packed.package, outputs=(TensorSpec("y", "FP32", (2, -1)),))
    with pytest.raises(InvalidInput, match="model-malformed"):
        other.load(packed.package.variants[0], buffers(packed))
