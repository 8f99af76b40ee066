"""What every Attester and every Sealer does. A real device joins by a fixture entry that opens it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister.adapters.tee.configfs_tsm import ConfigfsTsmAttester
from cloister.adapters.tee.gramine import GramineAttester
from cloister.adapters.tee.nitro import NitroAttester
from cloister.adapters.tee.sealing import gramine_sealer, snp_sealer
from cloister.adapters.tee.simulation import SimulatedAttester
from cloister.attest.anchors import TrustAnchors
from cloister.attest.types import Attester, Collateral, Sealer
from cloister.attest.verify import verify
from cloister.base.errors import InvalidInput, Tampered
from cloister.crypto.sign import SigningKey
from cloister.testing.clock import FakeClock
from cloister.testing.devices import FakeConfigfsTsm, FakeGramine, FakeNsm, FakeSevGuest
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_nitro import NitroAuthority
from cloister.testing.evidence_snp import SnpAuthority
from cloister.testing.tee import SimulatedTee, simulated_tee


@dataclass
class Offered:
    attester: Attester
    anchors: TrustAnchors
    collateral: Collateral
    now: float


def installed() -> Offered:
    key, clock = SigningKey.generate(), FakeClock()
    attester = SimulatedAttester(key, clock, configuration_digest=b"c" * 32)
    return Offered(attester, TrustAnchors(simulation_keys=(key.public_key,)), Collateral(), clock.now())


def fake() -> Offered:
    tee = simulated_tee("code")
    return Offered(tee.attester(), tee.anchors(), Collateral(), tee.clock.now())


def gramine() -> Offered:
    intel = SyntheticIntel.sgx()

    def quote(report_data: bytes) -> bytes:
        intel.report["report_data"] = report_data
        return intel.quote()

    return Offered(GramineAttester(FakeGramine(quote)), intel.anchors(), intel.collateral(), FakeClock().now())


def tdx_by_configfs() -> Offered:
    intel = SyntheticIntel.tdx(5)

    def quote(report_data: bytes, _level: int) -> bytes:
        intel.report["report_data"] = report_data
        return intel.quote()

    attester = ConfigfsTsmAttester(FakeConfigfsTsm(quote))
    return Offered(attester, intel.anchors(), intel.collateral(), FakeClock().now())


def snp_by_configfs() -> Offered:
    amd = SnpAuthority.create()
    _, collateral = amd.evidence("Milan", crl=amd.crl("Milan"))

    def report(report_data: bytes, level: int) -> bytes:
        return amd.evidence("Milan", report_data=report_data, vmpl=level)[0].body

    attester = ConfigfsTsmAttester(FakeConfigfsTsm(report, provider=b"sev_guest\n"), privilege_level=1)
    return Offered(attester, amd.anchors("Milan"), collateral, FakeClock().now())


def nitro() -> Offered:
    aws = NitroAuthority.create()
    nsm = FakeNsm(lambda report_data: aws.evidence(aws.content(user_data=report_data)).body)
    attester = NitroAttester(Path(os.devnull), ioctl=nsm)
    return Offered(attester, aws.anchors(), Collateral(), FakeClock().now())


@pytest.fixture(params=[installed, fake, gramine, tdx_by_configfs, snp_by_configfs, nitro])
def offered(request: pytest.FixtureRequest) -> Offered:
    make: Callable[[], Offered] = request.param
    return make()


def test_evidence_verifies_and_is_over_the_report_data(offered: Offered) -> None:
    for report_data in (bytes(64), bytes(range(64)), b"\xff" * 64):
        evidence = offered.attester.evidence(report_data)
        assert evidence.tee is offered.attester.tee
        verified = verify(evidence, offered.collateral, offered.anchors, offered.now)
        assert verified.claims.report_data == report_data
        assert verified.claims.tee is offered.attester.tee


def test_report_data_of_another_length_is_an_error(offered: Offered) -> None:
    for length in (0, 32, 63, 65):
        with pytest.raises(InvalidInput):
            offered.attester.evidence(bytes(length))


def sealer_of_gramine() -> Sealer:
    return gramine_sealer(b"c" * 32, FakeGramine(lambda _data: b""))


def sealer_of_snp() -> Sealer:
    return snp_sealer(b"c" * 32, device=Path(os.devnull), ioctl=FakeSevGuest())


@pytest.fixture(params=[lambda: simulated_tee("code").sealer(), sealer_of_gramine, sealer_of_snp])
def sealer(request: pytest.FixtureRequest) -> Sealer:
    made: Sealer = request.param()
    return made


@pytest.mark.parametrize("plaintext", [b"", b"x", bytes(100_000)])
def test_what_was_sealed_is_unsealed(sealer: Sealer, plaintext: bytes) -> None:
    sealed = sealer.seal(plaintext)
    assert sealed != sealer.seal(plaintext)
    assert sealer.unseal(sealed) == plaintext


@pytest.mark.parametrize("data", [b"", b"\x01", bytes(12), bytes(13), bytes(29), bytes(1000)])
def test_anything_else_is_refused(sealer: Sealer, data: bytes) -> None:
    with pytest.raises(Tampered, match="unseal-failed"):
        sealer.unseal(data)


def test_only_the_same_code_configuration_and_platform_unseals() -> None:
    sealed = simulated_tee("code", isolation="strict").sealer().seal(b"state")
    assert simulated_tee("code", isolation="strict").sealer().unseal(sealed) == b"state"
    for other in (
        simulated_tee("other code", isolation="strict"),
        simulated_tee("code", isolation="shared"),
        simulated_tee("code", 2, isolation="strict"),
        SimulatedTee(),
    ):
        with pytest.raises(Tampered, match="unseal-failed"):
            other.sealer().unseal(sealed)
