"""What an engine does to its process: nothing outside it, one copy of the weights, no crash on hostile files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from cloister.testing.syscalls import SUPPORTED


def child(code: str) -> subprocess.CompletedProcess[str]:
    # Nothing else of the environment: ONNX Runtime keeps quiet where variables say that it is tested (CI=true).
    environment = {k: os.environ[k] for k in ("PATH", "HOME", "TMPDIR") if k in os.environ}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=100, check=False
    )


ALONE = """
import threading, time
import numpy as np
from cloister.testing.syscalls import forbid_sockets_and_written_files
from cloister.engines.package import INDEX_FILE, open_package
from cloister.testing.models import small, tflite
{pack}
forbid_sockets_and_written_files()
session, variant = open_package(packed.files[INDEX_FILE], packed.files.__getitem__, threads=2)
from cloister.engines import known_answer
question = known_answer.question(session.inputs, 3)
threads = [threading.Thread(target=lambda: [session.run(question) for _ in range(20)]) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
session.close()
print("alone", variant.name)
"""
# Packing runs in a process of its own: the engine's library must be imported behind the filter.
PACKED_ELSEWHERE = """
import subprocess, sys, pickle
class packed: pass
packed.files = eval(subprocess.run([sys.executable, "-c", {0!r}], capture_output=True, check=True, text=True).stdout)
assert not any(m.startswith(("onnxruntime", "ai_edge_litert")) for m in sys.modules)
"""
PACKING = {
    "onnx": "from cloister.engines.optimise import pack_onnx as p; from cloister.testing.models.small import *;"
    "print(repr(dict(p(small_convnet()).files)))",
    "litert": "from cloister.engines.optimise import pack_litert as p; from cloister.testing.models.tflite import *;"
    "print(repr(dict(p(sum_difference()).files)))",
}

needs_seccomp = pytest.mark.skipif(not SUPPORTED, reason="seccomp filters are written for x86-64")


@needs_seccomp
@pytest.mark.parametrize("engine", PACKING)
def test_an_engine_opens_no_socket_and_writes_no_file(engine: str):
    code = ALONE.format(pack=PACKED_ELSEWHERE.replace("pickle", "os").format(PACKING[engine]))
    done = child(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("alone ")


@needs_seccomp
@pytest.mark.parametrize(
    "act",
    [
        "import socket; socket.socket()",
        "open('/tmp/cloister-probe', 'w')",
        "import os; os.mkdir('/tmp/cloister-probe')",
    ],
)
def test_the_filter_bites(act: str):
    code = f"import socket\nfrom cloister.testing.syscalls import forbid_sockets_and_written_files as f\nf()\n{act}"
    assert child(code).returncode == -signal.SIGSYS


@needs_seccomp
def test_with_telemetry_on_the_filter_would_have_caught_it():
    code = (
        "from cloister.testing.syscalls import forbid_sockets_and_written_files as f\nf()\n"
        "import onnxruntime, time\n"
        "from cloister.testing.models import small\n"
        "onnxruntime.InferenceSession(small.identity())\ntime.sleep(30)"
    )
    assert child(code).returncode == -signal.SIGSYS


MEMORY = """
import threading
import numpy as np
from cloister.engines.buffers import WeightBuffer
from cloister.engines.package import INDEX_FILE, Package
def pss():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(l.split()[1]) for l in lines if l.startswith("Pss:")) / 1024
{body}
barrier = threading.Barrier(8)
def work():
    barrier.wait()
    for _ in range(3):
        session.run(question)
before = pss()
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(weights, before - base, pss() - base)
"""
ONNX_MEMORY = """
from cloister.testing.models import small
from cloister.engines.optimise import pack_onnx
import os, sys
big = np.random.default_rng(0).random((2048, 4096), np.float32)
read, write = os.pipe()
if os.fork() == 0:
    os.close(read)
    with open(write, "wb") as out:
        out.write(repr(dict(pack_onnx(small.matrix(big)).files)).encode())
    os._exit(0)
os.close(write); del big
files = eval(open(read, "rb").read())
import gc; gc.collect()
from cloister.engines import _ort; _ort.runtime()
package = Package.parse(files[INDEX_FILE])
variant = package.variants[0]
base = pss()
buffers = {}
for name in variant.files:
    buffers[name] = WeightBuffer(len(files[name]))
    buffers[name].view[:] = files[name]
weights = sum(len(files[name]) for name in variant.files) / 2**20
session = package.load(variant, {n: b.view for n, b in buffers.items()})
for name in set(buffers) - set(variant.lent):
    buffers[name].release()
question = {"x": np.ones((1, 2048), np.float32)}
"""
LITERT_MEMORY = """
from cloister.testing.models import tflite
from cloister.engines.litert import LiteRtEngine
from cloister.engines.port import ModelParts
import ai_edge_litert.interpreter
model = tflite.dense_classifier([(np.ones((2048, 4096), np.float32), np.zeros(4096, np.float32))])
import gc; gc.collect()
weights = len(model) / 2**20
base = pss() - weights
session = LiteRtEngine().load(ModelParts(model))
question = {"x": np.ones((1, 2048), np.float32)}
"""


@pytest.mark.parametrize("body", [ONNX_MEMORY, LITERT_MEMORY], ids=["onnx", "litert"])
def test_eight_threads_hold_one_copy_of_the_weights(body: str):
    done = child(MEMORY.format(body=body))
    assert done.returncode == 0, done.stderr
    weights, _, after = map(float, done.stdout.split())
    assert weights > 30
    assert after < 1.6 * weights, done.stdout


SHRINKS = """
import ctypes
import numpy as np
from onnx import helper
from cloister.engines.onnx import OnnxEngine
from cloister.engines.port import ModelParts, TensorSpec
from cloister.testing.models import small
def pss():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(l.split()[1]) for l in lines if l.startswith("Pss:")) / 1024
spec = [TensorSpec("s", "INT64", (2,))], [TensorSpec("y", "FP32", (-1, -1))]
nodes = [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
session = OnnxEngine().load(ModelParts(small.model_of(nodes, *spec).SerializeToString()))
ask = lambda side: session.run({"s": np.array([side, side])})
ask(10)
before = pss()
ask(6000)
large = pss() - before
for _ in range(300):
    ask(10)
print(large, pss() - before)
"""


def test_one_large_request_does_not_hold_its_memory_for_ever():
    done = child(SHRINKS)
    assert done.returncode == 0, done.stderr
    large, later = map(float, done.stdout.split())
    assert large > 100
    assert later < 30


MUTATED = """
import sys
import numpy as np
from cloister.base.errors import CloisterError
from cloister.engines import known_answer
from cloister.engines.port import ModelParts
from cloister.engines.registry import engine
from cloister.engines.optimise import pack_onnx
from cloister.testing.models import small, tflite
numbers = np.random.default_rng(5)
packed = pack_onnx(small.small_convnet(side=8))
variant = packed.package.variants[0]
weights = {n: packed.files[n] for n in variant.weights}
square = np.ones((3, 3), np.float32)
models = [
    ("onnx", small.sum_difference(), {}, False),
    ("onnx", packed.files[variant.graph], weights, variant.tuned_for is not None),
    ("litert", tflite.dense_classifier([(square, square[0]), (square, square[0])]), {}, False),
]
loaded = 0
for i in range(1200):
    name, graph, weights, tuned = models[i % 3]
    data = bytearray(graph)
    for _ in range(int(numbers.integers(1, 3))):
        data[int(numbers.integers(0, len(data)))] ^= 1 << int(numbers.integers(0, 8))
    try:
        session = engine(name).load(ModelParts(bytes(data), weights, tuned))
        session.run(known_answer.question(session.inputs, 1))
        session.close()
        loaded += 1
    except CloisterError:
        continue
print("survived", loaded > 50)
"""


def test_changed_models_are_refused_or_run_and_nothing_else():
    done = child(MUTATED)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert "survived True" in done.stdout
