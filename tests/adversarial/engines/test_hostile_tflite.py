"""A LiteRT model made by an attacker (S11)."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from cloister.base.errors import InvalidInput
from cloister.engines.flatbuffer import Slot
from cloister.engines.litert import LiteRtEngine
from cloister.engines.port import ModelParts
from cloister.engines.tflite_graph import check
from cloister.engines.tflite_schema import SCHEMA
from cloister.testing.models import tflite

W = np.ones((3, 3), np.float32)


def good() -> dict:
    tensors = [tflite.tensor("x", (1, 3)), tflite.tensor("w", (3, 3), buffer=1), tflite.tensor("y", (1, 3))]
    operators = [tflite.operator(0, [0, 1, -1], [2], 8, activation=0)]
    return tflite.model_of(tensors, operators, [tflite.FULLY_CONNECTED], inputs=[0], outputs=[2], constants=[W])


def refused(model: dict, code: str, **fields: dict[int, Slot]) -> None:
    schema = {**SCHEMA, **{name: {**SCHEMA[name], **slots} for name, slots in fields.items()}}
    with pytest.raises(InvalidInput) as caught:
        check(tflite.encode(model, schema=schema))
    assert caught.value.code == code


def graph(model: dict) -> dict:
    return model["subgraphs"][0]


def test_the_model_these_start_from_is_good():
    assert check(tflite.encode(good())).operators == 1


@pytest.mark.parametrize("code", [31, 32, 51, 118, 119, 129, 136, 142, 144, 146, 148, 149, 173, 206, 400, -1])
def test_operators_that_are_refused(code: int):
    model = good()
    model["operator_codes"] = [{"deprecated_builtin_code": min(code, 127), "builtin_code": code, "version": 1}]
    refused(model, "operator-refused")


def test_custom_operators_under_a_good_number():
    model = good()
    model["operator_codes"][0]["custom_code"] = "FlexEvil"
    refused(model, "operator-refused")
    model = good()
    model["operator_codes"][0] |= {"deprecated_builtin_code": 32}
    refused(model, "operator-refused")


def test_further_graphs():
    model = good()
    model["subgraphs"].append(copy.deepcopy(graph(model)))
    refused(model, "operator-refused")


def test_state_between_requests():
    model = good()
    graph(model)["tensors"][0] = {**graph(model)["tensors"][0], "is_variable": True}
    refused(model, "operator-refused")
    model = good()
    graph(model)["operators"][0]["intermediates"] = [2]
    refused(model, "operator-refused")


def test_writing_into_the_weights():
    model = good()
    graph(model)["operators"][0]["outputs"] = [1]
    refused(model, "model-malformed")
    model = good()
    graph(model)["inputs"] = [1]
    refused(model, "model-malformed")
    model = good()
    graph(model)["operators"].append(graph(model)["operators"][0])
    refused(model, "model-malformed")


@pytest.mark.parametrize("indices", [[5], [-2], [2**31 - 1], [-(2**31)]])
def test_tensors_that_are_not_there(indices: list[int]):
    for key in ("inputs", "outputs"):
        model = good()
        graph(model)[key] = indices
        refused(model, "model-malformed")
        model = good()
        graph(model)["operators"][0][key] = indices
        refused(model, "model-malformed")
    model = good()
    graph(model)["tensors"][1]["buffer"] = 77
    refused(model, "model-malformed")
    model = good()
    graph(model)["operators"][0]["opcode_index"] = 9
    refused(model, "model-malformed")


def test_division_by_nothing():
    for stride in (0, -1, 2**31 - 1):
        tensors = [
            tflite.tensor("x", (1, 4, 4, 1)),
            tflite.tensor("w", (1, 1, 1, 1), buffer=1),
            tflite.tensor("y", (1, 4, 4, 1)),
        ]
        conv = tflite.operator(0, [0, 1, -1], [2], 1, padding=0, stride_w=stride, stride_h=1, activation=0)
        model = tflite.model_of(tensors, [conv], [3], inputs=[0], outputs=[2], constants=[W[:1, :1]])
        refused(model, "model-malformed")
    model = tflite.model_of(tensors, [tflite.operator(0, [0, 1, -1], [2])], [3], inputs=[0], outputs=[2], constants=[W])
    refused(model, "model-malformed")  # no options at all


def test_shapes_and_sizes():
    for shape in ([3, 4], [-1, 3], [2**31 - 1] * 4, [1] * 9):
        model = good()
        graph(model)["tensors"][1]["shape"] = shape
        with pytest.raises(InvalidInput):
            check(tflite.encode(model))
    model = good()
    graph(model)["tensors"][1]["type"] = 5
    refused(model, "model-malformed")


def test_another_operators_options():
    model = good()
    graph(model)["operators"][0] |= {"options_type": 9, "options": {"beta": 1.0}}
    refused(model, "model-malformed")


def test_data_outside_the_file():
    model = good()
    model["buffers"][1] |= {"offset": 16, "size": 36}
    refused(model, "model-malformed", Buffer={1: Slot("offset", "uint64"), 2: Slot("size", "uint64")})
    model = good()
    graph(model)["tensors"][1] |= {"external_buffer": 1}
    refused(model, "model-malformed", Tensor={10: Slot("external_buffer", "uint32")})


def test_every_cut_is_refused():
    data = tflite.encode(good())
    for end in range(len(data) - 8):
        with pytest.raises(InvalidInput):
            check(data[:end])


def image_model(operators: list, codes: list[int], constants: list) -> bytes:
    """x (1 x free x free x 2) through operators over tensors x, 1, 2, ...; constants come after them."""
    count = len(operators)
    tensors = [tflite.tensor(name, (1, -1, -1, 2)) for name in ("x", *(f"t{i}" for i in range(count)))]
    tensors += [tflite.tensor(f"c{i}", c.shape, datatype="INT32", buffer=i + 1) for i, c in enumerate(constants)]
    return tflite.encode(tflite.model_of(tensors, operators, codes, inputs=[0], outputs=[count], constants=constants))


def test_images_too_small_for_the_model_do_not_end_the_process():
    size = np.array([3, 3], np.int32)
    pool = tflite.operator(0, [0], [1], 5, padding=1, stride_w=1, stride_h=1, filter_width=2, filter_height=2)
    resize = tflite.operator(1, [1, 3], [2], 15, align_corners=True)
    session = LiteRtEngine().load(ModelParts(image_model([pool, resize], [17, 23], [size])))
    for rows, columns in ((0, 4), (4, 0), (0, 0), (1, 1), (1, 9)):
        with pytest.raises(InvalidInput) as caught:
            session.run({"x": np.ones((1, rows, columns, 2), np.float32)})
        assert caught.value.code == "engine-input"
        assert session.run({"x": np.ones((1, 5, 4, 2), np.float32)})["t1"].shape == (1, 3, 3, 2)
    session.close()


def test_shapes_that_depend_on_data():
    tensors = [tflite.tensor("x", (1, 3)), tflite.tensor("s", (2,), datatype="INT32"), tflite.tensor("y", (1, 3))]
    model = tflite.model_of(tensors, [tflite.operator(0, [0, 1], [2])], [22], inputs=[0, 1], outputs=[2])
    refused(model, "operator-refused")


def test_a_model_that_computes_nothing():
    size = np.array([0, 3], np.int32)
    resize = tflite.operator(0, [0, 2], [1], 15, align_corners=True)
    tensors = [
        tflite.tensor("x", (1, 4, 4, 2)),
        tflite.tensor("y", (1, 0, 3, 2)),
        tflite.tensor("s", (2,), datatype="INT32", buffer=1),
    ]
    model = tflite.model_of(tensors, [resize], [23], inputs=[0], outputs=[1], constants=[size])
    with pytest.raises(InvalidInput, match="model-malformed"):
        LiteRtEngine().load(ModelParts(tflite.encode(model)))


def test_a_convolution_without_its_bias():
    """LiteRT 2.3 reads address 0 for a depthwise one."""
    tensors = [
        tflite.tensor("x", (1, 4, 4, 2)),
        tflite.tensor("w", (1, 2, 2, 2), buffer=1),
        tflite.tensor("y", (1, 3, 3, 2)),
    ]
    options = {"padding": 1, "stride_w": 1, "stride_h": 1, "depth_multiplier": 1, "activation": 0}
    for inputs in ([0, 1], [0, 1, -1]):
        conv = tflite.operator(0, inputs, [2], 2, **options)
        refused(
            tflite.model_of(
                tensors, [conv], [4], inputs=[0], outputs=[2], constants=[np.ones((1, 2, 2, 2), np.float32)]
            ),
            "model-malformed",
        )
