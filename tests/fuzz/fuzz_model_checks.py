"""Atheris target: the checks of ONNX and LiteRT models, and of the packed model's index.

Run: ``python tests/fuzz/fuzz_model_checks.py -runs=200000``. Any exception but InvalidInput is a finding.
"""

from __future__ import annotations

import contextlib
import sys

import atheris

with atheris.instrument_imports(include=["cloister.engines"]):
    from cloister.base.errors import InvalidInput
    from cloister.engines import onnx_graph, tflite_graph
    from cloister.engines.package import Package

CHECKS = (onnx_graph.check, tflite_graph.check, Package.parse)


def one_input(data: bytes) -> None:
    """The first byte picks the parser."""
    if data:
        with contextlib.suppress(InvalidInput):
            CHECKS[data[0] % len(CHECKS)](data[1:])


def main() -> None:
    """Hand a folder of real models as the corpus to start from them."""
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
