"""``cloister verify`` gives every recorded piece of evidence the verdict that is recorded with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.attest.configuration import configure
from cloister.cli.main import main

# folder: (the file, whether it is accepted under the policy observed from it, the code of the refusal otherwise)
CASES = {
    "sgx/v3-processor-ca": ("quote.bin", None),
    "tdx/v4-uptodate": ("quote.bin", None),
    "tdx/v4-outofdate": ("quote.bin", None),
    "tdx/v5-td15-uptodate": ("quote.bin", None),
    "tdx/v4-DEBUG": ("quote.bin", "debug-enabled"),
    "sev-snp/milan-v2-vcek": ("report.bin", None),
    "sev-snp/genoa-v5-vcek": ("report.bin", None),
    "sev-snp/milan-v3-vlek-aws": ("report.bin", None),
    "sev-snp/milan-v2-DEBUG": ("report.bin", "debug-not-allowed"),
    "nitro/prod-2025": ("document.cose", None),
    "nitro/prod-2022-nonce256": ("document.cose", None),
    "nitro/debug-2022": ("document.cose", "debug-not-allowed"),
}

# what the evidence would have to change in to be refused by the observed policy, and with which code
STRICTER = {
    "sgx/v3-processor-ca": ('["ConfigurationAndSWHardeningNeeded"]', '["UpToDate"]', "tcb-status-not-allowed"),
    "tdx/v4-outofdate": ('["OutOfDate"]', '["UpToDate"]', "tcb-status-not-allowed"),
    "tdx/v4-uptodate": ("allow_cached_keys = true", "", "cached-keys-not-allowed"),
    "tdx/v5-td15-uptodate": ("allow_smt = true", "allow_smt = false", "smt-not-allowed"),
    "sev-snp/milan-v2-vcek": ("snp = 8", "snp = 24", "reported-tcb-too-low"),
    "sev-snp/milan-v3-vlek-aws": ('vlek_csp_ids = ["CN=cc-us-east-2.amazonaws.com"]', "", "vlek-not-allowed"),
    "sev-snp/genoa-v5-vcek": ("allow_unchecked_revocation = true", "", "revocation-unchecked"),
    "nitro/prod-2025": ('"any-other-pcr"', '"all-zero"', "other-pcrs-not-allowed"),
    "nitro/prod-2022-nonce256": ("maximum_age_s = 300", "maximum_age_s = 5", "evidence-too-old"),
}


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def arguments(folder: Path, name: str) -> list[str]:
    place = folder / name
    at = json.loads((place / "meta.json").read_text())["verify_at"]
    tee = name.split("/", maxsplit=1)[0]
    return ["--tee", tee, "--evidence", str(place / CASES[name][0]), "--collateral", str(place), "--at", str(at)]


def test_recorded_verdict(evidence_dir: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(evidence_dir, name)
    refusal = CASES[name][1]
    if refusal is not None:
        assert main(["policy", "observe", *words]) == 1
        assert f"[{refusal}]" in capsys.readouterr().err
        return
    assert main(["policy", "observe", *words]) == 0
    observed = capsys.readouterr().out
    policy = tmp_path / "policy.toml"
    policy.write_text(observed)
    assert main(["verify", *words, "--policy", str(policy)]) == 0
    assert "FAIL" not in capsys.readouterr().out
    old, new, code = STRICTER[name]
    assert old in observed
    policy.write_text(observed.replace(old, new))
    assert main(["verify", *words, "--policy", str(policy), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert next(step["code"] for step in result["steps"] if step["verdict"] == "FAIL") == code


def test_debug_is_refused_under_a_policy_that_allows_everything_else(
    evidence_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sev-snp/milan-v2-DEBUG", "nitro/debug-2022"):
        words = arguments(evidence_dir, name)
        assert main(["policy", "observe", *words, "--insecure-debug"]) == 0
        observed = capsys.readouterr().out
        policy = tmp_path / "policy.toml"
        policy.write_text(observed)
        assert main(["verify", *words, "--policy", str(policy)]) == 0
        capsys.readouterr()
        refusing = observed.replace("insecure_debug = true", "insecure_debug = false")
        policy.write_text(refusing.replace("00" * 48, "11" * 48) if "nitro" in name else refusing)
        assert main(["verify", *words, "--policy", str(policy), "--json"]) == 1
        result = json.loads(capsys.readouterr().out)
        assert "debug-not-allowed" in [step["code"] for step in result["steps"]]


def test_a_configuration_that_nothing_ties_to_the_evidence_is_warned_of(
    evidence_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evidence of simulation holds the digest itself; a Nitro document can only be bound to it by report data."""
    words = arguments(evidence_dir, "nitro/prod-2025")
    assert main(["policy", "observe", *words]) == 0
    policy, configuration = tmp_path / "policy.toml", tmp_path / "configuration"
    policy.write_text(capsys.readouterr().out)
    configuration.write_bytes(configure({"isolation": "strict"}).encoded)
    assert main(["verify", *words, "--policy", str(policy)]) == 0
    assert "ties the configuration" not in capsys.readouterr().out
    assert main(["verify", *words, "--policy", str(policy), "--configuration", str(configuration)]) == 0
    assert "ties the configuration to the evidence" in capsys.readouterr().out
