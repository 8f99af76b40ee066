"""dcap-qvl's sentences are those that the table knows: each row is made to happen, past this project's own checks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cloister.attest.dcap import chain as paths
from cloister.attest.dcap.collateral import parse_collateral
from cloister.attest.dcap.parse import parse
from cloister.attest.dcap.reasons import _ROWS, classify
from cloister.attest.dcap.verify import _run_dcap
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import NOW, key_of

Change = Callable[[SyntheticIntel], object]


def _flag(bit: int) -> Change:
    return lambda i: i.report.__setitem__("td_attributes", int(i.report["td_attributes"]) ^ (1 << bit))


ROWS: dict[str, tuple[Change, str]] = {
    "Failed to decode TcbInfo": (lambda i: i.tcb_info.pop("tcbType"), "collateral-malformed"),
    "Signature is invalid for tcb_info": (
        lambda i: setattr(i, "tcb_info_signing_key", key_of("x")),
        "tcb-info-forged",
    ),
    "Failed to decode QeIdentity": (lambda i: i.qe_identity.pop("isvprodid"), "collateral-malformed"),
    "Unsupported QE Identity id/version": (lambda i: i.qe_identity.update(version=7), "qe-identity-version"),
    "Signature is invalid for qe_report": (
        lambda i: setattr(i, "qe_report_signing_key", key_of("x")),
        "qe-report-forged",
    ),
    "Invalid QE auth data length": (lambda i: setattr(i, "qe_authentication_data", b""), "qe-authentication-length"),
    "QE report hash mismatch": (lambda i: setattr(i, "qe_report_data", bytes(64)), "qe-key-not-bound"),
    "QE MRSIGNER mismatch": (lambda i: i.qe_report.update(mr_signer=bytes(32)), "qe-signer"),
    "QE report validation failed": (lambda i: i.qe_report.update(flags=0x17), "qe-debug"),
    "QE ISVPRODID mismatch": (lambda i: i.qe_report.update(product_id=9), "qe-product"),
    "QE MISCSELECT mismatch": (lambda i: i.qe_report.update(misc_select=9), "qe-misc-select"),
    "QE ATTRIBUTES mismatch": (lambda i: i.qe_report.update(flags=0x35), "qe-attributes"),
    "QE ISVSVN": (lambda i: i.qe_report.update(isv_svn=0), "qe-too-old"),
    "No TCB levels found in QE Identity": (lambda i: i.qe_identity.update(tcbLevels=[]), "qe-too-old"),
    "ISV enclave report signature is invalid": (
        lambda i: setattr(i, "quote_signing_key", key_of("x")),
        "quote-forged",
    ),
    "Fmspc mismatch": (lambda i: i.tcb_info.update(fmspc="00" * 6), "fmspc-mismatch"),
    "No matching TCB level found": (lambda i: i.tcb_info.update(tcbLevels=[]), "tcb-level-none"),
    "SGX component count mismatch": (
        lambda i: i.tcb_info["tcbLevels"][0]["tcb"]["sgxtcbcomponents"].pop(),
        "collateral-malformed",
    ),
    "TDX component count mismatch": (
        lambda i: i.tcb_info["tcbLevels"][0]["tcb"]["tdxtcbcomponents"].pop(),
        "collateral-malformed",
    ),
    "Unrecognized TCB status": (lambda i: i.set_status("TDRelaunchAdvised"), "tcb-status-unknown"),
    "TDX module TCB level check": (
        lambda i: i.report.update(tee_tcb_svn=bytes([6, 9, 3, *bytes(13)])),
        "tdx-module-level",
    ),
    "TDX module identity check": (
        lambda i: i.report.update(mr_signer_seam=b"\x01" * 48),
        "tdx-module-identity",
    ),
    "Failed to evaluate the current TDX TCB": (
        lambda i: i.report.update(tee_tcb_svn2=bytes([6, 9, 3, *bytes(13)])),
        "tdx-module-level",
    ),
    "TCB status is invalid: Revoked": (lambda i: i.set_status("Revoked"), "tcb-revoked"),
    "Debug mode is enabled": (_flag(0), "debug-enabled"),
    "TD profiling is enabled": (_flag(4), "td-under-debug"),
    "Reserved bits in TD attributes": (_flag(7), "td-reserved-attributes"),
    "TD migration is enabled": (_flag(29), "td-migratable"),
    "SERVTD_EXT is enabled": (_flag(17), "td-service-td"),
    "SEPT_VE_DISABLE is not enabled": (_flag(28), "td-sept-ve"),
    "Invalid MR service TD": (lambda i: i.report.update(mr_service_td=b"\x01" * 48), "td-service-td"),
}


@pytest.mark.parametrize("sentence", ROWS)
def test_the_library_says_what_the_table_expects(sentence: str) -> None:
    change, code = ROWS[sentence]
    intel = SyntheticIntel.tdx(5)
    change(intel)
    parts = parse_collateral(intel.collateral().files["collateral.json"])
    body = intel.quote()
    roots = (intel.root.certificate(),)
    path = paths.pck_path(paths.read_chain(parse(body).signature.pck_chain, "chain"), roots, NOW)
    failure = _run_dcap(body, parts, path, NOW).failure
    assert failure is not None
    assert failure.error.code == code


def test_every_row_of_the_table_is_made_to_happen() -> None:
    made = {*ROWS, "Signature is invalid for qe_identity"}  # its own case among the negative ones
    assert {row[0] for row in _ROWS} == made


def test_an_unknown_sentence_refuses_at_the_first_step() -> None:
    failure = classify("Verification failed: something new")
    assert (failure.step, failure.error.code, failure.error.family) == (
        "collateral-signatures",
        "dcap-refused",
        "refused",
    )
