"""``cloister verify`` and ``cloister policy``: exit codes, lines, JSON."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloister.attest.configuration import configure
from cloister.attest.simulation import SimulatedToken, produce
from cloister.base.secret import SecretBytes
from cloister.cli.main import main
from cloister.crypto.sign import SigningKey
from cloister.testing.evidence_dcap import SyntheticIntel

NOW = 1_800_000_000
KEY = SigningKey.from_seed(SecretBytes(bytes(range(32))))
CONFIGURATION = configure({"isolation": "strict"})
REPORT_DATA = b"r" * 64
POLICY = f"""
version = 1
[rule.lab]
tee = "insecure-simulation"
measurement = ["{(b"m" * 48).hex()}"]
minimum_security_version = 0
maximum_age_s = 600
configuration = ["{CONFIGURATION.digest.hex()}"]
isolation = ["strict"]
"""


@dataclass
class Files:
    evidence: Path
    policy: Path
    configuration: Path

    def arguments(self, *more: str) -> list[str]:
        return [
            *("--tee", "simulation", "--evidence", str(self.evidence), "--at", str(NOW + 5)),
            *("--insecure-simulation-key", KEY.public_key.hex(), "--configuration", str(self.configuration), *more),
        ]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(tmp_path / "evidence", tmp_path / "policy.toml", tmp_path / "configuration")
    token = SimulatedToken(KEY.public_key, b"m" * 48, CONFIGURATION.digest, REPORT_DATA, NOW)
    found.evidence.write_bytes(produce(KEY, token).body)
    found.policy.write_text(POLICY)
    found.configuration.write_bytes(CONFIGURATION.encoded)
    return found


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str, str]:
        try:
            status = main(words)
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_accepted(files: Files, run: Run) -> None:
    arguments = files.arguments("--policy", str(files.policy), "--report-data", REPORT_DATA.hex())
    status, out, err = run("verify", *arguments)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("PASS  parse ")
    assert "attestation.md 6.1" in lines[0]
    assert lines[-1] == "accepted: insecure-simulation, by rule lab"
    assert any("warning: insecure-simulation" in line for line in lines)
    assert "ties the configuration" not in out
    assert not any(line.startswith(("FAIL", "SKIP")) for line in lines)


def test_json_has_the_documented_shape(files: Files, run: Run) -> None:
    status, out, _ = run("verify", *files.arguments("--policy", str(files.policy)), "--json")
    result: dict[str, Any] = json.loads(out)
    assert status == 0
    assert list(result) == ["verdict", "tee", "claims", "steps"]
    assert (result["verdict"], result["tee"]) == ("accepted", "insecure-simulation")
    assert result["claims"]["measurements"] == {"measurement": (b"m" * 48).hex()}
    assert result["claims"]["configuration_digest"] == CONFIGURATION.digest.hex()
    assert all(list(step) == ["step", "verdict", "code", "detail"] for step in result["steps"])
    skipped = [(step["step"], step["code"]) for step in result["steps"] if step["verdict"] == "SKIP"]
    assert skipped == [("report-data", "not-requested")]


def test_refused_by_the_policy(files: Files, run: Run) -> None:
    files.policy.write_text(POLICY.replace((b"m" * 48).hex(), (b"n" * 48).hex()))
    status, out, _ = run("verify", *files.arguments("--policy", str(files.policy)))
    assert status == 1
    assert "FAIL  lab/measurement" in out
    assert out.splitlines()[-1].endswith("[measurement-not-allowed]")


def test_refused_by_report_data(files: Files, run: Run) -> None:
    arguments = files.arguments("--policy", str(files.policy), "--report-data", "00" * 64)
    status, out, _ = run("verify", *arguments, "--json")
    assert status == 1
    failed = [step for step in json.loads(out)["steps"] if step["verdict"] == "FAIL"]
    assert [(step["step"], step["code"]) for step in failed] == [("report-data", "report-data-mismatch")]


def test_refused_before_any_policy(files: Files, run: Run) -> None:
    files.evidence.write_bytes(files.evidence.read_bytes()[:-1] + b"x")
    status, out, _ = run("verify", *files.arguments("--policy", str(files.policy)), "--json")
    result = json.loads(out)
    assert (status, result["verdict"], result["claims"]) == (1, "refused", {})
    assert [step["verdict"] for step in result["steps"]] == ["PASS", "PASS", "FAIL", "SKIP", "SKIP"]
    assert result["steps"][-1] == {
        "step": "lab/*",
        "verdict": "SKIP",
        "code": "not-reached",
        "detail": "the evidence did not verify",
    }


def test_production_anchors_refuse_simulation(files: Files, run: Run) -> None:
    words = ["--tee", "simulation", "--evidence", str(files.evidence), "--at", str(NOW), "--policy", str(files.policy)]
    status, out, _ = run("verify", *words)
    assert status == 1
    assert "[simulation-refused]" in out


def test_evidence_of_one_tee_is_none_of_another(files: Files, run: Run, tmp_path: Path) -> None:
    for tee in ("sgx", "tdx", "sev-snp", "nitro"):
        words = ["--tee", tee, "--evidence", str(files.evidence), "--collateral", str(tmp_path)]
        status, out, _ = run("verify", *words, "--at", str(NOW), "--policy", str(files.policy))
        assert status == 1
        assert out.splitlines()[-1].startswith(f"refused: {tee}")


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "cbor-malformed"), (bytes(70_000), "evidence-too-long"), (b"nothing like it", "cose-malformed")],
    ids=["empty", "huge", "text"],
)
def test_a_file_that_is_no_evidence_is_refused(files: Files, run: Run, content: bytes, code: str) -> None:
    """Whatever is in it: the verdict is a refusal, with its steps, and the arguments were usable."""
    files.evidence.write_bytes(content)
    status, out, err = run("verify", *files.arguments("--policy", str(files.policy)), "--json")
    result = json.loads(out)
    assert (status, err, result["verdict"], result["claims"]) == (1, "", "refused", {})
    assert [step["code"] for step in result["steps"] if step["verdict"] == "FAIL"] == [code]
    assert "PASS" not in {step["verdict"] for step in result["steps"]}


def test_evidence_that_was_written_as_text_is_pointed_at(files: Files, run: Run) -> None:
    files.evidence.write_text(files.evidence.read_bytes().hex())
    status, out, _ = run("verify", *files.arguments("--policy", str(files.policy)))
    assert status == 1
    assert "decode hexadecimal or base64 first" in out


def test_evidence_that_is_a_folder_or_unreadable_is_no_argument(files: Files, run: Run, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        status, out, err = run("verify", *files.arguments("--policy", str(files.policy)), "--evidence", str(place))
        assert (status, out) == (2, "")
        assert "[file-unreadable]" in err


def test_a_service_that_has_no_collateral_is_a_step_that_failed(run: Run, files: Files) -> None:
    files.evidence.write_bytes(SyntheticIntel.sgx().quote())
    with socket.socket() as unheard:  # bound and never listening: nothing answers there
        unheard.bind(("127.0.0.1", 0))
        source = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        words = ["--tee", "sgx", "--evidence", str(files.evidence), "--collateral", source]
        status, out, _ = run("verify", *words, "--policy", str(files.policy), "--json")
        result = json.loads(out)
        assert (status, result["verdict"]) == (1, "refused")
        assert [step["code"] for step in result["steps"]] == ["collateral-unavailable", "not-reached"]
        files.evidence.write_bytes(b"no quote")  # what names no platform is not asked for, and refused for what it is
        status, out, _ = run("verify", *words, "--policy", str(files.policy), "--json")
        assert (status, json.loads(out)["steps"][0]["code"]) == (1, "quote-truncated")


def test_a_policy_without_rules_refuses(files: Files, run: Run) -> None:
    files.policy.write_text("version = 1")
    status, out, _ = run("verify", *files.arguments("--policy", str(files.policy)))
    assert status == 1
    assert "FAIL  rules" in out
    assert "[policy-empty]" in out


@pytest.mark.parametrize(
    "change",
    [
        ["--at", "-5"],
        ["--at", "nan"],
        ["--at", "soon"],
        ["--tee", "trustzone"],
        ["--evidence", "nowhere"],
        ["--policy", "nowhere"],
        ["--configuration", "nowhere"],
        ["--collateral", "nowhere"],
        ["--report-data", "xyz"],
        ["--report-data", "00" * 63],
        ["--insecure-simulation-key", "00"],
        ["--tee", "sev-snp"],
    ],
    ids=" ".join,
)
def test_unusable_arguments(files: Files, run: Run, change: list[str]) -> None:
    status, out, err = run("verify", *files.arguments("--policy", str(files.policy)), *change)
    assert (status, out) == (2, "")
    assert err


def test_an_unusable_policy(files: Files, run: Run) -> None:
    files.policy.write_text(POLICY + "mesurement = 1\n")
    status, _, err = run("verify", *files.arguments("--policy", str(files.policy)))
    assert status == 2
    assert "rule.lab.mesurement" in err
    files.policy.write_bytes(b"\xff\xfe")
    assert run("verify", *files.arguments("--policy", str(files.policy)))[0] == 2
    files.policy.write_bytes(b"#" * 300_000)
    assert run("verify", *files.arguments("--policy", str(files.policy)))[0] == 2


def test_a_policy_is_explained(files: Files, run: Run) -> None:
    status, out, _ = run("policy", "check", str(files.policy))
    assert status == 0
    assert f"lab: The measurement must be {(b'm' * 48).hex()}." in out
    assert "warning: lab: insecure-simulation" in out
    status, out, _ = run("policy", "check", str(files.policy), "--json")
    result = json.loads(out)
    assert status == 0
    assert result["rules"] == [{"name": "lab", "tee": "insecure-simulation"}]
    assert result["warnings"]
    files.policy.write_text(POLICY.replace("600", "true"))
    status, _, err = run("policy", "check", str(files.policy))
    assert status == 1
    assert "rule.lab.maximum_age_s" in err
    assert run("policy", "check", "nowhere")[0] == 2
    assert run("policy")[0] == 2


def test_an_observed_policy_accepts_what_was_observed(files: Files, run: Run) -> None:
    status, out, _ = run("policy", "observe", *files.arguments())
    assert status == 0
    files.policy.write_text(out)
    assert run("verify", *files.arguments("--policy", str(files.policy)))[0] == 0
    status, out, _ = run("policy", "observe", *files.arguments("--json"))
    assert json.loads(out)["policy"] == files.policy.read_text().rstrip("\n") + "\n"
