"""`cloister profile` measures what `cloister simulate` reads; the simulator and a real local cloud, side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.cli.main import main
from cloister.control.simulator.profile import read_profile
from cloister.testing.models.small import small_convnet

AGREEMENT = Path(__file__).parents[2] / "benchmarks" / "agreement.py"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_measured_profile_drives_the_simulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output, arrivals = tmp_path / "net.onnx", tmp_path / "profile.json", tmp_path / "arrivals.csv"
    model.write_bytes(small_convnet())
    arrivals.write_text("time_s,model\n" + "".join(f"{n},net\n" for n in range(20)))
    words = ["profile", "--model", str(model), "--output", str(output), "--cold-runs", "1", "--hot-runs", "5"]
    assert main([*words, "--concurrency", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(output.read_text())
    profile = read_profile(output)
    assert profile.model("net").start_s > 0
    assert profile.model("net").load_s > 0
    assert profile.overhead_s("net") > 0
    assert profile.runtime_mb > 1
    assert len(profile.slowdown) == 2
    assert main(["simulate", "--workload", str(arrivals), "--profile", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_both_answer_the_same_requests() -> None:
    words = ["--seconds", "15", "--cold-runs", "1", "--json"]
    done = subprocess.run([sys.executable, AGREEMENT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for side in (result["predicted"], result["measured"]):
        assert side["requests"] == result["measured"]["requests"] > 5
        assert side["lost"] == 0
        assert side["cold_starts"] >= 1
        assert side["gb_seconds"] > 0
        assert sum(count for count, _ in side["paths"].values()) == side["requests"]
