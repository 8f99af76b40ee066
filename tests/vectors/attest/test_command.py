"""``cloister verify`` gives every recorded piece of evidence the verdict that is recorded with it."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest

from cloister.attest.configuration import configure
from cloister.cli.main import main
from cloister.testing.evidence_snp import build_cert_table

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


def extended(folder: Path, kind: str) -> bytes:
    """The recorded report with its chain behind it, as the answer to an extended guest request."""
    chain = (folder / "ask_ark.pem").read_text().partition("-----END CERTIFICATE-----\n")
    upper, root = "".join(chain[:2]), chain[2]
    table = {
        "ark": ssl.PEM_cert_to_DER_cert(root),
        "ask": ssl.PEM_cert_to_DER_cert(upper),
        kind: (folder / "vek.der").read_bytes(),
    }
    return (folder / "report.bin").read_bytes() + build_cert_table(table)


@pytest.mark.parametrize(("vector", "kind"), [("genoa-v5-vcek", "vcek"), ("milan-v3-vlek-aws", "vlek")])
def test_a_report_with_the_hosts_certificate_table_behind_it(
    evidence_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], vector: str, kind: str
) -> None:
    folder = evidence_dir / "sev-snp" / vector
    at = str(json.loads((folder / "meta.json").read_text())["verify_at"])
    whole, policy, bundle = tmp_path / "extended.bin", tmp_path / "policy.toml", tmp_path / "bundle.cbor"
    whole.write_bytes(extended(folder, kind))
    words = ["--tee", "sev-snp", "--at", at, "--evidence"]
    assert main(["policy", "observe", *words, str(whole)]) == 0  # the table brings all that is needed
    policy.write_text(capsys.readouterr().out)
    assert main(["verify", *words, str(whole), "--policy", str(policy)]) == 0
    assert main(["verify", *words, str(whole), "--policy", str(policy), "--collateral", str(folder)]) == 0
    assert (
        main(
            [
                "collateral",
                "bundle",
                "--output",
                str(bundle),
                "--evidence",
                f"sev-snp:{whole}",
                "--directory",
                str(folder),
                "--at",
                at,
            ]
        )
        == 0
    )
    for evidence in (whole, folder / "report.bin"):
        assert main(["verify", *words, str(evidence), "--policy", str(policy), "--collateral", str(bundle)]) == 0
    capsys.readouterr()
    report = (folder / "report.bin").read_bytes()
    for behind in (b"\x01", b"\x01" * 16, bytes(24), b"\xff" * 4096, extended(folder, kind)[1184:1200]):
        whole.write_bytes(report + behind)
        command = ["verify", *words, str(whole), "--policy", str(policy), "--collateral", str(folder), "--json"]
        assert main(command) == 1
        steps = json.loads(capsys.readouterr().out)["steps"]
        assert [step["code"] for step in steps if step["verdict"] == "FAIL"] == ["snp-report-length"]


def test_a_vlek_is_bundled_from_a_folder_and_found_by_its_signature(
    evidence_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report names no chip, so nothing but the signature says which certificate is its own."""
    folder, bundle = evidence_dir / "sev-snp" / "milan-v3-vlek-aws", tmp_path / "bundle.cbor"
    at = str(json.loads((folder / "meta.json").read_text())["verify_at"])
    given = ["--evidence", f"sev-snp:{folder / 'report.bin'}", "--directory", str(folder), "--at", at]
    assert main(["collateral", "bundle", "--output", str(bundle), *given]) == 0
    assert main(["collateral", "verify", str(bundle), "--at", at]) == 0
    words = ["--tee", "sev-snp", "--at", at, "--collateral", str(bundle), "--evidence"]
    capsys.readouterr()
    assert main(["policy", "observe", *words, str(folder / "report.bin")]) == 0
    policy, other = tmp_path / "policy.toml", tmp_path / "other.bin"
    policy.write_text(capsys.readouterr().out)
    assert main(["verify", *words, str(folder / "report.bin"), "--policy", str(policy)]) == 0
    changed = bytearray((folder / "report.bin").read_bytes())
    changed[0x50] ^= 1
    other.write_bytes(changed)
    assert main(["verify", *words, str(other), "--policy", str(policy)]) == 1
    assert "nothing for sev-snp/vlek/" in capsys.readouterr().out
