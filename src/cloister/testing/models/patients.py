"""A classifier of breast-cancer biopsies: 569 real patients, 30 measurements each; needs the extra ``demo``.

The data are the Wisconsin diagnostic set that scikit-learn ships (Street, Wolberg, Mangasarian 1993).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from cloister.base.errors import Unavailable
from cloister.testing.models.graph import OPSET

FEATURES: Final = 30
CLASSES: Final = ("malignant", "benign")
TEST_SHARE: Final = 0.3
_SEED: Final = 1993

Kind = Literal["logistic", "mlp"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PatientModel:
    """A trained classifier and the patients it never saw.

    :param onnx: input ``measurements`` (n x 30, FP32), outputs ``label`` (n, INT64: 0 malignant, 1 benign) and
        ``probabilities`` (n x 2, FP32).
    :param test_inputs: 171 x 30.
    :param test_labels: 171 true labels.
    :param probabilities: what scikit-learn itself says to the test inputs, 171 x 2.
    :param accuracy: scikit-learn's share of right labels on the test set.
    :param layers: weights and biases of the same network on standardised inputs, for other formats; None for
        ``logistic``.
    :param metadata: facts to publish beside the model.
    """

    onnx: bytes
    test_inputs: Floats
    test_labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    accuracy: float
    layers: tuple[tuple[Floats, Floats], ...] | None
    metadata: dict[str, str]


def patient_model(kind: Kind = "logistic") -> PatientModel:
    """Train and convert; under a second, the same on every machine up to rounding.

    :raises Unavailable: ``demo-missing`` when the extra is not installed.
    """
    try:
        from sklearn.datasets import load_breast_cancer
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise _missing() from error
    data = load_breast_cancer()
    split = train_test_split(data.data, data.target, test_size=TEST_SHARE, random_state=_SEED, stratify=data.target)
    train_x, test_x = split[0].astype(np.float32), split[1].astype(np.float32)
    pipeline = _pipeline(kind)
    pipeline.fit(train_x, split[2])
    probabilities = pipeline.predict_proba(test_x)
    accuracy = float((probabilities.argmax(axis=1) == split[3]).mean())
    return PatientModel(
        onnx=_convert(pipeline),
        test_inputs=np.ascontiguousarray(test_x),
        test_labels=split[3].astype(np.int64),
        probabilities=probabilities,
        accuracy=accuracy,
        layers=_layers(pipeline) if kind == "mlp" else None,
        metadata={
            "task": "binary classification of fine-needle biopsies",
            "data": "Wisconsin Diagnostic Breast Cancer, 569 patients, 30 measurements",
            "trained-on": f"{len(train_x)} patients",
            "tested-on": f"{len(test_x)} patients",
            "accuracy": f"{accuracy:.4f}",
            "classes": ", ".join(CLASSES),
            "feature-names": ", ".join(data.feature_names),
        },
    )


def _pipeline(kind: Kind) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return make_pipeline(
        StandardScaler(), MLPClassifier((32, 16), alpha=1e-2, max_iter=2000, random_state=_SEED, solver="lbfgs")
    )


def _convert(pipeline: Any) -> bytes:
    try:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError as error:
        raise _missing() from error
    model = convert_sklearn(
        pipeline,
        initial_types=[("measurements", FloatTensorType([None, FEATURES]))],
        options={id(pipeline): {"zipmap": False}},
        target_opset={"": OPSET, "ai.onnx.ml": 3},
    )
    return bytes(model.SerializeToString())


def _layers(pipeline: Any) -> tuple[tuple[Floats, Floats], ...]:
    """The network with the scaler folded into its first layer, and one output made two for a softmax."""
    scaler, network = pipeline[0], pipeline[1]
    weights = [np.asarray(w, np.float64) for w in network.coefs_]
    biases = [np.asarray(b, np.float64) for b in network.intercepts_]
    biases[0] = biases[0] - (scaler.mean_ / scaler.scale_) @ weights[0]
    weights[0] = weights[0] / scaler.scale_[:, None]
    # sigmoid(z) = softmax([0, z])[1]
    weights[-1] = np.concatenate([np.zeros_like(weights[-1]), weights[-1]], axis=1)
    biases[-1] = np.concatenate([np.zeros_like(biases[-1]), biases[-1]])
    return tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in zip(weights, biases, strict=True))


def _missing() -> Unavailable:
    return Unavailable("demo-missing", "scikit-learn or skl2onnx is not installed", hint="Install cloister[demo].")
