"""Intel collateral that must be refused, each fault with its own code; everything is signed under a test root."""

from __future__ import annotations

import json

import pytest

from cloister.attest.types import Collateral
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import NOW, Node

PARTS: dict[str, tuple[dict[str, str], str]] = {
    "root CRL missing": ({"root_ca_crl": ""}, "crl-missing"),
    "PCK CRL missing": ({"pck_crl": ""}, "crl-missing"),
    "CRL is no CRL": ({"pck_crl": "3000"}, "crl-malformed"),
    "signature is short": ({"tcb_info_signature": "00"}, "collateral-malformed"),
    "signature is zero": ({"tcb_info_signature": "00" * 64}, "tcb-info-forged"),
    "QE identity signature is another's": ({"qe_identity_signature": "11" * 64}, "qe-identity-forged"),
    "not hexadecimal": ({"root_ca_crl": "zz"}, "collateral-malformed"),
    "unknown field": ({"extra": "1"}, "collateral-malformed"),
    "TCB info is no JSON": ({"tcb_info": "{"}, "collateral-malformed"),
    "TCB info repeats a name": ({"tcb_info": '{"id":"SGX","id":"TDX"}'}, "collateral-malformed"),
    "TCB info is a list": ({"tcb_info": "[]"}, "collateral-malformed"),
    "TCB info nests": ({"tcb_info": "[" * 100_000}, "collateral-malformed"),
    "issuer chain is empty": ({"tcb_info_issuer_chain": ""}, "chain-malformed"),
}


@pytest.mark.parametrize("case", PARTS)
def test_broken_collateral_is_refused(case: str) -> None:
    changes, code = PARTS[case]
    intel = SyntheticIntel.tdx(4)
    with pytest.raises(CloisterError) as refusal:
        verify(intel.evidence(), intel.collateral(**changes), intel.anchors(), NOW)
    assert refusal.value.code == code


BYTES = ("tcb_info_signature", "qe_identity_signature", "root_ca_crl", "pck_crl")


def rewritten(intel: SyntheticIntel, name: str, value: object) -> Collateral:
    fields = json.loads(intel.collateral().files["collateral.json"])
    return Collateral({"collateral.json": json.dumps(fields | {name: value}).encode()})


def test_bytes_of_the_collateral_may_be_lists_of_numbers() -> None:
    """As dcap-qvl has written them; anything else in the list is refused."""
    intel = SyntheticIntel.tdx(4)
    for name in BYTES:
        data = list(bytes.fromhex(intel.collateral_parts()[name]))
        same = verify(intel.evidence(), rewritten(intel, name, data), intel.anchors(), NOW)
        assert same == verify(intel.evidence(), intel.collateral(), intel.anchors(), NOW)
        for wrong in ([*data[:-1], 256], [*data[:-1], -1], [*data[:-1], True], [*data[:-1], "0"], [data], {"0": 1}):
            with pytest.raises(CloisterError, match="collateral-malformed"):
                verify(intel.evidence(), rewritten(intel, name, wrong), intel.anchors(), NOW)
        with pytest.raises(CloisterError, match=r"crl-missing|collateral-malformed"):
            verify(intel.evidence(), rewritten(intel, name, []), intel.anchors(), NOW)


def test_collateral_that_is_absent_is_refused() -> None:
    """attestation-go 12: what could not be fetched was not checked, and that is no pass."""
    intel = SyntheticIntel.tdx(4)
    with pytest.raises(CloisterError, match="collateral-missing"):
        verify(intel.evidence(), Collateral(), intel.anchors(), NOW)


def test_a_status_changed_after_signing_is_refused() -> None:
    """I3: tampered tcbStatus."""
    intel = SyntheticIntel.sgx()
    intel.set_status("OutOfDate")
    text = intel.collateral_parts()["tcb_info"].replace('"OutOfDate"', '"UpToDate"', 1)
    with pytest.raises(CloisterError, match="tcb-info-forged"):
        verify(intel.evidence(), intel.collateral(tcb_info=text), intel.anchors(), NOW)


def test_collateral_signed_with_a_pck_key_is_refused() -> None:
    """Clause 3.12: a PCK key taken out of one machine must not be able to write TCB info."""
    intel = SyntheticIntel.sgx()
    intel.tcb_signer = Node("Intel SGX TCB Signing", 3, issuer=intel.pck_ca, key_name=intel.pck.common_name)
    chain = intel.tcb_signer.pem() + intel.pck_ca.pem() + intel.root.pem()
    with pytest.raises(CloisterError, match="chain-shape"):
        verify(intel.evidence(), intel.collateral(tcb_info_issuer_chain=chain), intel.anchors(), NOW)
