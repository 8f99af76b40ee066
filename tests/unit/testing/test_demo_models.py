"""The models that demos and benchmarks use."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from cloister.engines.litert import LiteRtEngine
from cloister.engines.onnx import OnnxEngine
from cloister.engines.onnx_graph import check
from cloister.engines.optimise import pack_litert, pack_onnx
from cloister.engines.package import INDEX_FILE, open_package
from cloister.engines.port import ModelParts
from cloister.testing.models import tflite
from cloister.testing.models.patients import patient_model
from cloister.testing.models.vision import VISION_MODELS, mobilenet_v1

EXPECTED = {
    "mobilenet_v1": (4_253_864, 17.0, "3625a57d0fb9"),
    "resnet101_v2": (44_675_560, 178.8, "04a5ef42b004"),
    "densenet121": (8_062_504, 32.3, "32bcfb099c08"),
}


@pytest.mark.parametrize("name", VISION_MODELS)
def test_architectures_have_keras_parameter_counts_and_the_same_bytes_everywhere(name: str):
    model = VISION_MODELS[name]()
    parameters, megabytes, digest = EXPECTED[name]
    assert model.parameters == parameters
    assert round(len(model.onnx) / 1e6, 1) == megabytes
    assert hashlib.sha256(model.onnx).hexdigest().startswith(digest)
    checked = check(model.onnx)
    assert [(s.name, s.datatype, s.shape) for s in checked.inputs] == [("input", "FP32", (1, 224, 224, 3))]
    assert [(s.name, s.datatype, s.shape) for s in checked.outputs] == [("output", "FP32", (1, 1000))]


@pytest.mark.parametrize("name", ["mobilenet_v1", "densenet121"])
def test_outputs_are_finite_and_depend_on_the_input(name: str):
    session = OnnxEngine().load(ModelParts(VISION_MODELS[name]().onnx))
    numbers = np.random.default_rng(0)
    answers = []
    for i in range(3):
        image = numbers.random((1, 224, 224, 3), np.float32)
        image[:, : 112 * (i % 2)] = 0.2
        answers.append(session.run({"input": image})["output"])
    assert all(np.isfinite(a).all() and abs(a.sum() - 1) < 1e-3 and a.max() > 0.01 for a in answers)
    assert np.abs(answers[0] - answers[1]).max() > 1e-3
    assert not np.array_equal(answers[0], answers[2])
    session.close()


def test_another_seed_is_another_model():
    assert mobilenet_v1(seed=5, side=64).onnx != mobilenet_v1(side=64).onnx


@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_the_patient_model_packed_says_what_scikit_learn_says(kind):
    model = patient_model(kind)
    assert model.accuracy > 0.95
    assert len(model.test_inputs) == 171
    packed = pack_onnx(model.onnx)
    session, _ = open_package(packed.files[INDEX_FILE], packed.files.__getitem__)
    found = session.run({"measurements": model.test_inputs})
    assert np.abs(found["probabilities"] - model.probabilities).max() < 1e-4
    assert np.array_equal(found["label"], model.probabilities.argmax(axis=1))
    assert float((found["label"] == model.test_labels).mean()) == model.accuracy
    session.close()


def test_the_patient_network_in_litert():
    model = patient_model("mlp")
    assert model.layers is not None
    packed = pack_litert(tflite.dense_classifier(model.layers))
    session, _ = open_package(packed.files[INDEX_FILE], packed.files.__getitem__)
    assert LiteRtEngine().name == packed.package.engine
    found = session.run({"x": model.test_inputs})["y"]
    assert np.abs(found - model.probabilities).max() < 1e-3
    session.close()


def test_a_convolutional_litert_model_computes_a_convolution():
    weights = np.random.default_rng(1).random((4, 2, 2, 3), np.float32)  # out, height, width, in
    bias = np.arange(4, dtype=np.float32)
    tensors = [
        tflite.tensor("x", (-1, 6, 5, 3)),
        tflite.tensor("w", weights.shape, buffer=1),
        tflite.tensor("b", (4,), buffer=2),
        tflite.tensor("h", (-1, 5, 4, 4)),
        tflite.tensor("y", (-1, 2, 2, 4)),
    ]
    conv = {"padding": 1, "stride_w": 1, "stride_h": 1, "dilation_w": 1, "dilation_h": 1, "activation": 0}
    pool = {"padding": 1, "stride_w": 2, "stride_h": 2, "filter_width": 2, "filter_height": 2, "activation": 0}
    operators = [tflite.operator(0, [0, 1, 2], [3], 1, **conv), tflite.operator(1, [3], [4], 5, **pool)]
    model = tflite.model_of(tensors, operators, [3, 17], inputs=[0], outputs=[4], constants=[weights, bias])
    session = LiteRtEngine().load(ModelParts(tflite.encode(model)))
    x = np.random.default_rng(2).random((3, 6, 5, 3), np.float32)
    patches = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(1, 2))  # n, 5, 4, in, height, width
    wanted = np.einsum("nhwcij,oijc->nhwo", patches, weights) + bias
    wanted = wanted[:, :4].reshape(3, 2, 2, 2, 2, 4).max(axis=(2, 4))
    assert np.allclose(session.run({"x": x})["y"], wanted, atol=1e-5)
    session.close()
