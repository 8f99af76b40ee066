"""``cloister collateral``: make, show and verify a bundle; use it with ``cloister verify``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.adapters.collateral.bundle import Bundle, Entry
from cloister.adapters.collateral.subject import subject_of
from cloister.attest.types import Collateral
from cloister.cli.main import main
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import DAY, NOW
from cloister.testing.vendor_service import VendorService, pcs_replies

AT = 1750852800


@pytest.fixture
def recorded(evidence_dir: Path) -> Path:
    return evidence_dir / "tdx" / "v4-uptodate"


@pytest.fixture
def made(recorded: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bundle.cbor"
    arguments = ["--evidence", f"tdx:{recorded / 'quote.bin'}", "--directory", str(recorded), "--at", str(AT)]
    assert main(["collateral", "bundle", "--output", str(path), *arguments]) == 0
    return path


def test_a_bundle_from_a_folder_is_shown_and_verified(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["collateral", "show", str(made), "--at", str(AT)]) == 0
    shown = capsys.readouterr().out
    assert "tdx/b0c06f000000/platform" in shown
    assert "says it is valid until 2025-07-19" in shown
    assert "nothing was verified" in shown
    assert "run out" not in shown
    assert main(["collateral", "verify", str(made), "--at", str(AT)]) == 0
    assert capsys.readouterr().out.startswith("PASS  tdx/b0c06f000000/platform: valid until 2025-07-19")


def test_a_bundle_that_has_run_out_says_so(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = str(AT + 400 * DAY)
    capsys.readouterr()
    assert main(["collateral", "show", str(made), "--at", late]) == 0
    assert "it has run out" in capsys.readouterr().out
    assert main(["collateral", "verify", str(made), "--at", late, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["expires_at"]) == ("refused", None)
    assert report["entries"][0]["code"] == "tcb-info-expired"


def test_a_bundle_serves_verify(recorded: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = ["--tee", "tdx", "--evidence", str(recorded / "quote.bin"), "--at", str(AT)]
    capsys.readouterr()
    assert main(["policy", "observe", *evidence, "--collateral", str(made)]) == 0
    policy = tmp_path / "policy.toml"
    policy.write_text(capsys.readouterr().out)
    assert main(["verify", *evidence, "--collateral", str(made), "--policy", str(policy)]) == 0
    other = recorded.parents[1] / "sgx" / "v3-processor-ca" / "quote.bin"
    wrong = ["--tee", "sgx", "--evidence", str(other), "--at", str(AT), "--collateral", str(made)]
    capsys.readouterr()
    assert main(["verify", *wrong, "--policy", str(policy)]) == 1
    assert "FAIL  collateral " in (said := capsys.readouterr().out)
    assert "nothing for sgx/" in said


def test_a_bundle_is_fetched_from_a_service(evidence_dir: Path, tmp_path: Path) -> None:
    """Recorded answers, replayed by a service on the loopback interface."""
    folder = evidence_dir / "sgx" / "v3-processor-ca"
    recorded = Collateral({"collateral.json": (folder / "collateral.json").read_bytes()})
    replies = pcs_replies(recorded, tee="sgx", fmspc="00a067110000", ca="processor")
    path = tmp_path / "bundle.cbor"
    arguments = ["--output", str(path), "--evidence", f"sgx:{folder / 'quote.bin'}", "--at", str(AT)]
    with VendorService(replies) as service:
        assert main(["collateral", "bundle", *arguments, "--intel-service", service.url]) == 0
    assert main(["collateral", "verify", str(path), "--at", str(AT)]) == 0
    assert main(["collateral", "bundle", *arguments, "--intel-service", service.url]) == 1


def test_collateral_of_another_platform_is_not_bundled(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Genuine, valid, and of no use to the platform that it would be kept for."""
    other = recorded.parent / "v4-outofdate"
    arguments = ["--evidence", f"tdx:{other / 'quote.bin'}", "--directory", str(recorded), "--at", str(AT)]
    assert main(["collateral", "bundle", "--output", str(tmp_path / "out"), *arguments]) == 1
    assert "collateral-other-platform" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_collateral_of_another_root_is_not_bundled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    intel = SyntheticIntel.sgx()
    (tmp_path / "collateral.json").write_bytes(intel.collateral().files["collateral.json"])
    (tmp_path / "quote.bin").write_bytes(intel.quote())
    arguments = ["--evidence", f"sgx:{tmp_path / 'quote.bin'}", "--directory", str(tmp_path), "--at", str(NOW)]
    assert main(["collateral", "bundle", "--output", str(tmp_path / "out"), *arguments]) == 1
    assert "root-not-pinned" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    subject = subject_of(intel.evidence())
    assert subject is not None
    forged = Bundle(NOW, NOW + DAY, (Entry(subject.key, NOW, intel.collateral()),))
    (tmp_path / "forged").write_bytes(forged.encode())
    assert main(["collateral", "verify", str(tmp_path / "forged"), "--at", str(NOW)]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "/nonexistent"],
        ["verify", "/dev/null"],
        ["verify", "/dev/null", "--at", "-5"],
        ["bundle", "--output", "out", "--evidence", "nitro:x"],
        ["bundle", "--output", "out", "--evidence", "sgx"],
        ["bundle", "--output", "out", "--evidence", "sgx:/nonexistent"],
        ["bundle", "--output", "out", "--evidence", "sgx:/dev/null", "--intel-service", "ftp://x"],
        ["bundle", "--output", "out", *(["--evidence", "sgx:/dev/null"] * 2), "--directory", "/"],
    ],
)
def test_unusable_arguments_are_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collateral", *arguments]) == 2
    assert capsys.readouterr().err.startswith("cloister: ")
