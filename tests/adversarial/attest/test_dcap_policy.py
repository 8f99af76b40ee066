"""Genuine SGX and TDX evidence that a policy must refuse, each with its own code (A4, A5, A8, I3, I4, I7, I8)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cloister.attest.appraise import appraise
from cloister.attest.configuration import Configuration, configure
from cloister.attest.policy import Policy
from cloister.attest.policy_observed import policy_for
from cloister.attest.policy_toml import format_policy, parse_policy
from cloister.attest.types import Appraisal
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import NOW

Change = Callable[[SyntheticIntel], object]
MAKERS = {"sgx": SyntheticIntel.sgx, "tdx": lambda: SyntheticIntel.tdx(5)}
CONFIGURATION: Configuration = configure({"isolation": "strict"})


def policy_text(kind: str) -> str:
    intel = MAKERS[kind]()
    claims = verify(intel.evidence(), intel.collateral(), intel.anchors(), NOW).claims
    return format_policy(policy_for(claims, CONFIGURATION, name="lab"))


TEXTS = {kind: policy_text(kind) for kind in MAKERS}


def judge(intel: SyntheticIntel, policy: Policy, report_data: bytes | None = None) -> Appraisal:
    verified = verify(intel.evidence(), intel.collateral(), intel.anchors(), NOW)
    expected = MAKERS[intel.tee.value]().report["report_data"] if report_data is None else report_data
    assert isinstance(expected, bytes)
    return appraise(verified, configuration=CONFIGURATION, report_data=expected, policy=policy, now=NOW)


def edited(kind: str, name: str, value: str) -> Policy:
    lines = TEXTS[kind].splitlines()
    found = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ")]
    assert len(found) == 1
    lines[found[0]] = f"{name} = {value}"
    return parse_policy("\n".join(lines))


def refused(intel: SyntheticIntel, policy: Policy, report_data: bytes | None = None) -> str:
    with pytest.raises(CloisterError) as refusal:
        judge(intel, policy, report_data)
    return refusal.value.code


@pytest.mark.parametrize("kind", MAKERS)
def test_the_evidence_it_was_made_from_is_accepted(kind: str) -> None:
    assert judge(MAKERS[kind](), parse_policy(TEXTS[kind])).rule == "lab"


STATUSES = (
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("status", STATUSES)
def test_each_status_is_accepted_where_it_is_listed_and_nowhere_else(kind: str, status: str) -> None:
    """I4."""
    intel = MAKERS[kind]()
    intel.set_status(status)
    assert refused(intel, parse_policy(TEXTS[kind])) == "tcb-status-not-allowed"
    assert judge(intel, edited(kind, "tcb", f'["UpToDate", "{status}"]')).claims.tcb_status == status
    others = [other for other in STATUSES if other != status]
    assert refused(intel, edited(kind, "tcb", str(others).replace("'", '"'))) == "tcb-status-not-allowed"
    intel.set_status("Revoked")
    assert refused(intel, edited(kind, "tcb", '"any-tcb-status"')) == "tcb-revoked"


def test_a_td_to_be_relaunched_is_accepted_only_by_that_name() -> None:
    intel = SyntheticIntel.tdx(5)
    intel.report["tee_tcb_svn"] = bytes([3, 1, 3, *bytes(13)])
    assert refused(intel, edited("tdx", "tcb", '["UpToDate", "OutOfDate"]')) == "tcb-status-not-allowed"
    assert judge(intel, edited("tdx", "tcb", '["TDRelaunchAdvised"]'))


@pytest.mark.parametrize("kind", MAKERS)
def test_an_advisory_is_accepted_only_by_name(kind: str) -> None:
    intel = MAKERS[kind]()
    intel.set_status("UpToDate", "INTEL-SA-00615")
    assert refused(intel, parse_policy(TEXTS[kind])) == "advisory-not-allowed"
    assert judge(intel, edited(kind, "advisories", '["INTEL-SA-00615"]'))


def put(**fields: int | bytes) -> Change:
    return lambda intel: intel.report.update(fields)


ATTRIBUTES = 1 << 28
CLAIMS: dict[str, dict[str, tuple[Change, str]]] = {
    "sgx": {
        "A5 MRENCLAVE": (put(mr_enclave=b"x" * 32), "mrenclave-not-allowed"),
        "A5 MRENCLAVE of zeros": (put(mr_enclave=bytes(32)), "mrenclave-not-allowed"),
        "I8 MRSIGNER": (put(mr_signer=b"x" * 32), "mrsigner-not-allowed"),
        "I8 ISVSVN": (put(isv_svn=2), "security-version-too-low"),
        "I8 ISVPRODID": (put(product_id=8), "product-id-not-allowed"),
        "I8 MISCSELECT": (put(misc_select=1), "misc-select-not-allowed"),
        "I8 CONFIGID": (put(config_id=b"x" * 64), "config-id-not-allowed"),
        "I8 XFRM": (put(xfrm=3), "xfrm-not-allowed"),
        "I3 evaluation number": (
            lambda i: i.tcb_info.update(tcbEvaluationDataNumber=17),
            "tcb-evaluation-data-number-too-low",
        ),
    },
    "tdx": {
        "A5 MRTD": (put(mr_td=b"x" * 48), "mrtd-not-allowed"),
        "A5 RTMR0": (put(rtmr0=bytes(48)), "rtmr0-not-allowed"),
        "A5 RTMR1": (put(rtmr1=b"x" * 48), "rtmr1-not-allowed"),
        "A5 RTMR2": (put(rtmr2=b"x" * 48), "rtmr2-not-allowed"),
        "I7 RTMR3": (put(rtmr3=b"x" * 48), "rtmr3-not-allowed"),
        "I7 MRCONFIGID": (put(mr_config_id=b"x" * 48), "mr-config-id-not-allowed"),
        "I7 MROWNER": (put(mr_owner=b"x" * 48), "mr-owner-not-allowed"),
        "I7 MROWNERCONFIG": (put(mr_owner_config=b"x" * 48), "mr-owner-config-not-allowed"),
        "I7 XFAM": (put(xfam=3), "xfam-not-allowed"),
        "I7 PKS": (put(td_attributes=ATTRIBUTES | 1 << 30), "pks-not-allowed"),
        "I7 KL": (put(td_attributes=ATTRIBUTES | 1 << 31), "kl-not-allowed"),
        "I7 PERFMON": (put(td_attributes=ATTRIBUTES | 1 << 63), "perfmon-not-allowed"),
        "I3 evaluation number": (
            lambda i: i.qe_identity.update(tcbEvaluationDataNumber=17),
            "tcb-evaluation-data-number-too-low",
        ),
    },
}


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, cases in CLAIMS.items() for case in cases])
def test_a_claim_that_the_policy_does_not_list_is_refused(kind: str, case: str) -> None:
    change, code = CLAIMS[kind][case]
    intel = MAKERS[kind]()
    change(intel)
    assert refused(intel, parse_policy(TEXTS[kind])) == code


PLATFORM = {
    "allow_smt": ("smt-not-allowed", (False, False, True)),
    "allow_dynamic_platform": ("dynamic-platform-not-allowed", (True, False, False)),
    "allow_cached_keys": ("cached-keys-not-allowed", (False, True, False)),
}


@pytest.mark.parametrize("field", PLATFORM)
def test_what_the_pck_certificate_says_of_the_platform_is_for_the_policy(field: str) -> None:
    code, flags = PLATFORM[field]
    policy = edited("tdx", field, "false")
    intel = SyntheticIntel.tdx(5)
    intel.platform.configuration = flags
    assert refused(intel, policy) == code
    intel.platform.configuration = None  # not said: unknown is no
    assert refused(intel, policy) == code
    intel.platform.configuration = (False, False, False)
    assert judge(intel, policy)


@pytest.mark.parametrize("kind", MAKERS)
def test_another_platform_than_the_listed_one_is_refused(kind: str) -> None:
    intel = MAKERS[kind]()
    policy = edited(kind, "platforms", f'["{intel.platform.ppid.hex()}"]')
    assert judge(intel, policy)
    intel.platform.ppid = b"\x01" * 16
    assert refused(intel, policy) == "platform-not-allowed"


@pytest.mark.parametrize("kind", MAKERS)
def test_report_data_must_be_what_is_expected_in_full(kind: str) -> None:
    """A4, A8: another nonce or key, the right bytes in the wrong place, an expectation that could match anything."""
    intel, policy = MAKERS[kind](), parse_policy(TEXTS[kind])
    right = intel.report["report_data"]
    assert isinstance(right, bytes)
    for other in (bytes(64), right[32:] + right[:32], bytes([right[0] ^ 1]) + right[1:], right[:63] + b"\0"):
        assert refused(intel, policy, other) == "report-data-mismatch"
    for empty in (b"", right[:32]):
        with pytest.raises(InvalidInput):
            judge(intel, policy, empty)


@pytest.mark.parametrize(("kind", "name"), [("sgx", "mrenclave"), ("tdx", "mrtd"), ("tdx", "rtmr1")])
def test_an_empty_allow_list_refuses_everything(kind: str, name: str) -> None:
    """A5."""
    assert refused(MAKERS[kind](), edited(kind, name, "[]")) == f"{name}-not-allowed"
    with pytest.raises(InvalidInput):
        edited(kind, name, '["00"]')
    if not name.startswith("rtmr"):  # a register of zeros is one that nothing was measured into
        with pytest.raises(InvalidInput):
            edited(kind, name, f'["{"00" * (48 if kind == "tdx" else 32)}"]')


@pytest.mark.parametrize("kind", MAKERS)
def test_a_policy_for_the_other_tee_refuses(kind: str) -> None:
    """A6."""
    other = "tdx" if kind == "sgx" else "sgx"
    assert refused(MAKERS[kind](), parse_policy(TEXTS[other])) == "tee-not-allowed"
