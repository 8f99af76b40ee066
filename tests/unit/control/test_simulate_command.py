"""``cloister simulate``: its options, its JSON, its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.cli.main import main

KEYS = [
    "requests", "lost", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "cold", "warm", "hot", "gb_seconds", "instances_max",
    "slo_attainment",
]  # fmt: skip


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    path = tmp_path / "arrivals.csv"
    path.write_text("time_s,model,user\n" + "".join(f"{n / 4},m{n % 3},u{n % 2}\n" for n in range(80)))
    return path


@pytest.mark.parametrize("policy", ["one-to-one", "all-in-one", "fnpacker", "adaptive"])
def test_json_has_exactly_the_documented_keys(policy: str, workload: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "--policy", policy, "--balancer", "tee-aware", "--scaler", "slo", "--workload", str(workload)]
    assert main([*words, "--instances", "4", "--memory-mb", "600", "--slo-ms", "400", "--seed", "7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == KEYS
    assert result["requests"] == 80
    assert result["lost"] == 0
    assert result["instances_max"] <= 4


def test_plots_and_report_are_written(workload: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.html"
    assert main(["simulate", "--workload", str(workload), "--plots", str(tmp_path), "--report", str(report)]) == 0
    assert sorted(p.stem for p in tmp_path.glob("*.png")) == ["attainment", "instances", "latency", "shares"]
    assert report.read_text().count("data:image/png") == 4
    assert "adaptive" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "header"),
        ("time_s,model\nsoon,m\n", "line 2"),
        ("time_s,model\n1,m\n-1,m\n", "line 3"),
        ("time_s,model\n1,m,extra\n", "3 fields"),
        ("time_s,model\nnan,m\n", "line 2"),
        ("", "header"),
    ],
)
def test_a_bad_workload_is_refused_with_its_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert main(["simulate", "--workload", str(path)]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--instances", "0"],
        ["--instances", "10000000000"],
        ["--memory-mb", "10"],
        ["--memory-mb", "nan"],
        ["--memory-mb", "1e30"],
        ["--slo-ms", "0"],
        ["--slo-ms", "inf"],
        ["--cost-weight", "2"],
        ["--cost-weight", "nan"],
        ["--seed", "-1"],
        ["--keyless", "-1"],
        ["--queue", "-1"],
        ["--deadline-ms", "0"],
        ["--deadline-ms", "nan"],
    ],
    ids=" ".join,
)
def test_impossible_values_are_refused(options: list[str], workload: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--workload", str(workload), *options]) == 1
    said = capsys.readouterr().err
    assert "must" in said or "leaves nothing" in said


@pytest.mark.parametrize("option", ["--report", "--plots"])
def test_where_nothing_can_be_written_is_told(
    option: str, workload: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--workload", str(workload), option, str(workload / "there")]) == 1
    assert "[file-unwritable]" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--queue", "10"], ["--deadline-ms", "300", "--instances", "1"]], ids=" ".join)
@pytest.mark.parametrize("policy", ["one-to-one", "all-in-one", "fnpacker", "adaptive"])
def test_what_a_bounded_queue_turns_away_is_lost(
    policy: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "crowd.csv"
    path.write_text("time_s,model,user\n" + "".join(f"0,m{n % 5},u{n % 3}\n" for n in range(100)))
    assert main(["simulate", "--policy", policy, "--workload", str(path), *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["lost"] < 100
    assert result["cold"] + result["warm"] + result["hot"] == 100 - result["lost"]
    assert result["slo_attainment"] <= (100 - result["lost"]) / 100


@pytest.mark.parametrize("scaling", ["keep-alive", "concurrency", "slo"])
def test_instances_go_in_a_pause_of_a_day_and_it_costs_no_time(
    scaling: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "seldom.csv"
    path.write_text("time_s,model\n" + "".join(f"{86400 * day},m\n" for day in range(100)))
    words = ["simulate", "--policy", "one-to-one", "--scaler", scaling, "--workload", str(path)]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["cold"] == 100
    assert result["gb_seconds"] < 100 * 120


def test_azure_traces_are_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = tmp_path / "2021.csv"
    newer.write_text("app,func,end_timestamp,duration\na,f,10.5,0.5\na,g,11,0.1\n")
    older = tmp_path / "2019.csv"
    older.write_text("HashOwner,HashApp,HashFunction,Trigger,1,2\no,a,f,http,3,0\no,a,g,http,0,2\n")
    for path, count in ((newer, 2), (older, 5)):
        assert main(["simulate", "--workload", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["requests"] == count
