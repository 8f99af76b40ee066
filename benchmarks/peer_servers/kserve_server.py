"""KServe's Python server: Open Inference Protocol v2 with binary tensors, its only binary path."""

import numpy as np
from engine import PORT, infer_array
from kserve import InferRequest, InferResponse, Model, ModelServer
from kserve.protocol.infer_type import InferOutput


class Vision(Model):
    """One input, one output."""

    def load(self) -> bool:
        """The engine is loaded by the import."""
        self.ready = True
        return True

    def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:  # noqa: ARG002
        """One inference."""
        output = infer_array(payload.inputs[0].as_numpy().astype(np.float32, copy=False))
        answer = InferOutput("output", list(output.shape), "FP32")
        answer.set_data_from_numpy(output, binary_data=True)
        return InferResponse(payload.id or "1", "vision", [answer])


model = Vision("vision")
model.load()
ModelServer(http_port=PORT, enable_grpc=False, workers=1, access_log_format=None).start([model])
