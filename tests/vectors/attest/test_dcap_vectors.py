"""The package judges the committed SGX and TDX vectors as they say, and the vectors are fresh."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister.attest.anchors import TrustAnchors
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError

VECTORS = Path(__file__).parents[3] / "vectors"
DATA: dict[str, Any] = json.loads((VECTORS / "dcap.json").read_text())


def test_the_vectors_are_what_the_generator_writes() -> None:
    command = [sys.executable, VECTORS / "generate_dcap.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", DATA["cases"], ids=lambda case: case["name"])
def test_each_case_gives_what_it_expects(case: dict[str, Any]) -> None:
    base = DATA["bases"][case["base"]]
    quote = bytearray.fromhex(base["quote"])
    for at, data in case["patch"]:
        changed = bytes.fromhex(data)
        quote[at : at + len(changed)] = changed
    evidence = Evidence(TeeType(base["tee"]), bytes(quote))
    collateral = Collateral({"collateral.json": json.dumps(base["collateral"]).encode()})
    anchors = TrustAnchors(intel_root_der=(bytes.fromhex(base["root"]),))
    if case["expect"] == "ok":
        claims = verify(evidence, collateral, anchors, case["now"]).claims
        assert claims.report_data.hex() == base["measurements"]["report_data"]
        named = {name.replace("_", ""): value for name, value in base["measurements"].items() if name != "report_data"}
        assert {name: value.hex() for name, value in claims.measurements.items()} == named
        return
    with pytest.raises(CloisterError) as refusal:
        verify(evidence, collateral, anchors, case["now"])
    assert refusal.value.code == case["expect"]
