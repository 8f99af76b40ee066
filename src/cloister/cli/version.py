"""Print the version of Cloister and of what it rests on."""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version

from cloister import __version__
from cloister.adapters.tee.simulation import measure_installation
from cloister.cli.output import Output

PARTS = ("cryptography", "cbor2", "dcap-qvl", "onnxruntime", "ai-edge-litert")


def configure(_parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(_args: argparse.Namespace, out: Output) -> int:
    """Print versions, and what a simulated TEE on this installation measures."""
    versions = {"cloister": __version__}
    for name in PARTS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    versions["insecure-simulation-measurement"] = measure_installation().hex()
    out.result(versions)
    return 0
