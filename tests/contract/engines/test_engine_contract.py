"""What every engine must do, the fake one included."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.engines.litert import LiteRtEngine
from cloister.engines.onnx import OnnxEngine
from cloister.engines.port import DTYPES, Engine, ModelParts, TensorSpec
from cloister.testing.engine import FakeEngine, fake_model
from cloister.testing.models import small, tflite
from cloister.testing.models.tflite import TYPES

MATRIX = np.arange(9, dtype=np.float32).reshape(3, 3)
ALL_TYPES = (*DTYPES, "BYTES", "BF16")


@dataclass(frozen=True)
class Kind:
    make: Callable[[], Engine]
    datatypes: tuple[str, ...]
    identity: Callable[[str], ModelParts]
    sum_difference: Callable[[], ModelParts]
    matrix: Callable[[], ModelParts]


def fake_identity(datatype: str) -> ModelParts:
    spec = TensorSpec("x", datatype, (-1, 3))
    return ModelParts(fake_model("identity", [spec], [TensorSpec("y", datatype, (-1, 3))]))


def fake_sum_difference() -> ModelParts:
    specs = [TensorSpec(name, "FP32", (-1, 3)) for name in ("a", "b", "sum", "difference")]
    return ModelParts(fake_model("sum-difference", specs[:2], specs[2:]))


def fake_matrix() -> ModelParts:
    graph = fake_model("matrix", [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("y", "FP32", (-1, 3))])
    return ModelParts(graph, {"matrix": memoryview(MATRIX.tobytes())})


KINDS = {
    "fake": Kind(FakeEngine, ALL_TYPES, fake_identity, fake_sum_difference, fake_matrix),
    "onnx": Kind(
        OnnxEngine,
        ALL_TYPES,
        lambda datatype: ModelParts(small.identity(datatype)),
        lambda: ModelParts(small.sum_difference()),
        lambda: ModelParts(small.matrix(MATRIX)),
    ),
    "litert": Kind(
        LiteRtEngine,
        tuple(TYPES),
        lambda datatype: ModelParts(tflite.identity(datatype)),
        lambda: ModelParts(tflite.sum_difference()),
        lambda: ModelParts(tflite.dense_classifier([(MATRIX, np.zeros(3, np.float32))], softmax=False)),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def sample(datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        return np.array([[b"a", "é".encode(), b""]], dtype=object)
    return np.array([[0, 1, 3]]).astype(DTYPES.get(datatype, np.dtype(np.uint16)))


def test_every_datatype_comes_back_as_it_went(kind: Kind):
    for datatype in kind.datatypes:
        session = kind.make().load(kind.identity(datatype))
        value = sample(datatype)
        found = session.run({"x": value})["y"]
        assert found.dtype == value.dtype, datatype
        assert found.shape == value.shape
        assert np.array_equal(found, value), datatype
        session.close()


def test_describes_its_tensors(kind: Kind):
    session = kind.make().load(kind.sum_difference())
    assert [(s.name, s.datatype) for s in session.inputs] == [("a", "FP32"), ("b", "FP32")]
    assert {s.name for s in session.outputs} == {"sum", "difference"}
    assert all(len(s.shape) == 2 and s.shape[1] == 3 for s in (*session.inputs, *session.outputs))
    session.close()


def test_several_inputs_and_outputs_and_a_choice_of_outputs(kind: Kind):
    session = kind.make().load(kind.sum_difference())
    a, b = np.array([[1, 2, 3]], np.float32), np.array([[10, 20, 30]], np.float32)
    found = session.run({"a": a, "b": b})
    assert np.array_equal(found["sum"], a + b)
    assert np.array_equal(found["difference"], a - b)
    assert list(session.run({"a": a, "b": b}, ["difference"])) == ["difference"]
    session.close()


def test_a_free_dimension_takes_any_size(kind: Kind):
    session = kind.make().load(kind.matrix())
    for rows in (1, 2, 17, 3, 1):
        x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
        assert np.array_equal(session.run({"x": x})["y"], x @ MATRIX)
    session.close()


def test_outputs_belong_to_the_caller_and_inputs_stay_as_they_are(kind: Kind):
    session = kind.make().load(kind.identity("FP32"))
    x = np.array([[1, 2, 3]], np.float32)
    first = session.run({"x": x})["y"]
    session.run({"x": x * 0})
    assert np.array_equal(first, x)
    assert np.array_equal(x, [[1, 2, 3]])
    readonly = np.frombuffer(x.tobytes(), np.float32).reshape(1, 3)
    assert np.array_equal(session.run({"x": readonly})["y"], x)
    session.close()


def test_sixteen_threads_at_once(kind: Kind):
    session = kind.make().load(kind.matrix())

    def many(seed: int) -> bool:
        numbers = np.random.default_rng(seed)
        inputs = [numbers.integers(0, 50, (1 + i % 4, 3)).astype(np.float32) for i in range(40)]
        return all(np.array_equal(session.run({"x": x})["y"], x @ MATRIX) for x in inputs)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(many, range(32)))
    session.close()


def test_a_wrong_input_is_the_callers_fault_and_spoils_nothing(kind: Kind):
    session = kind.make().load(kind.matrix())
    good = np.ones((1, 3), np.float32)
    for bad in (np.ones((1, 4), np.float32), np.ones(3, np.float32), np.ones((1, 3), np.int64)):
        with pytest.raises(InvalidInput) as caught:
            session.run({"x": bad})
        assert caught.value.code == "engine-input"
        assert np.array_equal(session.run({"x": good})["y"], good @ MATRIX)
    session.close()


def test_closed_is_closed(kind: Kind):
    session = kind.make().load(kind.matrix())
    session.close()
    session.close()
    with pytest.raises(Unavailable) as caught:
        session.run({"x": np.ones((1, 3), np.float32)})
    assert caught.value.code == "engine-closed"


def test_a_model_cut_anywhere_is_refused(kind: Kind):
    whole = kind.sum_difference().graph
    engine = kind.make()
    for end in range(0, len(whole), max(1, len(whole) // 40)):
        with pytest.raises(CloisterError):
            engine.load(ModelParts(bytes(whole[:end])))


def test_threads_give_the_same(kind: Kind):
    session = kind.make().load(kind.matrix(), threads=2)
    x = np.ones((64, 3), np.float32)
    assert np.array_equal(session.run({"x": x})["y"], x @ MATRIX)
    session.close()
