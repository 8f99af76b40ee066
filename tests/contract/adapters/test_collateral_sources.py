"""Every collateral source, and the fake, keeps the port's contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister.adapters.collateral.amd_kds import AmdKds
from cloister.adapters.collateral.bundle import BundleCollateral, Entry, make_bundle, write_atomically
from cloister.adapters.collateral.cached import CachedCollateral, DirectoryStore, MemoryStore
from cloister.adapters.collateral.directory import DirectoryCollateral
from cloister.adapters.collateral.fetch import Fetcher
from cloister.adapters.collateral.intel_pcs import IntelPcs
from cloister.adapters.collateral.subject import subject_of
from cloister.adapters.collateral.vendors import VendorCollateral
from cloister.attest.anchors import TrustAnchors
from cloister.attest.snp.certificates import Signer
from cloister.attest.types import Collateral, CollateralSource, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.testing.clock import FakeClock
from cloister.testing.collateral import MemoryCollateral
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import NOW
from cloister.testing.evidence_snp import SnpAuthority, build_report, chip_id, tcb
from cloister.testing.vendor_service import Reply, VendorService, pcs_replies


@dataclass(frozen=True)
class Known:
    """A platform that every source under test knows."""

    evidence: Evidence
    collateral: Collateral
    anchors: TrustAnchors
    replies: dict[str, Reply]


def _intel(intel: SyntheticIntel, tee: str, ca: str) -> Known:
    collateral = intel.collateral()
    fmspc = intel.platform.fmspc.hex()
    return Known(intel.evidence(), collateral, intel.anchors(), pcs_replies(collateral, tee=tee, fmspc=fmspc, ca=ca))


def _amd(product: str, signer: Signer) -> Known:
    authority = SnpAuthority.create()
    evidence, collateral = authority.evidence(product, signer, crl=authority.crl(product), version=3)
    folder = f"/{signer.label}/v1/{product}"
    replies = {
        f"{folder}/cert_chain": Reply(collateral.files["ask_ark.pem"]),
        f"{folder}/crl": Reply(collateral.files["crl.der"]),
    }
    if signer is Signer.VCEK:
        levels = "blSPL=04&teeSPL=02&snpSPL=27&ucodeSPL=219"
        chip = chip_id(product)
        if product == "Turin":
            levels, chip = "fmcSPL=01&" + levels, chip[:8]
        replies[f"{folder}/{chip.hex()}?{levels}"] = Reply(collateral.files["vek.der"])
    else:
        evidence = Evidence(evidence.tee, evidence.body, {"vek.der": collateral.files["vek.der"]})
    return Known(evidence, collateral, authority.anchors(product), replies)


PLATFORMS: dict[str, Callable[[], Known]] = {
    "sgx": lambda: _intel(SyntheticIntel.sgx(), "sgx", "processor"),
    "tdx": lambda: _intel(SyntheticIntel.tdx(4), "tdx", "platform"),
    "milan": lambda: _amd("Milan", Signer.VCEK),
    "turin": lambda: _amd("Turin", Signer.VCEK),
    "genoa-vlek": lambda: _amd("Genoa", Signer.VLEK),
}


@pytest.fixture(scope="module", params=PLATFORMS)
def known(request: pytest.FixtureRequest) -> Known:
    return PLATFORMS[request.param]()


def _memory(known: Known) -> MemoryCollateral:
    source = MemoryCollateral()
    source.put(known.evidence, known.collateral)
    return source


def _bundle(known: Known, folder: Path) -> BundleCollateral:
    subject = subject_of(known.evidence)
    assert subject is not None
    bundle = make_bundle([Entry(subject.key, NOW, known.collateral)], known.anchors, NOW)
    write_atomically(folder / "bundle.cbor", bundle.encode())
    return BundleCollateral.open(folder / "bundle.cbor")


def _directory(known: Known, folder: Path) -> DirectoryCollateral:
    for name, data in known.collateral.files.items():
        (folder / name).write_bytes(data)
    return DirectoryCollateral(folder)


@pytest.fixture(params=["memory", "directory", "bundle", "cached-memory", "cached-disk", "vendors"])
def source(request: pytest.FixtureRequest, known: Known, tmp_path: Path) -> Iterator[CollateralSource]:
    kind = request.param
    with ExitStack() as stack:
        if kind == "memory":
            yield _memory(known)
        elif kind == "directory":
            yield _directory(known, tmp_path)
        elif kind == "bundle":
            yield _bundle(known, tmp_path)
        elif kind.startswith("cached"):
            store = MemoryStore() if kind == "cached-memory" else DirectoryStore(tmp_path / "cache")
            yield CachedCollateral(_memory(known), store, known.anchors, FakeClock(NOW))
        else:
            service = stack.enter_context(VendorService(known.replies))
            fetcher = Fetcher(timeout=5, deadline=20)
            intel = IntelPcs(fetcher, base=service.url)
            yield VendorCollateral(intel=intel, amd=AmdKds(fetcher, base=service.url))


def test_what_it_gives_verifies_the_evidence(source: CollateralSource, known: Known) -> None:
    given = source.collateral(known.evidence)
    assert verify(known.evidence, given, known.anchors, NOW).claims.tee is known.evidence.tee
    assert source.collateral(known.evidence) == given


def test_of_a_platform_that_it_does_not_know_it_gives_nothing_that_verifies(
    source: CollateralSource, known: Known
) -> None:
    """Unavailable, or collateral that does not fit: a directory does not know whose it is."""
    if known.evidence.tee is TeeType.SEV_SNP:
        authority = SnpAuthority.create()
        body = build_report("Genoa", chip_id=b"\x01" * 64, reported_tcb=tcb("Genoa", snp=26))
        other, _ = authority.evidence("Genoa", body=body)
    else:
        intel = SyntheticIntel.sgx() if known.evidence.tee is TeeType.SGX else SyntheticIntel.tdx(4)
        intel.platform.fmspc = bytes.fromhex("00906ea10000")
        other = intel.evidence()
    with pytest.raises(CloisterError) as refusal:
        verify(other, source.collateral(other), known.anchors, NOW)
    if isinstance(refusal.value, Unavailable):
        assert refusal.value.code == "collateral-unavailable"


def test_evidence_that_is_none_is_invalid(source: CollateralSource, known: Known) -> None:
    if isinstance(source, DirectoryCollateral):
        pytest.skip("a directory does not look into the evidence")
    with pytest.raises(InvalidInput):
        source.collateral(Evidence(known.evidence.tee, b"no evidence"))


def test_nitro_and_simulation_need_none(source: CollateralSource) -> None:
    for tee in (TeeType.NITRO, TeeType.SIMULATION):
        assert source.collateral(Evidence(tee, b"")).files == {}
