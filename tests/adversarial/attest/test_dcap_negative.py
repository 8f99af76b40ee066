"""What must be refused of SGX and TDX evidence, each with its own code; every case is re-signed under a test root.

Names follow the list of negative cases: A (any TEE), I (Intel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cloister.attest.anchors import TrustAnchors, production_anchors
from cloister.attest.dcap.parse import parse
from cloister.attest.steps import Steps, Verdict
from cloister.attest.types import Evidence, TeeType, VerifiedEvidence
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import DAY, NOW, Crl, Node, key_of

Change = Callable[[SyntheticIntel], object]
MAKERS: dict[str, Callable[[], SyntheticIntel]] = {
    "sgx3": SyntheticIntel.sgx,
    "tdx4": lambda: SyntheticIntel.tdx(4),
    "tdx5": lambda: SyntheticIntel.tdx(5),
}
TDX = ("tdx4", "tdx5")


def check(intel: SyntheticIntel, now: float = NOW, anchors: TrustAnchors | None = None) -> VerifiedEvidence:
    return verify(intel.evidence(), intel.collateral(), anchors or intel.anchors(), now)


def code_of(intel: SyntheticIntel, now: float = NOW, anchors: TrustAnchors | None = None) -> str:
    with pytest.raises(CloisterError) as refusal:
        check(intel, now, anchors)
    return refusal.value.code


def put(name: str, value: object) -> Change:
    return lambda intel: setattr(intel, name, value)


def field(part: str, name: str, value: int | bytes) -> Change:
    return lambda intel: getattr(intel, part).__setitem__(name, value)


def node(part: str, name: str, value: object) -> Change:
    return lambda intel: setattr(getattr(intel, part), name, value)


def flag(name: str, bit: int) -> Change:
    """Flip one bit of an attribute of the workload."""
    return lambda intel: intel.report.__setitem__(name, int(intel.report[name]) ^ (1 << bit))


def both(*changes: Change) -> Change:
    return lambda intel: [change(intel) for change in changes]


@pytest.mark.parametrize("kind", MAKERS)
def test_the_unchanged_scenario_is_accepted(kind: str) -> None:
    verified = check(MAKERS[kind]())
    assert verified.claims.tcb_status == "UpToDate"
    assert verified.expires_at == NOW + 29 * DAY


# --- any quote --------------------------------------------------------------------------------------------------------

_OTHER = key_of("somebody else")
ANY: dict[str, tuple[Change, str]] = {
    # A3, at the level of each document: nothing but its own window is wrong
    "A3 root not yet": (node("root", "not_before", NOW + 1), "root-not-yet-valid"),
    "A3 root over": (node("root", "not_after", NOW - 1), "root-expired"),
    "A3 CA not yet": (node("pck_ca", "not_before", NOW + 1), "pck-ca-not-yet-valid"),
    "A3 CA over": (node("pck_ca", "not_after", NOW - 1), "pck-ca-expired"),
    "A3 leaf not yet": (node("pck", "not_before", NOW + 1), "pck-not-yet-valid"),
    "A3 leaf over": (node("pck", "not_after", NOW - 1), "pck-expired"),
    "A3 signer not yet": (node("tcb_signer", "not_before", NOW + 1), "tcb-signer-not-yet-valid"),
    "A3 signer over": (node("tcb_signer", "not_after", NOW - 1), "tcb-signer-expired"),
    "A3 root CRL not yet": (node("root_crl", "last_update", NOW + 1), "crl-not-yet-valid"),
    "A3 root CRL over": (node("root_crl", "next_update", NOW - 1), "crl-expired"),
    "A3 PCK CRL not yet": (node("pck_crl", "last_update", NOW + 1), "crl-not-yet-valid"),
    "A3 PCK CRL over": (node("pck_crl", "next_update", NOW - 1), "crl-expired"),
    "A3 TCB info not yet": (field("tcb_info", "issueDate", "2027-01-15T08:00:01Z"), "tcb-info-not-yet-valid"),  # type: ignore[arg-type]
    "A3 TCB info over": (field("tcb_info", "nextUpdate", "2027-01-15T07:59:59Z"), "tcb-info-expired"),  # type: ignore[arg-type]
    "A3 QE identity not yet": (field("qe_identity", "issueDate", "2027-01-15T08:00:01Z"), "qe-identity-not-yet-valid"),  # type: ignore[arg-type]
    "A3 QE identity over": (field("qe_identity", "nextUpdate", "2027-01-15T07:59:59Z"), "qe-identity-expired"),  # type: ignore[arg-type]
    # A7 and forged paths
    "A7 leaf forged": (node("pck", "signing_key", _OTHER), "chain-forged"),
    "A7 CA forged": (node("pck_ca", "signing_key", _OTHER), "chain-forged"),
    "A7 signer forged": (node("tcb_signer", "signing_key", _OTHER), "chain-forged"),
    "A7 CA is no CA": (both(node("pck_ca", "ca", False), node("pck_ca", "path_length", None)), "chain-not-a-ca"),
    "A7 leaf by another name": (node("pck", "common_name", "Intel SGX PCK Certificat"), "pck-name"),
    "A7 CA by another name": (node("pck_ca", "common_name", "Intel SGX PCK CA"), "pck-name"),
    # I2
    "I2 leaf revoked": (node("pck_crl", "revoked", (9, 3)), "pck-revoked"),
    "I2 CA revoked": (node("root_crl", "revoked", (2,)), "pck-ca-revoked"),
    "I2 signer revoked": (node("root_crl", "revoked", (4,)), "tcb-signer-revoked"),
    "I2 root revoked": (node("root_crl", "revoked", (1,)), "root-revoked"),
    "I2 root CRL forged": (node("root_crl", "signing_key", _OTHER), "crl-forged"),
    "I2 PCK CRL forged": (node("pck_crl", "signing_key", _OTHER), "crl-forged"),
    "I2 PCK CRL in the root's place": (lambda i: setattr(i, "root_crl", Crl(i.pck_ca)), "crl-wrong-issuer"),
    "I2 PCK CRL of the other CA": (lambda i: setattr(i, "pck_crl", Crl(_other_ca(i))), "crl-wrong-issuer"),
    "I2 root CRL in the PCK's place": (lambda i: setattr(i, "pck_crl", Crl(i.root)), "crl-wrong-issuer"),
    # I3
    "I3 other FMSPC": (field("tcb_info", "fmspc", "00A067110000"), "fmspc-mismatch"),  # type: ignore[arg-type]
    "I3 other PCE": (field("tcb_info", "pceId", "0100"), "pce-id-mismatch"),  # type: ignore[arg-type]
    "I3 old TCB info form": (
        lambda i: [i.tcb_info.pop("id"), i.tcb_info.__setitem__("version", 2)],
        "tcb-info-version",
    ),
    "I3 unknown TCB info form": (field("tcb_info", "version", 4), "tcb-info-version"),
    "I3 unknown QE identity form": (field("qe_identity", "version", 9), "qe-identity-version"),
    "I3 TCB info forged": (put("tcb_info_signing_key", _OTHER), "tcb-info-forged"),
    "I3 signed by the PCK key": (lambda i: setattr(i, "tcb_signer", i.pck), "tcb-signer-name"),
    "I3 a CA's name on collateral": (node("tcb_signer", "common_name", "Intel SGX PCK Platform CA"), "tcb-signer-name"),
    # I4
    "I4 revoked": (lambda i: i.set_status("Revoked"), "tcb-revoked"),
    "I4 no level": (lambda i: i.tcb_info.__setitem__("tcbLevels", []), "tcb-level-none"),
    "I4 unknown status": (lambda i: i.set_status("Splendid"), "collateral-malformed"),
    # I5
    "I5 QE signer": (field("qe_report", "mr_signer", bytes(32)), "qe-signer"),
    "I5 QE product": (field("qe_report", "product_id", 99), "qe-product"),
    "I5 QE debug": (field("qe_report", "flags", 0x17), "qe-debug"),
    "I5 QE attributes": (field("qe_report", "flags", 0x35), "qe-attributes"),
    "I5 QE MISCSELECT": (field("qe_report", "misc_select", 1), "qe-misc-select"),
    "I5 QE revoked": (field("qe_report", "isv_svn", 3), "tcb-revoked"),
    "I5 QE below every level": (field("qe_report", "isv_svn", 1), "qe-too-old"),
    "I5 key not hashed": (put("qe_report_data", bytes(64)), "qe-key-not-bound"),
    "I5 upper half of the QE's report data": (
        lambda i: setattr(i, "qe_report_data", _vouching(i) + bytes(31) + b"\x01"),
        "qe-report-data",
    ),
    "I5 other authentication data": (put("qe_authentication_data", bytes(31)), "qe-authentication-length"),
    "I5 QE report forged": (put("qe_report_signing_key", _OTHER), "qe-report-forged"),
    "I5 quote by another key": (put("quote_signing_key", _OTHER), "quote-forged"),
    # I6
    "I6 version 2": (field("header", "version", 2), "quote-version"),
    "I6 version 6": (field("header", "version", 6), "quote-version"),
    "I6 key type": (field("header", "attestation_key_type", 3), "quote-key-type"),
    "I6 vendor": (field("header", "qe_vendor_id", bytes(16)), "quote-vendor"),
    "I6 TEE type": (field("header", "tee_type", 0x82), "quote-tee-type"),
    "I6 inner certification type": (put("certification_type", 4), "quote-certification-type"),
    "I6 signature length +1": (put("signature_length_error", 1), "quote-truncated"),
    "A2 one byte behind": (put("padding", b"\x01"), "quote-trailing-bytes"),
    "A2 16 bytes behind": (put("padding", bytes(15) + b"\x01"), "quote-trailing-bytes"),
    "A2 4096 bytes behind": (put("padding", b"\xff" * 4096), "quote-trailing-bytes"),
    "A2 too many zeros": (put("padding", bytes(4097)), "quote-trailing-bytes"),
    # the PCK certificate
    "PCK without the extension": (lambda i: i.pck.extensions.clear(), "pck-extension"),
    "PCK components contradict CPUSVN": (
        lambda i: i.pck.extensions.update({"1.2.840.113741.1.13.1": lambda: _contradict(i)}),
        "pck-extension",
    ),
    "PCK of an unknown type": (node("platform", "sgx_type", 9), "pck-extension"),
    "chain is no PEM": (put("chain_text", b"no certificates here"), "chain-malformed"),
    "chain is empty": (put("chain_text", b""), "chain-malformed"),
    "chain with words in it": (lambda i: setattr(i, "chain_text", b"words\n" + _chain(i)), "chain-malformed"),
    "chain with a zero inside": (
        lambda i: setattr(i, "chain_text", i.pck.pem().encode() + b"\0" + _chain(i)),
        "chain-malformed",
    ),
    "chain of the leaf alone": (lambda i: setattr(i, "chain_text", i.pck.pem().encode()), "root-not-pinned"),
    "chain out of order": (
        lambda i: setattr(i, "chain_text", (i.pck_ca.pem() + i.pck.pem() + i.root.pem()).encode()),
        "pck-name",
    ),
}


def _other_ca(intel: SyntheticIntel) -> Node:
    """The PCK CA of the other kind, under the same root: its lists are genuine and say nothing of this leaf."""
    kind = {"Intel SGX PCK Platform CA": "Processor", "Intel SGX PCK Processor CA": "Platform"}[
        intel.pck_ca.common_name
    ]
    return replace(intel.pck_ca, common_name=f"Intel SGX PCK {kind} CA", serial=20, key_name="the other CA")


def _vouching(intel: SyntheticIntel) -> bytes:
    """What the quoting enclave must say of the attestation key: 32 bytes."""
    return parse(intel.quote()).signature.qe_report.report_data[:32]


def _chain(intel: SyntheticIntel) -> bytes:
    return (intel.pck.pem() + intel.pck_ca.pem() + intel.root.pem()).encode()


def _contradict(intel: SyntheticIntel) -> bytes:
    svns = intel.platform.cpu_svn
    assert intel.platform.extension().count(svns) == 1
    return intel.platform.extension().replace(svns, bytes([*svns[:15], 7]))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("case", ANY)
def test_refused_whatever_the_quote(kind: str, case: str) -> None:
    change, code = ANY[case]
    intel = MAKERS[kind]()
    change(intel)
    assert code_of(intel) == code


def test_every_code_of_a_refusal_is_reported_at_its_step() -> None:
    """Nothing after the failed step counts as passed, and exactly one step fails."""
    for change, code in ANY.values():
        intel = SyntheticIntel.tdx(4)
        change(intel)
        steps = Steps()
        with pytest.raises(CloisterError):
            verify(intel.evidence(), intel.collateral(), intel.anchors(), NOW, steps)
        verdicts = [step.verdict for step in steps.report]
        failed = verdicts.index(Verdict.FAIL)
        assert steps.report[failed].code == code
        assert all(verdict is Verdict.PASS for verdict in verdicts[:failed])
        assert all(verdict is Verdict.SKIP for verdict in verdicts[failed + 1 :])


# --- SGX --------------------------------------------------------------------------------------------------------------

SGX_ONLY: dict[str, tuple[Change, str]] = {
    "I1 debug": (flag("flags", 1), "debug-enabled"),
    "I8 not initialised": (flag("flags", 0), "sgx-not-initialised"),
    "I8 provisioning key": (flag("flags", 4), "sgx-provision-key"),
    "I8 launch key": (flag("flags", 5), "sgx-einittoken-key"),
    "reserved bytes": (field("report", "reserved4", b"\x01" + bytes(41)), "quote-reserved"),
    "I3 TDX TCB info": (field("tcb_info", "id", "TDX"), "tcb-info-tee"),  # type: ignore[arg-type]
    "I3 TD_QE identity": (field("qe_identity", "id", "TD_QE"), "qe-identity-tee"),  # type: ignore[arg-type]
    "I6 version 4": (field("header", "version", 4), "quote-tee-type"),
    "I6 version 5": (field("header", "version", 5), "quote-tee-type"),
    "I6 TEE type": (field("header", "tee_type", 0x81), "quote-tee-type"),
    "I6 signature length -1": (put("signature_length_error", -1), "quote-truncated"),
}


@pytest.mark.parametrize("case", SGX_ONLY)
def test_refused_of_an_enclave(case: str) -> None:
    change, code = SGX_ONLY[case]
    intel = SyntheticIntel.sgx()
    change(intel)
    assert code_of(intel) == code


def test_of_an_enclave_the_rest_is_for_the_policy() -> None:
    """I8: MISCSELECT, CONFIGID, ISVSVN, ISVPRODID, KSS and XFRM arrive as claims."""
    intel = SyntheticIntel.sgx()
    intel.report |= {"misc_select": 1, "config_id": b"c" * 64, "isv_svn": 9, "product_id": 4, "xfrm": 3, "flags": 0x85}
    claims = check(intel).claims
    assert (claims.security_version, claims.configuration_digest) == (9, b"c" * 64)
    names = ("misc_select", "config_id", "product_id", "xfrm", "attributes")
    assert [claims.specific[name] for name in names] == [1, b"c" * 64, 4, 3, 0x85]


# --- TDX --------------------------------------------------------------------------------------------------------------

TDX_ONLY: dict[str, tuple[Change, str]] = {
    "I1 debug": (flag("td_attributes", 0), "debug-enabled"),
    "I7 profiling": (flag("td_attributes", 4), "td-under-debug"),
    "I7 reserved bit 1": (flag("td_attributes", 1), "td-reserved-attributes"),
    "I7 reserved bit 7": (flag("td_attributes", 7), "td-reserved-attributes"),
    "I7 bit 18": (flag("td_attributes", 18), "td-reserved-attributes"),
    "I7 provisioning agent": (flag("td_attributes", 62), "td-reserved-attributes"),
    "I7 reserved bit 23": (flag("td_attributes", 23), "td-reserved-attributes"),
    "I7 reserved bit 32": (flag("td_attributes", 32), "td-reserved-attributes"),
    "I7 reserved bit 61": (flag("td_attributes", 61), "td-reserved-attributes"),
    "I7 migratable": (flag("td_attributes", 29), "td-migratable"),
    "I7 service TD extension": (flag("td_attributes", 17), "td-service-td"),
    "I7 pages taken away": (flag("td_attributes", 28), "td-sept-ve"),
    "I7 module signer": (field("report", "mr_signer_seam", b"\x01" * 48), "tdx-module-signer"),
    "I7 module attributes": (field("report", "seam_attributes", b"\x01" + bytes(7)), "tdx-module-attributes"),
    "module of an unknown version": (
        field("report", "tee_tcb_svn", bytes([6, 9, 3, *bytes(13)])),
        "tdx-module-level",
    ),
    "module below every level": (field("report", "tee_tcb_svn", bytes([1, 1, 3, *bytes(13)])), "tdx-module-level"),
    "module revoked": (lambda i: _module(i).__setitem__("tcbStatus", "Revoked"), "tcb-revoked"),
    "module identity of another signer": (
        lambda i: i.tcb_info["tdxModuleIdentities"][0].__setitem__("mrsigner", "11" * 48),
        "tdx-module-identity",
    ),
    "I3 SGX TCB info": (field("tcb_info", "id", "SGX"), "tcb-info-tee"),  # type: ignore[arg-type]
    "I3 QE identity": (field("qe_identity", "id", "QE"), "qe-identity-tee"),  # type: ignore[arg-type]
    "I6 version 3": (field("header", "version", 3), "quote-tee-type"),
    "I6 TEE type": (field("header", "tee_type", 0), "quote-tee-type"),
    "I6 outer certification type": (put("outer_certification_type", 5), "quote-certification-type"),
    "I6 signature length -1": (put("signature_length_error", -1), "quote-truncated"),
    "SGX component missing": (
        lambda i: i.tcb_info["tcbLevels"][0]["tcb"]["sgxtcbcomponents"].pop(),
        "collateral-malformed",
    ),
    "TDX component missing": (
        lambda i: i.tcb_info["tcbLevels"][0]["tcb"]["tdxtcbcomponents"].pop(),
        "collateral-malformed",
    ),
}


def _module(intel: SyntheticIntel) -> dict[str, object]:
    level: dict[str, object] = intel.tcb_info["tdxModuleIdentities"][0]["tcbLevels"][0]
    return level


@pytest.mark.parametrize("kind", TDX)
@pytest.mark.parametrize("case", TDX_ONLY)
def test_refused_of_a_td(kind: str, case: str) -> None:
    change, code = TDX_ONLY[case]
    intel = MAKERS[kind]()
    change(intel)
    assert code_of(intel) == code


V5_ONLY: dict[str, tuple[Change, str]] = {
    "I7 service TD": (field("report", "mr_service_td", b"\x01" * 48), "td-service-td"),
    "running module of an unknown version": (
        field("report", "tee_tcb_svn2", bytes([6, 9, 3, *bytes(13)])),
        "tdx-module-level",
    ),
    "body type 1": (both(put("body_type", 1), put("body_size", 648)), "quote-body-type"),
    "body size": (put("body_size", 584), "quote-length"),
}


@pytest.mark.parametrize("case", V5_ONLY)
def test_refused_of_a_version_5_quote(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, code = V5_ONLY[case]
    intel = SyntheticIntel.tdx(5)
    if case == "body type 1":  # not a body that the generator knows: patch the signed bytes
        body = bytearray(intel.quote())
        body[48:50] = b"\x01\x00"
        with pytest.raises(CloisterError) as refusal:
            verify(Evidence(TeeType.TDX, bytes(body)), intel.collateral(), intel.anchors(), NOW)
        assert refusal.value.code == code
        return
    change(intel)
    assert code_of(intel) == code


@pytest.mark.parametrize("body_type", [2, 3, 4])
def test_every_td_report_of_a_version_5_quote_verifies(body_type: int) -> None:
    claims = check(SyntheticIntel.tdx(5, body_type=body_type)).claims
    assert claims.specific["td_report"] == {2: "1.0", 3: "1.5", 4: "1.5ex"}[body_type]


def test_of_a_td_the_rest_is_for_the_policy() -> None:
    """I7: PERFMON, PKS, KL, XFAM, MRCONFIGID, MROWNER and RTMR3 arrive as claims."""
    intel = SyntheticIntel.tdx(4)
    attributes = (1 << 63) | (1 << 31) | (1 << 30) | (1 << 28)
    intel.report |= {"td_attributes": attributes, "xfam": 3, "mr_config_id": b"c" * 48, "mr_owner": b"o" * 48}
    intel.report["rtmr3"] = b"r" * 48
    claims = check(intel).claims
    assert claims.specific["td_attributes"] == attributes
    assert (claims.specific["xfam"], claims.specific["mr_config_id"]) == (3, b"c" * 48)
    assert claims.configuration_digest == b"c" * 48
    assert check(SyntheticIntel.tdx(4)).claims.configuration_digest == b""  # nothing was given
    assert (claims.specific["mr_owner"], claims.measurements["rtmr3"]) == (b"o" * 48, b"r" * 48)


# --- statuses, roots, labels, collateral ------------------------------------------------------------------------------

STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("status", STATUSES)
def test_every_other_status_is_a_claim(kind: str, status: str) -> None:
    """I4: the verifier reports it with its advisories; whether it will do is for the policy."""
    intel = MAKERS[kind]()
    intel.set_status(status, "INTEL-SA-00002", "INTEL-SA-00001")
    claims = check(intel).claims
    assert claims.tcb_status == status
    assert claims.advisories == ("INTEL-SA-00001", "INTEL-SA-00002")


def test_an_old_quoting_enclave_makes_the_platform_out_of_date() -> None:
    intel = SyntheticIntel.sgx()
    intel.qe_report["isv_svn"] = 7
    assert check(intel).claims.tcb_status == "OutOfDate"


def test_an_old_tdx_module_makes_the_platform_out_of_date() -> None:
    intel = SyntheticIntel.tdx(4)
    intel.report["tee_tcb_svn"] = bytes([3, 1, 3, *bytes(13)])
    assert check(intel).claims.tcb_status == "OutOfDate"


def test_a_td_that_was_launched_on_an_old_module_is_advised_to_relaunch() -> None:
    intel = SyntheticIntel.tdx(5)
    intel.report["tee_tcb_svn"] = bytes([3, 1, 3, *bytes(13)])
    assert check(intel).claims.tcb_status == "TDRelaunchAdvised"


def test_the_smaller_evaluation_number_is_the_claim() -> None:
    """I3: old collateral shows by its number; the policy's minimum refuses it."""
    intel = SyntheticIntel.sgx()
    intel.tcb_info["tcbEvaluationDataNumber"] = 11
    assert check(intel).claims.specific["tcb_evaluation_data_number"] == 11
    intel.qe_identity["tcbEvaluationDataNumber"] = 9
    assert check(intel).claims.specific["tcb_evaluation_data_number"] == 9


@pytest.mark.parametrize("kind", MAKERS)
def test_a_foreign_root_with_the_same_names_is_refused(kind: str) -> None:
    """A7; go-sev-guest 190: names prove nothing."""
    genuine, foreign = MAKERS[kind](), MAKERS[kind]()
    foreign.root.key_name = "foreign"
    check(foreign)
    assert code_of(foreign, anchors=genuine.anchors()) == "root-not-pinned"
    for part in (foreign.root, foreign.pck_ca, foreign.pck, foreign.tcb_signer):
        part.organisation = "Intel Corporation"
    assert code_of(foreign, anchors=production_anchors()) == "root-not-pinned"


def test_an_empty_set_of_anchors_refuses() -> None:
    assert code_of(SyntheticIntel.sgx(), anchors=TrustAnchors()) == "root-not-pinned"


def test_a_self_signed_chain_with_the_vendors_names_is_refused() -> None:
    intel = SyntheticIntel.sgx()
    anchors = intel.anchors()
    intel.pck_ca.issuer = None
    assert code_of(intel, anchors=anchors) == "chain-forged"
    intel.root = Node("Intel SGX Root CA", 1, ca=True, key_name="mine")
    assert code_of(intel, anchors=anchors) == "root-not-pinned"


def test_collateral_under_another_pinned_root_than_the_quote_is_refused() -> None:
    intel, other = SyntheticIntel.sgx(), SyntheticIntel.sgx()
    other.root.key_name = other.root.common_name = "Other Root"
    intel.tcb_signer.issuer = other.root
    parts = intel.collateral_parts()
    chain = intel.tcb_signer.pem() + other.root.pem()
    collateral = intel.collateral(tcb_info_issuer_chain=chain, qe_identity_issuer_chain=chain)
    anchors = TrustAnchors(intel_root_der=(intel.root.der(), other.root.der()))
    with pytest.raises(CloisterError, match="root-not-pinned"):
        verify(intel.evidence(), collateral, anchors, NOW)
    assert parts["tcb_info"] in collateral.files["collateral.json"].decode().replace('\\"', '"')


def test_a_re_issued_root_with_the_pinned_key_is_the_pinned_one() -> None:
    """Intel has re-issued its root certificate; the key and the name are what is pinned."""
    intel = SyntheticIntel.sgx()
    anchors = intel.anchors()
    intel.root.not_after += 5 * DAY
    intel.root.serial = 77
    assert check(intel, anchors=anchors).claims.tcb_status == "UpToDate"


def test_a_chain_may_leave_the_root_out() -> None:
    intel = SyntheticIntel.sgx()
    intel.chain_text = (intel.pck.pem() + intel.pck_ca.pem()).encode()
    assert check(intel).claims.tcb_status == "UpToDate"


@pytest.mark.parametrize("kind", MAKERS)
def test_evidence_of_another_tee_is_refused(kind: str) -> None:
    """A6."""
    intel = MAKERS[kind]()
    for tee in {TeeType.SGX, TeeType.TDX, TeeType.SIMULATION} - {intel.tee}:
        with pytest.raises(CloisterError):
            verify(Evidence(tee, intel.quote()), intel.collateral(), intel.anchors(), NOW)
