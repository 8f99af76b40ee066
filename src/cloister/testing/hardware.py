"""Every TEE on devices that answer as the kernel's do, under synthetic vendors, and a KeyService that believes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from cloister.adapters.collateral.configured import open_collateral
from cloister.adapters.tee.configfs_tsm import ConfigfsTsmAttester
from cloister.adapters.tee.endorsing import EndorsingAttester
from cloister.adapters.tee.gramine import GramineAttester
from cloister.adapters.tee.nitro import NitroAttester
from cloister.attest.anchors import TrustAnchors
from cloister.attest.configuration import configure
from cloister.attest.types import Attester, Collateral, CollateralSource, TeeType
from cloister.base.clock import Clock
from cloister.base.secret import SecretBytes
from cloister.crypto.hpke import HpkePrivateKey
from cloister.keyservice.app import NO_BUNDLE, assemble
from cloister.keyservice.offline import begin
from cloister.keyservice.opening import Tee
from cloister.keyservice.root import root_of
from cloister.keyservice.service import KeyService
from cloister.keyservice.settings import Settings
from cloister.testing.collateral import MemoryCollateral
from cloister.testing.devices import FakeConfigfsTsm, FakeGramine, FakeNsm
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_nitro import NitroAuthority
from cloister.testing.evidence_snp import SnpAuthority
from cloister.testing.logs import MemoryLog
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.testing.tee import SimulatedTee
from cloister.wire import calls, provisioning
from cloister.wire.calls import WireEvidence
from cloister.wire.provisioning import AttestRequest

TEES: Final = (TeeType.SGX, TeeType.TDX, TeeType.SEV_SNP, TeeType.NITRO)
CONFIGURATION: Final = configure({"isolation": "strict"}).encoded


@dataclass(frozen=True)
class SyntheticVendors:
    """Intel, AMD and AWS with keys of our own; Intel's are the same each time."""

    amd: SnpAuthority = field(default_factory=SnpAuthority.create)
    aws: NitroAuthority = field(default_factory=NitroAuthority.create)

    @property
    def anchors(self) -> TrustAnchors:
        """The roots of all three."""
        return TrustAnchors(
            intel_root_der=SyntheticIntel.sgx().anchors().intel_root_der,
            amd_arks=self.amd.anchors("Milan").amd_arks,
            nitro_root=self.aws.anchors().nitro_root,
        )

    def machine(self, tee: TeeType) -> tuple[Attester, Collateral]:
        """A genuine machine's attester, and the collateral for it."""
        match tee:
            case TeeType.SGX:
                intel = SyntheticIntel.sgx()
                return GramineAttester(FakeGramine(quotes(intel))), intel.collateral()
            case TeeType.TDX:
                intel = SyntheticIntel.tdx(5)
                return tdx_machine(intel), intel.collateral()
            case TeeType.SEV_SNP:
                collateral = self.amd.evidence("Milan", crl=self.amd.crl("Milan"))[1]
                return ConfigfsTsmAttester(FakeConfigfsTsm(self._report, provider=b"sev_guest\n")), collateral
            case TeeType.NITRO:
                nsm = FakeNsm(lambda data: self.aws.evidence(self.aws.content(user_data=data)).body)
                return NitroAttester(Path(os.devnull), ioctl=nsm), Collateral()
            case TeeType.SIMULATION:
                return SimulatedTee().attester(), Collateral()

    def _report(self, data: bytes, level: int) -> bytes:
        return self.amd.evidence("Milan", report_data=data, vmpl=level)[0].body

    def endorsed(self, tee: TeeType) -> Attester:
        """The same machine, whose evidence brings its collateral along."""
        return endorsed(*self.machine(tee))


def quotes(intel: SyntheticIntel) -> Callable[[bytes], bytes]:
    """What makes quotes over given report data."""

    def quote(report_data: bytes) -> bytes:
        intel.report["report_data"] = report_data
        return intel.quote()

    return quote


def tdx_machine(intel: SyntheticIntel) -> Attester:
    """A TDX guest on this platform."""
    quote = quotes(intel)
    return ConfigfsTsmAttester(FakeConfigfsTsm(lambda data, _level: quote(data)))


def endorsed(attester: Attester, collateral: Collateral) -> Attester:
    """An attester whose evidence brings this collateral along."""
    source = MemoryCollateral()
    source.put(attester.evidence(bytes(64)), collateral)
    return EndorsingAttester(attester, source)


@dataclass(frozen=True)
class SyntheticSettings(Settings):
    """The KeyService's settings, with synthetic vendors in the place of the real ones."""

    roots: TrustAnchors = field(default_factory=TrustAnchors)

    def anchors(self) -> TrustAnchors:
        """The synthetic roots."""
        return self.roots


@final
class HardwareKeyService:
    """The real KeyService, believing synthetic vendors' hardware and nothing else.

    :param collateral: for runtimes' evidence; by default what travels along.
    """

    def __init__(
        self,
        vendors: SyntheticVendors,
        clock: Clock,
        *,
        cache: Path | None = None,
        collateral: CollateralSource | None = None,
    ) -> None:
        settings = SyntheticSettings(roots=vendors.anchors)
        root, disk, own = root_of(SecretBytes(b"r" * 32)), MemoryDisk(), SimulatedTee("keyservice", clock=clock)
        begin(MemoryRows(disk), root, settings, clock).close()
        self.id = root.id
        attester = vendors.endorsed(TeeType.SGX)
        self.collateral = collateral or open_collateral(None, vendors.anchors, clock, cache=cache)
        self.service: KeyService = assemble(
            MemoryRows(disk),
            root,
            Tee(attester, own.sealer(), own.measurement),
            settings,
            clock=clock,
            collateral=self.collateral,
            bundle_digest=lambda: NO_BUNDLE,
            events=MemoryLog(),
        ).service

    def request(
        self, attester: Attester, challenge: bytes | None = None, configuration: bytes = CONFIGURATION
    ) -> tuple[AttestRequest, HpkePrivateKey]:
        """What a runtime sends, over a fresh challenge unless one is given, and the key that opens the answer."""
        key, challenge = HpkePrivateKey.generate(), self.service.challenge() if challenge is None else challenge
        bound = provisioning.runtime_report_data(key.public_key, challenge, configuration, NO_BUNDLE)
        evidence = attester.evidence(bound)
        wire = WireEvidence(evidence.tee.value, evidence.body, dict(evidence.endorsements))
        return AttestRequest(key.public_key, challenge, configuration, NO_BUNDLE, wire), key

    def call(self, request: AttestRequest) -> dict[str, object]:
        """The sealed attest call."""
        return self._sealed(calls.ATTEST, request.encode())

    def say(self, statement: bytes) -> dict[str, object]:
        """One sealed statement."""
        return self._sealed(calls.STATEMENT, statement)

    def _sealed(self, kind: str, body: bytes) -> dict[str, object]:
        pending = calls.seal_call(calls.Description.decode(self.service.description()), kind, body, ())
        return calls.open_reply(pending, self.service.call(pending.data))

    def attest(self, attester: Attester) -> provisioning.Session:
        """A session, as a runtime opens one."""
        request, key = self.request(attester)
        return provisioning.accept_session(self.call(request), request, key)
