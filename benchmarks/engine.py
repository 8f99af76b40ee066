"""What the engine port costs: session creation, memory, and one call, beside raw ONNX Runtime.

    python benchmarks/engine.py [--rounds 5] [--models mobilenet_v1,...] [--json]

Each figure comes from a fresh process; ways of loading are interleaved, round by round. Reported: medians, spread
(smallest to largest), and the median of per-round ratios to ``raw``. Not measured: decryption, other CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
WAYS = ("raw", "raw-optimised", "plain", "tuned", "tuned+answer")


def pss() -> float:
    """Proportional set size of this process, MB."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def prepare(folder: Path, names: list[str]) -> None:
    """Build and pack the models once."""
    from cloister.engines import optimise
    from cloister.testing.models.vision import VISION_MODELS

    for name in names:
        model = VISION_MODELS[name]().onnx
        place = folder / name
        place.mkdir()
        (place / "model.onnx").write_bytes(model)
        (place / "optimised.onnx").write_bytes(optimise._optimised(model, ()))
        for file, data in optimise.pack_onnx(model).files.items():
            (place / file).write_bytes(data)


def child(place: Path, way: str) -> dict[str, float]:
    """Load one model one way, and use it."""
    import numpy as np

    from cloister.engines import _ort, known_answer
    from cloister.engines.buffers import WeightBuffer
    from cloister.engines.onnx import OnnxEngine  # noqa: F401  # imported before the clock starts
    from cloister.engines.package import INDEX_FILE, Package

    ort = _ort.runtime()
    raw = way.startswith("raw")
    package = Package.parse((place / INDEX_FILE).read_bytes())
    variant = package.variants[0 if way.startswith("tuned") else -1]
    buffers: dict[str, WeightBuffer] = {}
    data = b""
    if raw:
        data = (place / ("optimised.onnx" if way == "raw-optimised" else "model.onnx")).read_bytes()
        size = len(data)
    else:
        for file in variant.files:
            plain = (place / file).read_bytes()
            buffers[file] = WeightBuffer(len(plain))
            buffers[file].view[:] = plain
        del plain
        size = sum(len(buffer.view) for buffer in buffers.values())
    base = pss() - size / 2**20
    start = time.perf_counter()
    if raw:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        if way == "raw-optimised":
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        del data

        def call(feed: dict[str, Any]) -> Any:
            return session.run(None, feed)
    else:
        loaded = package.load(variant, {n: b.view for n, b in buffers.items()}, verify=way == "tuned+answer")
        for file in set(variant.files) - set(variant.lent):
            buffers[file].release()
        call = loaded.run
    created = time.perf_counter()
    feed = known_answer.question(package.inputs, 1)
    call(feed)
    first = time.perf_counter()
    runs = []
    for _ in range(15):
        begin = time.perf_counter()
        call(feed)
        runs.append(time.perf_counter() - begin)
    assert np.isfinite(next(iter(feed.values()))).all()
    return {
        "create_ms": 1e3 * (created - start),
        "first_ms": 1e3 * (first - start),
        "run_ms": 1e3 * statistics.median(runs),
        "memory_mb": pss() - base,
        "size_mb": size / 2**20,
    }


def overhead(rounds: int) -> dict[str, float]:
    """One call of the smallest model, microseconds: raw, through the port, and the median of per-round differences."""
    import numpy as np

    from cloister.engines import _ort
    from cloister.engines.onnx import OnnxEngine
    from cloister.engines.port import ModelParts
    from cloister.testing.models import small

    ort = _ort.runtime()
    model = small.identity()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    raw = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session = OnnxEngine().load(ModelParts(model))
    feed = {"x": np.ones((1, 3), np.float32)}

    def time_of(call: Any) -> float:
        times = []
        for _ in range(2000):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return 1e6 * statistics.median(times)

    pairs = [(time_of(lambda: raw.run(None, feed)), time_of(lambda: session.run(feed))) for _ in range(rounds)]
    return {
        "raw_us": statistics.median(a for a, _ in pairs),
        "port_us": statistics.median(b for _, b in pairs),
        "added_us": statistics.median(b - a for a, b in pairs),
    }


def measure(folder: Path, names: list[str], rounds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """All rounds: model, way, figure to its list of values."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for turn in range(rounds):
        for name in names:
            for shift in range(len(WAYS)):
                way = WAYS[(turn + shift) % len(WAYS)]
                done = subprocess.run(
                    [sys.executable, __file__, "--child", str(folder / name), way], capture_output=True, check=True
                )
                for key, value in json.loads(done.stdout).items():
                    results.setdefault(name, {}).setdefault(way, {}).setdefault(key, []).append(value)
    return results


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The results as text."""
    lines = [
        "".join(
            (
                f"{'model':14}{'way':15}{'create ms':>22}{'to raw':>8}",
                f"{'first result ms':>22}{'run ms':>8}{'MB':>7}{'x size':>8}",
            )
        )
    ]
    for name, ways in results.items():
        for way in WAYS:
            got = ways[way]
            ratio = statistics.median(a / b for a, b in zip(got["create_ms"], ways["raw"]["create_ms"], strict=True))
            times = [
                f"{statistics.median(got[key]):.1f} ({min(got[key]):.0f}-{max(got[key]):.0f})"
                for key in ("create_ms", "first_ms")
            ]
            memory = statistics.median(got["memory_mb"])
            lines.append(
                f"{name:14}{way:15}{times[0]:>22}{ratio:>8.3f}{times[1]:>22}"
                f"{statistics.median(got['run_ms']):>8.1f}{memory:>7.0f}{memory / got['size_mb'][0]:>8.2f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default="mobilenet_v1,densenet121,resnet101_v2")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(Path(options.child[0]), options.child[1])))
        return
    names = options.models.split(",")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), names)
        results = measure(Path(folder), names, options.rounds)
    call = overhead(max(5, options.rounds))
    if options.json:
        print(json.dumps({"load": results, "call": call}, indent=1))
        return
    print(table(results))
    print(
        f"one call of an identity: raw {call['raw_us']:.1f} us, port {call['port_us']:.1f} us,"
        f" added {call['added_us']:.1f} us"
    )


if __name__ == "__main__":
    main()
