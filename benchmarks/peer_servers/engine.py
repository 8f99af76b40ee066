"""What every peer's server calls: the raw engine, one thread an inference, on the model that MODEL names."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime

SHAPE = (1, 224, 224, 3)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
PORT = int(os.environ["PORT"])


def infer(body: bytes) -> bytes:
    """Raw little-endian floats in, raw floats out: the least any server could do."""
    return infer_array(np.frombuffer(body, np.float32).reshape(SHAPE)).tobytes()


def infer_array(image: np.ndarray) -> np.ndarray:
    """The only output for the only input."""
    return session.run(None, {session.get_inputs()[0].name: image})[0]
