"""Whose collateral: a platform is named by its evidence, and what is of another platform is said to be."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import replace

import pytest

from cloister.adapters.collateral.bundle import Entry, make_bundle
from cloister.adapters.collateral.check import check_subject
from cloister.adapters.collateral.subject import Subject, subject_of
from cloister.attest.snp.certificates import Signer
from cloister.attest.types import Collateral, Evidence
from cloister.attest.verify import verify
from cloister.base.errors import InvalidInput
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_snp import NOW, SnpAuthority, chip_id, leaf_extensions, tcb


@pytest.fixture(scope="module")
def amd() -> SnpAuthority:
    return SnpAuthority.create()


def subject(evidence: Evidence) -> Subject:
    found = subject_of(evidence)
    assert found is not None
    return found


def other_platform(intel: SyntheticIntel) -> None:
    intel.platform.fmspc = bytes.fromhex("00906ea10000")


def other_ca(intel: SyntheticIntel) -> None:
    intel.pck_ca.common_name = "Intel SGX PCK Processor CA"


@pytest.mark.parametrize("change", [other_platform, other_ca])
def test_intel_collateral_of_another_platform(change: Callable[[SyntheticIntel], None]) -> None:
    intel, other = SyntheticIntel.tdx(4), SyntheticIntel.tdx(4)
    change(other)
    check_subject(subject(intel.evidence()), intel.collateral())
    with pytest.raises(InvalidInput, match="collateral-other-platform"):
        check_subject(subject(other.evidence()), intel.collateral())


@pytest.mark.parametrize(
    "fields",
    [{"chip_id": chip_id("Milan", 0x5D)}, {"reported_tcb": tcb("Milan", snp=26)}, {"flags": 1 << 2}],
    ids=["chip", "firmware", "kind of key"],
)
def test_amd_collateral_of_another_platform(amd: SnpAuthority, fields: dict[str, int | bytes]) -> None:
    evidence, collateral = amd.evidence()
    check_subject(subject(evidence), collateral)
    other, _ = amd.evidence(**fields)
    with pytest.raises(InvalidInput, match="collateral-other-platform"):
        check_subject(subject(other), collateral)


def test_a_certificate_that_came_along_is_the_one_that_counts(amd: SnpAuthority) -> None:
    evidence, collateral = amd.evidence("Milan", Signer.VLEK)
    carried = replace(evidence, endorsements={"vek.der": collateral.files["vek.der"]})
    check_subject(subject(carried), collateral)
    template = replace(
        amd.leaf_template("Milan", Signer.VLEK), extensions=leaf_extensions("Milan", Signer.VLEK, snp=23)
    )
    newer = Collateral({**collateral.files, "vek.der": amd.chain("Milan", Signer.VLEK, leaf=template)["vek.der"]})
    with pytest.raises(InvalidInput, match="collateral-other-platform"):
        check_subject(subject(carried), newer)


@pytest.mark.parametrize("signer", Signer)
def test_a_leaf_in_pem_is_the_same_collateral(amd: SnpAuthority, signer: Signer) -> None:
    """As tools write it: verified, checked by itself, and bundled."""
    evidence, collateral = amd.evidence("Genoa", signer)
    carried = replace(evidence, endorsements={"vek.der": collateral.files["vek.der"]})
    text = Collateral({**collateral.files, "vek.der": ssl.DER_cert_to_PEM_cert(collateral.files["vek.der"]).encode()})
    anchors = amd.anchors("Genoa")
    assert verify(evidence, text, anchors, NOW) == verify(evidence, collateral, anchors, NOW)
    check_subject(subject(carried), text)
    (entry,) = make_bundle([Entry(subject(carried).key, int(NOW), text)], anchors, NOW).entries
    assert entry.collateral == text


def test_evidence_that_nobody_has_collateral_for(amd: SnpAuthority) -> None:
    for signing_key in (2, 7):
        with pytest.raises(InvalidInput, match="collateral-subject"):
            subject_of(amd.evidence(flags=signing_key << 2)[0])
    intel = SyntheticIntel.tdx(4)
    intel.pck_ca.common_name = "Intel SGX PCK CA"
    with pytest.raises(InvalidInput, match="collateral-subject"):
        subject_of(intel.evidence())
