"""KeyService and runtimes on every TEE, by the devices' own protocols and under synthetic vendors: no code changes."""

from __future__ import annotations

import hashlib
import os
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister.adapters.collateral.configured import CarriedCollateral, open_collateral
from cloister.adapters.tee.configfs_tsm import ConfigfsTsmAttester
from cloister.adapters.tee.endorsing import EndorsingAttester
from cloister.adapters.tee.gramine import GramineAttester
from cloister.adapters.tee.measurement import own_measurement
from cloister.adapters.tee.nitro import NitroAttester
from cloister.adapters.tee.open import open_tee
from cloister.adapters.tee.sealing import gramine_sealer
from cloister.attest import x509
from cloister.attest.anchors import TrustAnchors
from cloister.attest.configuration import configure
from cloister.attest.types import Attester, Collateral, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.secret import SecretBytes
from cloister.crypto.hpke import HpkePrivateKey
from cloister.keyservice.app import NO_BUNDLE, Assembled, assemble
from cloister.keyservice.offline import begin
from cloister.keyservice.opening import Tee, hardware_tee
from cloister.keyservice.root import root_of
from cloister.keyservice.settings import Settings
from cloister.testing.clock import FakeClock
from cloister.testing.collateral import MemoryCollateral
from cloister.testing.devices import FakeConfigfsTsm, FakeGramine, FakeNsm
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import NOW
from cloister.testing.evidence_nitro import NitroAuthority
from cloister.testing.evidence_snp import SnpAuthority, build_cert_table
from cloister.testing.logs import MemoryLog
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.wire import calls, provisioning
from cloister.wire.calls import WireEvidence
from cloister.wire.provisioning import AttestRequest

INTEL, AMD, AWS = SyntheticIntel.sgx(), SnpAuthority.create(), NitroAuthority.create()
ANCHORS = TrustAnchors(
    intel_root_der=INTEL.anchors().intel_root_der,
    amd_arks=AMD.anchors("Milan").amd_arks,
    nitro_root=AWS.anchors().nitro_root,
)


def quote_by(intel: SyntheticIntel) -> Callable[[bytes], bytes]:
    def quote(report_data: bytes) -> bytes:
        intel.report["report_data"] = report_data
        return intel.quote()

    return quote


@dataclass(frozen=True)
class SyntheticSettings(Settings):
    """The KeyService's settings, with the synthetic vendors in the place of the real ones."""

    def anchors(self) -> TrustAnchors:
        return ANCHORS


def sgx() -> tuple[Attester, Collateral]:
    intel = SyntheticIntel.sgx()
    return GramineAttester(FakeGramine(quote_by(intel))), intel.collateral()


def tdx() -> tuple[Attester, Collateral]:
    intel = SyntheticIntel.tdx(5)
    quote = quote_by(intel)
    return ConfigfsTsmAttester(FakeConfigfsTsm(lambda data, _level: quote(data))), intel.collateral()


def snp() -> tuple[Attester, Collateral]:
    def report(data: bytes, level: int) -> bytes:
        return AMD.evidence("Milan", report_data=data, vmpl=level)[0].body

    collateral = AMD.evidence("Milan", crl=AMD.crl("Milan"))[1]
    return ConfigfsTsmAttester(FakeConfigfsTsm(report, provider=b"sev_guest\n")), collateral


def nitro() -> tuple[Attester, Collateral]:
    nsm = FakeNsm(lambda data: AWS.evidence(AWS.content(user_data=data)).body)
    return NitroAttester(Path(os.devnull), ioctl=nsm), Collateral()


RUNTIMES = {"sgx": sgx, "tdx": tdx, "sev-snp": snp, "nitro": nitro}


def chain_of(files: Mapping[str, bytes]) -> tuple[x509.Certificate, ...]:
    return x509.load_pem_chain(files["ask_ark.pem"], "the chain")


def endorsed(attester: Attester, collateral: Collateral) -> EndorsingAttester:
    source = MemoryCollateral()
    source.put(attester.evidence(bytes(64)), collateral)
    return EndorsingAttester(attester, source)


@dataclass
class Site:
    """A KeyService in an enclave, on a disk in memory."""

    clock: FakeClock
    assembled: Assembled
    settings: Settings


@pytest.fixture
def site(tmp_path: Path) -> Site:
    clock, disk, settings = FakeClock(NOW), MemoryDisk(), SyntheticSettings()
    device = FakeGramine(quote_by(SyntheticIntel.sgx()))
    sealer = gramine_sealer(settings.measured().digest, device)
    root = root_of(SecretBytes(sealer.unseal(sealer.seal(b"r" * 32))))
    begin(MemoryRows(disk), root, settings, clock).close()
    attester = endorsed(GramineAttester(device), INTEL.collateral())
    assembled = assemble(
        MemoryRows(disk),
        root,
        Tee(attester, sealer, hashlib.sha256(b"synthetic enclave").digest()),
        settings,
        clock=clock,
        collateral=open_collateral(None, settings.anchors(), clock, cache=tmp_path / "collateral"),
        bundle_digest=lambda: NO_BUNDLE,
        events=MemoryLog(),
    )
    return Site(clock, assembled, settings)


def attest(site: Site, attester: Attester) -> provisioning.Session:
    """What a runtime does: challenge, evidence over it and the ephemeral key, sealed call."""
    service = site.assembled.service
    key, configuration = HpkePrivateKey.generate(), configure({"isolation": "strict"}).encoded
    challenge = service.challenge()
    bound = provisioning.runtime_report_data(key.public_key, challenge, configuration, bytes(32))
    evidence = attester.evidence(bound)
    wire = WireEvidence(evidence.tee.value, evidence.body, dict(evidence.endorsements))
    request = AttestRequest(key.public_key, challenge, configuration, bytes(32), wire)
    pending = calls.seal_call(calls.Description.decode(service.description()), calls.ATTEST, request.encode(), ())
    return provisioning.accept_session(calls.open_reply(pending, service.call(pending.data)), request, key)


@pytest.mark.parametrize("kind", RUNTIMES)
def test_a_runtime_on_each_tee_opens_a_session(site: Site, kind: str) -> None:
    """The evidence brings its collateral along: the KeyService has no network here."""
    attester, collateral = RUNTIMES[kind]()
    assert attest(site, endorsed(attester, collateral)).lifetime > 0


@pytest.mark.parametrize("kind", ["sgx", "tdx", "sev-snp"])
def test_a_runtime_that_brings_no_collateral_is_not_believed(site: Site, kind: str) -> None:
    attester, _ = RUNTIMES[kind]()
    with pytest.raises(CloisterError):
        attest(site, attester)


@pytest.mark.parametrize("as_pem", [False, True])
def test_a_host_that_hands_the_guest_its_certificates_needs_no_other_source(site: Site, as_pem: bool) -> None:
    """Clause 4.12: the certificate table of the extended guest request."""
    files = AMD.evidence("Milan", crl=AMD.crl("Milan"))[1].files
    ask, ark = (der for _, der in sorted((cert.subject == cert.issuer, cert.der) for cert in chain_of(files)))
    entries = {"vcek": files["vek.der"], "ask": ask, "ark": ark}
    if as_pem:
        entries = {name: ssl.DER_cert_to_PEM_cert(der).encode() for name, der in entries.items()}
    table = build_cert_table(entries | {"crl": files["crl.der"]})

    def report(data: bytes, level: int) -> bytes:
        return AMD.evidence("Milan", report_data=data, vmpl=level)[0].body

    fake = FakeConfigfsTsm(report, provider=b"sev_guest\n", auxblob=table)
    assert attest(site, ConfigfsTsmAttester(fake)).lifetime > 0


def test_a_host_cannot_bring_older_collateral_than_was_seen(site: Site) -> None:
    """Clause 8.3 without a network: what travelled once is the floor, so a revocation cannot be hidden again."""
    intel = SyntheticIntel.tdx(4)
    quote = quote_by(intel)
    attester = ConfigfsTsmAttester(FakeConfigfsTsm(lambda data, _level: quote(data)))
    older = intel.collateral()
    intel.pck_crl.number, intel.pck_crl.revoked = 2, (intel.pck.serial,)
    newer = intel.collateral()
    assert attest(site, endorsed(attester, older)).lifetime > 0
    for collateral in (newer, older):
        with pytest.raises(CloisterError):
            attest(site, endorsed(attester, collateral))


def test_what_a_client_gets_verifies_without_a_network(site: Site) -> None:
    description = calls.Description.decode(site.assembled.service.description())
    evidence = description.evidence
    assert (evidence.tee, set(evidence.endorsements)) == ("sgx", {"collateral.json"})
    quote = Evidence(TeeType.SGX, evidence.body, evidence.endorsements)
    verified = verify(quote, CarriedCollateral().collateral(quote), ANCHORS, NOW)
    assert verified.claims.report_data == description.report_data()
    assert verified.claims.measurements["mrenclave"] == hashlib.sha256(b"synthetic enclave").digest()


def test_collateral_of_another_platform_is_not_sent_along() -> None:
    attester, _ = sgx()
    other = SyntheticIntel.sgx()
    other.platform.fmspc = bytes.fromhex("00906ea10000")
    other.tcb_info["fmspc"] = "00906EA10000"
    for collateral in (other.collateral(), Collateral(), Collateral({"collateral.json": b"{}"})):
        assert endorsed(attester, collateral).evidence(bytes(64)).endorsements == {}
    away = MemoryCollateral()
    assert EndorsingAttester(attester, away).evidence(bytes(64)).endorsements == {}
    assert EndorsingAttester(attester, away).tee is TeeType.SGX


@pytest.mark.parametrize("kind", RUNTIMES)
def test_the_measurement_is_what_the_policy_asks_for(kind: str) -> None:
    attester, collateral = RUNTIMES[kind]()
    evidence = attester.evidence(bytes(64))
    claims = verify(evidence, collateral, ANCHORS, NOW).claims
    name = {"sgx": "mrenclave", "tdx": "mrtd", "sev-snp": "measurement", "nitro": "pcr0"}[kind]
    assert own_measurement(attester) == claims.measurements[name]


def test_the_source_of_collateral_is_named(tmp_path: Path) -> None:
    clock = FakeClock(NOW)
    with pytest.raises(InvalidInput, match="collateral-source"):
        open_collateral(str(tmp_path / "absent"), ANCHORS, clock)
    (tmp_path / "bundle").write_bytes(b"no bundle")
    with pytest.raises(InvalidInput):
        open_collateral(str(tmp_path / "bundle"), ANCHORS, clock)
    attester, _ = tdx()
    evidence = attester.evidence(bytes(64))
    for source in (None, str(tmp_path)):
        with pytest.raises(Unavailable, match="collateral-unavailable"):
            open_collateral(source, ANCHORS, clock).collateral(evidence)
    open_collateral("vendors", ANCHORS, clock, cache=tmp_path / "cache")
    open_collateral("https://pccs.example:8081", ANCHORS, clock)
    assert (tmp_path / "cache").is_dir()


def test_without_a_tee_nothing_opens(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="evidence-unavailable"):
        open_tee(b"c" * 32, root=tmp_path)
    with pytest.raises((Unavailable, Refused)):
        hardware_tee(Settings())


def test_an_enclave_opens_whole_on_its_own_files(tmp_path: Path) -> None:
    """Gramine's tree as pipes and files below another root: evidence once, then the sealing key."""
    folder = tmp_path / "dev" / "attestation"
    (folder / "keys").mkdir(parents=True)
    (folder / "keys" / "_sgx_mrenclave").write_bytes(b"k" * 16)
    (folder / "attestation_type").write_bytes(b"dcap\n")
    for name in ("user_report_data", "quote"):
        os.mkfifo(folder / name)

    def serve() -> None:
        report_data = (folder / "user_report_data").read_bytes()
        (folder / "quote").write_bytes(quote_by(SyntheticIntel.sgx())(report_data))

    thread = threading.Thread(target=serve)
    thread.start()
    opened = open_tee(b"c" * 32, root=tmp_path, expected=TeeType.SGX)
    thread.join()
    assert opened.measurement == hashlib.sha256(b"synthetic enclave").digest()
    assert opened.sealer.unseal(opened.sealer.seal(b"root")) == b"root"
