"""Act one: real patients and the paper's three vision models, through the sealed path, beside the raw engine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from cloister.base.ids import ModelId
from cloister.client.inference import Outputs
from cloister.engines.port import ModelParts, Session
from cloister.engines.registry import engine
from cloister.runtime.stages import Stage as RuntimeStage
from cloister.testing.demonstration.report import Latency, Report
from cloister.testing.demonstration.stage import Stage
from cloister.testing.models.patients import PatientModel, patient_model
from cloister.testing.models.vision import DemoModel, densenet121, mobilenet_v1, resnet101_v2

HOT_RUNS: Final = 20
STAGES: Final = tuple(stage.value for stage in RuntimeStage)
PATIENTS: Final = "breast-cancer"
VISION: Final[Mapping[str, Callable[[], DemoModel]]] = {
    "mobilenet-v1": mobilenet_v1,
    "resnet101-v2": resnet101_v2,
    "densenet121": densenet121,
}
_CLOSE: Final = 1e-5  # a CPU that the tuned graph was not made for sums in another order


@dataclass(slots=True)
class Secrets:
    """What the cloud must never have held: inputs, outputs and weights, as bytes."""

    inputs: list[bytes]
    outputs: list[bytes]
    weights: list[bytes]


def offer(stage: Stage, name: str, onnx: bytes, *users: str) -> ModelId:
    """Pack, publish, grant and consent."""
    alice, policy = stage.alice, stage.cloud.runtime_policy()
    source, folder = stage.folder / f"{name}.onnx", Path(tempfile.mkdtemp(dir=stage.folder)) / "packed"
    source.write_bytes(onnx)  # alice's own disk, not the cloud's
    alice.pack(source, folder, name=name)
    alice.publish(folder)
    source.unlink()
    model = alice.own_model(name)
    for user in users:
        client = stage.people[user]
        alice.grant(name, client.account.identity.id, policy)
        client.consent(model, policy)
    return model


def serve_patients(stage: Stage, report: Report, secrets: Secrets) -> PatientModel:
    """The whole test set, patient by patient and as one batch."""
    patients = patient_model()
    model = offer(stage, PATIENTS, patients.onnx, "bob")
    raw = raw_session(patients.onnx)
    x = patients.test_inputs
    truth = patients.test_labels
    expected = raw.run({"measurements": x})
    one_by_one = [stage.bob.infer(model, {"measurements": row[None, :]}) for row in x]
    batch = stage.bob.infer(model, {"measurements": x})
    got = np.concatenate([item["probabilities"] for item in one_by_one])
    raw_rows = np.concatenate([raw.run({"measurements": row[None, :]})["probabilities"] for row in x])
    encrypted = float((got.argmax(axis=1) == truth).mean())
    plaintext = float((np.asarray(expected["probabilities"]).argmax(axis=1) == truth).mean())
    report.facts["patients"] = {
        "inferred": len(x),
        "accuracy_encrypted": encrypted,
        "accuracy_plaintext": plaintext,
        "accuracy_scikit_learn": patients.accuracy,
    }
    report.add(
        "serving",
        f"accuracy on {len(x)} patients, encrypted = in plaintext",
        holds=encrypted == plaintext and encrypted > 0.9,
        found=f"{encrypted:.4f} = {plaintext:.4f}",
    )
    report.add(
        "serving",
        "outputs equal the raw engine's",
        holds=equal(got, raw_rows) and equal(batch["probabilities"], expected["probabilities"]),
        found=f"largest difference {difference(got, raw_rows):.1e}",
    )
    provenance = batch.provenance
    report.add(
        "serving",
        "the answer names model, measurement and simulation",
        holds=len(provenance.model_digest) == 32
        and len(provenance.measurement) == 48
        and "insecure-simulation" in provenance.warnings,
        found=f"{provenance.tee} {provenance.measurement.hex()[:12]}..., model {provenance.model_digest.hex()[:12]}...",
    )
    secrets.inputs += [row.tobytes() for row in x] + [x.tobytes()]
    secrets.outputs += [batch["probabilities"].tobytes(), got.tobytes()]
    raw.close()
    return patients


def serve_vision(stage: Stage, report: Report, secrets: Secrets, progress: Callable[[str], None]) -> None:
    """Each model cold, warm and hot."""
    image = np.random.Generator(np.random.PCG64(7)).random((1, 224, 224, 3), dtype=np.float32)
    secrets.inputs.append(image.tobytes())
    for name, build in VISION.items():
        progress(f"{name}: building, packing, publishing")
        made = build()
        model = offer(stage, name, made.onnx, "bob")
        raw = raw_session(made.onnx)
        feed = {raw.inputs[0].name: image}
        progress(f"{name}: cold, warm, hot")
        latency, outputs = measure(stage, model, feed, raw)
        report.latencies.append(latency)
        expected = raw.run(feed)
        output = raw.outputs[0].name
        report.add(
            "serving",
            f"{name} ({made.parameters / 1e6:.1f} M parameters) equals the raw engine",
            holds=equal(outputs[output], expected[output]),
            found=f"largest difference {difference(outputs[output], expected[output]):.1e}",
        )
        secrets.outputs.append(outputs[output].tobytes())
        secrets.weights.append(made.onnx)
        raw.close()


def measure(stage: Stage, model: ModelId, feed: Mapping[str, Any], raw: Session) -> tuple[Latency, Outputs]:
    """Cold: no instance. Warm: an instance that has other models. Hot: everything there; raw engine in between."""
    bob = stage.bob
    stage.operator.stop_instances()
    cold_ms, cold = timed(lambda: bob.infer(model, feed))
    seen = {("cold", name): value for (name, path), value in stage.operator.stages().items() if path == "cold"}
    stage.operator.stop_instances()
    bob.infer(PATIENTS, {"measurements": np.zeros((1, 30), np.float32)})
    warm_ms, warm = timed(lambda: bob.infer(model, feed))
    hot, plain = [], []
    last = warm
    for _ in range(HOT_RUNS):
        elapsed, last = timed(lambda: bob.infer(model, feed))
        hot.append(elapsed)
        plain.append(timed(lambda: raw.run(feed))[0])
    latency = Latency(model.name, cold_ms, warm_ms, statistics.median(hot), statistics.median(plain))
    seen |= {(path, name): value for (name, path), value in stage.operator.stages().items() if path != "cold"}
    for path, outputs in (("cold", cold), ("warm", warm), ("hot", last)):
        told = dict(outputs.provenance.timing_ms)
        for name in ("sandbox_start", "response_encrypt"):  # over before, or after, a runtime can tell the user of them
            if (path, name) in seen:
                told[name] = seen[path, name]
        latency.stages[path] = {name: told[name] for name in STAGES if name in told}
    return latency, last


def raw_session(onnx: bytes) -> Session:
    """The engine by itself, in this process, one thread."""
    return engine("onnx").load(ModelParts(onnx), threads=1)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds and result."""
    start = time.perf_counter()
    result = work()
    return (time.perf_counter() - start) * 1000, result


def equal(a: Any, b: Any) -> bool:
    """The same shape and values, but for the order of sums."""
    return np.shape(a) == np.shape(b) and difference(a, b) <= _CLOSE


def difference(a: Any, b: Any) -> float:
    """The largest absolute difference."""
    return float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))))
