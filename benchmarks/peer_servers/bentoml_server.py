"""BentoML, one worker, started by `bentoml serve`; the body is a file to it, its only binary path."""

from pathlib import Path

import bentoml
import numpy as np


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Vision:
    """Bytes in; 1000 numbers out, as JSON."""

    def __init__(self) -> None:
        from engine import infer

        self._infer = infer

    @bentoml.api(route="/infer")
    def infer(self, image: Path, /) -> np.ndarray:
        """One inference."""
        return np.frombuffer(self._infer(image.read_bytes()), np.float32)
