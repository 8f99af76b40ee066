"""The package reads the committed vectors of spec/attestation.md as it says, and the vectors are fresh."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.attest.anchors import TrustAnchors
from cloister.attest.bundle import open_bundle
from cloister.attest.configuration import decode_configuration
from cloister.attest.policy import Policy
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError

VECTORS = Path(__file__).parents[3] / "vectors"
CASES: list[dict[str, Any]] = json.loads((VECTORS / "attestation.json").read_text())["cases"]


def evidence(case: dict[str, Any]) -> None:
    anchors = TrustAnchors(simulation_keys=(bytes.fromhex(case["key"]),))
    verify(Evidence(TeeType.SIMULATION, bytes.fromhex(case["data"])), Collateral(), anchors, case["now"])


def bundle(case: dict[str, Any]) -> bytes:
    data, root = bytes.fromhex(case["data"]), bytes.fromhex(case["root"])
    return open_bundle(data, root, case["minimum"], case["now"]).digest


READERS: dict[str, Callable[[dict[str, Any]], bytes | None]] = {
    "configuration": lambda case: decode_configuration(bytes.fromhex(case["data"])).digest,
    "policy": lambda case: Policy.decode(bytes.fromhex(case["data"])).digest,
    "simulated-evidence": evidence,
    "trust-bundle": bundle,
}


def test_the_vectors_are_what_the_generator_writes() -> None:
    done = subprocess.run(
        [sys.executable, VECTORS / "generate_attestation.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}: {case['name']}")
def test_vector(case: dict[str, Any]) -> None:
    read = READERS[case["kind"]]
    if case["expect"] != "ok":
        with pytest.raises(CloisterError) as caught:
            read(case)
        assert caught.value.code == case["expect"]
        return
    found = read(case)
    assert found is None or found.hex() == case["digest"]
