"""Vendors' services that are away, slow, wrong, oversized or malicious: bounded, and one of our errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cloister.adapters.collateral.amd_kds import AmdKds
from cloister.adapters.collateral.fetch import Fetcher
from cloister.adapters.collateral.intel_pcs import INTEL, INTEL_ROOT_CRL, IntelPcs
from cloister.attest.anchors import production_anchors
from cloister.attest.dcap.collateral import parse_collateral
from cloister.attest.snp.certificates import Signer
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.limits import MAX_COLLATERAL
from cloister.testing import vendor_service as vendors
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_snp import SnpAuthority, build_report
from cloister.testing.vendor_service import Reply, VendorService, pcs_replies

INTEL_MADE = SyntheticIntel.sgx()
EVIDENCE = INTEL_MADE.evidence()
REPLIES = pcs_replies(INTEL_MADE.collateral(), tee="sgx", fmspc=INTEL_MADE.platform.fmspc.hex(), ca="processor")
TCB, IDENTITY, PCK_CRL, ROOT_CRL = REPLIES


@contextmanager
def pcs(changes: dict[str, Reply], *, timeout: float = 5, deadline: float = 20) -> Iterator[IntelPcs]:
    with VendorService({**REPLIES, **changes}) as service:
        yield IntelPcs(Fetcher(timeout=timeout, deadline=deadline), base=service.url)


def test_the_exact_signed_text_is_kept() -> None:
    """TCB info is signed as text: spaces, order and unknown fields must come through."""
    parts = json.loads(INTEL_MADE.collateral().files["collateral.json"])
    body = f' {{ "signature" : "{"ab" * 64}" , "tcbInfo" : {parts["tcb_info"][:-1]} , "new": [1e3, "}}"] }} }} \n'
    reply = Reply(body.encode(), headers=REPLIES[TCB].headers)
    with pcs({TCB: reply}) as source:
        given = parse_collateral(source.collateral(EVIDENCE).files["collateral.json"])
    assert given.tcb_info_text == parts["tcb_info"][:-1] + ' , "new": [1e3, "}"] }'
    assert given.tcb_info_signature == b"\xab" * 64


def test_a_pccs_that_writes_lists_in_hexadecimal_is_understood() -> None:
    replies = pcs_replies(
        INTEL_MADE.collateral(), tee="sgx", fmspc=INTEL_MADE.platform.fmspc.hex(), ca="processor", hexadecimal=True
    )
    with pcs(replies) as source:
        given = source.collateral(EVIDENCE)
    assert verify(EVIDENCE, given, INTEL_MADE.anchors(), 1_800_000_000).claims.tcb_status == "UpToDate"


def test_answers_recorded_from_intel_are_put_together(evidence_dir: Path) -> None:
    """Replayed from the recorded collateral: what comes out verifies real evidence under the real root."""
    for name, tee, ca in (("sgx/v3-processor-ca", "sgx", "processor"), ("tdx/v4-uptodate", "tdx", "platform")):
        folder = evidence_dir / name
        meta = json.loads((folder / "meta.json").read_text())
        recorded = Collateral({"collateral.json": (folder / "collateral.json").read_bytes()})
        evidence = Evidence(TeeType(tee), (folder / "quote.bin").read_bytes())
        with VendorService(pcs_replies(recorded, tee=tee, fmspc=meta["fmspc"], ca=ca)) as service:
            given = IntelPcs(Fetcher(), base=f"{service.url}/").collateral(evidence)
        verified = verify(evidence, given, production_anchors(), meta["verify_at"])
        assert verified.claims.tcb_status in meta["expect"]


def test_intels_own_service_has_its_root_list_elsewhere() -> None:
    assert IntelPcs(Fetcher())._root_crl == INTEL_ROOT_CRL
    assert IntelPcs(Fetcher(), base=INTEL + "/")._root_crl == INTEL_ROOT_CRL


UNAVAILABLE = {
    "status 404": {PCK_CRL: Reply(status=404)},
    "status 500": {TCB: Reply(status=500)},
    "cut short": {IDENTITY: Reply(act=vendors.cut_short)},
    "no HTTP": {TCB: Reply(act=vendors.no_http)},
}


@pytest.mark.parametrize("case", UNAVAILABLE)
def test_a_service_that_fails_is_unavailable(case: str) -> None:
    with pcs(UNAVAILABLE[case]) as source, pytest.raises(Unavailable, match="collateral-unavailable"):
        source.collateral(EVIDENCE)


SLOW = {
    "hangs": {TCB: Reply(act=vendors.hang)},
    "trickles a header": {IDENTITY: Reply(act=vendors.trickle_head)},
    "trickles a body": {ROOT_CRL: Reply(act=vendors.trickle_body)},
}


@pytest.mark.parametrize("case", SLOW)
def test_a_slow_service_is_given_up_at_the_deadline(case: str) -> None:
    with pcs(SLOW[case], timeout=5, deadline=0.3) as source, pytest.raises(Unavailable, match="deadline"):
        source.collateral(EVIDENCE)


def test_a_silent_service_is_given_up_at_the_timeout() -> None:
    with pcs({TCB: Reply(act=vendors.hang)}, timeout=0.1) as source, pytest.raises(Unavailable):
        source.collateral(EVIDENCE)


def test_a_service_that_is_away_is_unavailable() -> None:
    with VendorService({}) as service:
        url = service.url
    with pytest.raises(Unavailable, match="collateral-unavailable"):
        IntelPcs(Fetcher(timeout=1), base=url).collateral(EVIDENCE)


def test_retry_after_is_passed_on() -> None:
    reply = Reply(status=429, headers={"retry-after": "7"})
    with pcs({TCB: reply}) as source, pytest.raises(Unavailable) as refusal:
        source.collateral(EVIDENCE)
    assert refusal.value.retry_after == 7


CHAIN = REPLIES[TCB].headers
MALFORMED = {
    "oversized": {TCB: Reply(bytes(MAX_COLLATERAL + 1), headers=CHAIN)},
    "flood": {ROOT_CRL: Reply(act=vendors.flood)},
    "redirect to a file": {TCB: Reply(status=302, headers={"location": "file:///etc/passwd"})},
    "redirect to another host": {TCB: Reply(status=307, headers={"location": "http://169.254.169.254/"})},
    "not modified": {TCB: Reply(status=304)},
    "compressed": {TCB: Reply(REPLIES[TCB].body, headers={**CHAIN, "content-encoding": "gzip"})},
    "no chain": {TCB: Reply(REPLIES[TCB].body)},
    "chain is no text": {TCB: Reply(REPLIES[TCB].body, headers={"TCB-Info-Issuer-Chain": "%FF%FE"})},
    "no JSON": {TCB: Reply(b"<html>", headers=CHAIN)},
    "nested": {TCB: Reply(b"[" * 100_000, headers=CHAIN)},
    "no UTF-8": {TCB: Reply(b"\xff", headers=CHAIN)},
    "no signature": {TCB: Reply(b'{"tcbInfo":{}}', headers=CHAIN)},
    "signature is a number": {TCB: Reply(b'{"tcbInfo":{},"signature":1}', headers=CHAIN)},
    "signature is no hexadecimal": {TCB: Reply(b'{"tcbInfo":{},"signature":"zz"}', headers=CHAIN)},
    "name twice": {TCB: Reply(b'{"tcbInfo":{},"tcbInfo":{},"signature":""}', headers=CHAIN)},
    "more behind": {TCB: Reply(REPLIES[TCB].body + b"{}", headers=CHAIN)},
    "empty": {TCB: Reply(b"", headers=CHAIN)},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malicious_answer_is_invalid(case: str) -> None:
    with pcs(MALFORMED[case]) as source, pytest.raises(InvalidInput, match="collateral-malformed"):
        source.collateral(EVIDENCE)


def test_a_wrong_answer_is_refused_by_verification() -> None:
    """A service cannot make evidence pass: here it answers for another Intel."""
    other = SyntheticIntel.sgx()
    other.root.key_name = "other"
    replies = pcs_replies(other.collateral(), tee="sgx", fmspc=other.platform.fmspc.hex(), ca="processor")
    with pcs(replies) as source:
        given = source.collateral(EVIDENCE)
    with pytest.raises(CloisterError):
        verify(EVIDENCE, given, INTEL_MADE.anchors(), 1_800_000_000)


def test_an_address_that_is_none_is_invalid() -> None:
    for base in ("", "ftp://intel.example", "file:///etc", "https://"):
        with pytest.raises(InvalidInput, match="collateral-service"):
            IntelPcs(Fetcher(), base=base)
        with pytest.raises(InvalidInput, match="collateral-service"):
            AmdKds(Fetcher(), base=base)
    with pytest.raises(InvalidInput, match="collateral-service"):
        IntelPcs(Fetcher(), update="late")


def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for HTTPS_PROXY, which takes a TLS server to show: the request goes to the proxy, with the whole address."""
    with VendorService({}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(Unavailable):
            IntelPcs(Fetcher(timeout=5), base="http://pccs.example").collateral(EVIDENCE)
        assert proxy.asked[0].startswith("http://pccs.example/sgx/certification/v4/tcb?fmspc=")


def test_a_tls_request_asks_the_proxy_of_the_environment_for_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with Fetcher().session() as connection:
        mounts = connection._client._mounts
        assert any(pattern.matches(httpx.URL("https://pccs.example")) for pattern in mounts)


# --- AMD --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> SnpAuthority:
    return SnpAuthority.create()


def test_a_report_that_does_not_name_its_product_is_looked_for_in_all(authority: SnpAuthority) -> None:
    """Version 2 reports have no CPUID: Milan is asked first, then Genoa."""
    evidence, collateral = authority.evidence("Genoa", version=2)
    vcek = f"/vcek/v1/Genoa/{'5c' * 64}?blSPL=04&teeSPL=02&snpSPL=27&ucodeSPL=219"
    replies = {
        vcek: Reply(collateral.files["vek.der"]),
        "/vcek/v1/Genoa/cert_chain": Reply(collateral.files["ask_ark.pem"]),
        "/vcek/v1/Genoa/crl": Reply(authority.crl("Genoa")),
    }
    with VendorService(replies) as service:
        given = AmdKds(Fetcher(timeout=5), base=service.url).collateral(evidence)
        assert [path.split("/")[3] for path in service.asked] == ["Milan", "Genoa", "Genoa", "Genoa"]
    assert given.files["vek.der"] == collateral.files["vek.der"]


@pytest.mark.parametrize("signer", Signer)
def test_a_certificate_that_came_with_the_evidence_names_the_product(authority: SnpAuthority, signer: Signer) -> None:
    evidence, collateral = authority.evidence("Genoa", signer, version=2)
    carried = Evidence(evidence.tee, evidence.body, {"vek.der": collateral.files["vek.der"]})
    folder = f"/{signer.label}/v1/Genoa"
    replies = {
        f"{folder}/cert_chain": Reply(collateral.files["ask_ark.pem"]),
        f"{folder}/crl": Reply(authority.crl("Genoa")),
    }
    with VendorService(replies) as service:
        source = AmdKds(Fetcher(timeout=5), base=service.url)
        assert source.collateral(carried).files["vek.der"] == collateral.files["vek.der"]
        with pytest.raises(InvalidInput, match="collateral-malformed"):
            source.collateral(Evidence(evidence.tee, evidence.body, {"vek.der": b"no certificate"}))


def test_a_vlek_that_did_not_come_with_the_evidence_cannot_be_fetched(authority: SnpAuthority) -> None:
    evidence, _ = authority.evidence("Milan", Signer.VLEK)
    with VendorService({}) as service, pytest.raises(Unavailable, match="VLEK"):
        AmdKds(Fetcher(timeout=5), base=service.url).collateral(evidence)


def test_a_hidden_chip_cannot_be_asked_for(authority: SnpAuthority) -> None:
    evidence, _ = authority.evidence("Milan", body=build_report("Milan", chip_id=bytes(64)))
    with VendorService({}) as service, pytest.raises(Unavailable, match="hides its chip"):
        AmdKds(Fetcher(timeout=5), base=service.url).collateral(evidence)


def test_each_vendor_refuses_the_others_evidence(authority: SnpAuthority) -> None:
    evidence, _ = authority.evidence("Milan")
    with pytest.raises(InvalidInput, match="collateral-other-tee"):
        IntelPcs(Fetcher()).collateral(evidence)
    with pytest.raises(InvalidInput, match="collateral-other-tee"):
        AmdKds(Fetcher()).collateral(EVIDENCE)
