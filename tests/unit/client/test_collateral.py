"""Where a client takes collateral for a KeyService's evidence from, and what it remembers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.attest.anchors import TrustAnchors
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.client.evidence import ProfileCollateral
from cloister.client.profile import Profile, load_profile, save_profile
from cloister.testing.clock import FakeClock
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import NOW


def anchors(intel: SyntheticIntel) -> TrustAnchors:
    return intel.anchors()


def carrying(intel: SyntheticIntel) -> Evidence:
    return Evidence(TeeType.TDX, intel.quote(), dict(intel.collateral().files))


@pytest.mark.parametrize("source", ["", "vendors", "fleet.cbor", "/etc/collateral", "https://pccs.example:8081"])
def test_the_profile_keeps_the_source(tmp_path: Path, source: str) -> None:
    profile = Profile(tmp_path, "http://k", "http://g", "s", "bundle.cbor", b"r" * 32, 3, source)
    save_profile(profile)
    assert load_profile(tmp_path) == profile


def test_a_source_is_text(tmp_path: Path) -> None:
    save_profile(Profile(tmp_path, "http://k", "http://g", "s", "bundle.cbor", b"r" * 32))
    path = tmp_path / "config.toml"
    path.write_text(path.read_text() + "collateral = 3\n")
    with pytest.raises(InvalidInput, match="profile-malformed"):
        load_profile(tmp_path)


@pytest.mark.parametrize("tee", [TeeType.NITRO, TeeType.SIMULATION])
def test_where_none_is_needed_nothing_is_opened(tmp_path: Path, tee: TeeType) -> None:
    source = ProfileCollateral("/absent", tmp_path, FakeClock(NOW))
    assert source.collateral(Evidence(tee, b"")) == Collateral()
    assert not list(tmp_path.iterdir())


def test_what_the_keyservice_sends_is_used_and_never_goes_back(tmp_path: Path) -> None:
    """Also after a restart: a host that hides a revocation by sending what was valid before is found out."""
    intel, clock = SyntheticIntel.tdx(4), FakeClock(NOW)
    older = carrying(intel)
    intel.pck_crl.number = 2
    newer = carrying(intel)
    for evidence in (older, newer):
        found = ProfileCollateral("", tmp_path, clock, anchors(intel)).collateral(evidence)
        assert found.files == evidence.endorsements
    again = ProfileCollateral("", tmp_path, clock, anchors(intel)).collateral(older)
    assert again.files == newer.endorsements, "what is kept is newer, and still valid"


def test_nothing_sent_and_nothing_configured(tmp_path: Path) -> None:
    intel = SyntheticIntel.tdx(4)
    with pytest.raises(Unavailable, match="collateral-unavailable"):
        ProfileCollateral("", tmp_path, FakeClock(NOW), anchors(intel)).collateral(Evidence(TeeType.TDX, intel.quote()))


def test_a_folder_beside_the_profile(tmp_path: Path) -> None:
    intel = SyntheticIntel.tdx(4)
    (tmp_path / "intel").mkdir()
    for name, data in intel.collateral().files.items():
        (tmp_path / "intel" / name).write_bytes(data)
    source = ProfileCollateral("intel", tmp_path, FakeClock(NOW), anchors(intel))
    assert source.collateral(Evidence(TeeType.TDX, intel.quote())).files == intel.collateral().files


def test_a_source_that_is_none_is_said_when_it_is_needed(tmp_path: Path) -> None:
    source = ProfileCollateral("absent", tmp_path, FakeClock(NOW))
    with pytest.raises(CloisterError, match="collateral-source"):
        source.collateral(Evidence(TeeType.TDX, b"quote"))
