"""Each check of each TEE refuses with its own code, names both values, and yields to its own name only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloister.attest import claim_names as names
from cloister.attest.appraise import appraisal_report, appraise
from cloister.attest.configuration import configure
from cloister.attest.policy import Policy, Rule
from cloister.attest.policy_fields import FIELDS
from cloister.attest.steps import Verdict
from cloister.attest.types import Appraisal, TeeType
from cloister.base.errors import InvalidInput, Refused

SGX, TDX, SNP, NITRO, SIMULATION = TeeType.SGX, TeeType.TDX, TeeType.SEV_SNP, TeeType.NITRO, TeeType.SIMULATION


def run(case: Any, **changes: Any) -> Appraisal:
    arguments = {
        "configuration": case.configuration,
        "report_data": b"r" * 64,
        "policy": case.policy(),
        "now": case.now,
    } | changes
    return appraise(case.verified(), **arguments)


def refused(case: Any, **changes: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        run(case, **changes)
    return caught.value


def test_evidence_that_satisfies_every_check_is_accepted(case: Any) -> None:
    result = run(case)
    assert (result.rule, result.policy_digest) == ("main", case.policy().digest)
    assert result.expires_at == case.verified().expires_at
    assert bool(result.warnings) is (case.tee in (SIMULATION, SGX, TDX))  # Intel's rules here list a weak TCB status
    report = appraisal_report(
        case.verified(), configuration=case.configuration, report_data=b"r" * 64, policy=case.policy(), now=case.now
    )
    assert report.accepted_by == "main"
    assert not report.failures
    assert {step.verdict for step in report.steps} <= {Verdict.PASS, Verdict.SKIP}


# (TEE, what is changed in the claims, field of the rule, code, value of the field that accepts it after all)
CHECKS: list[tuple[TeeType, dict[str, Any], str, str, object]] = [
    (SGX, {"measurements": {"mrenclave": b"x" * 32}}, "mrenclave", "mrenclave-not-allowed", [b"e" * 32, b"x" * 32]),
    (SGX, {"specific": {names.SGX_CONFIG_ID: bytes(64)}}, "config_id", "config-id-not-allowed", "any-config-id"),
    (SGX, {"specific": {names.SGX_XFRM: 3}}, "xfrm", "xfrm-not-allowed", [3]),
    (SGX, {"specific": {names.SGX_MISC_SELECT: 1}}, "misc_select", "misc-select-not-allowed", [0, 1]),
    (SGX, {"claims": {"tcb_status": "OutOfDate"}}, "tcb", "tcb-status-not-allowed", ["OutOfDate"]),
    (SGX, {"claims": {"tcb_status": "OutOfDate"}}, "tcb", "tcb-status-not-allowed", "any-tcb-status"),
    (SGX, {"claims": {"advisories": ("INTEL-SA-1",)}}, "advisories", "advisory-not-allowed", ["INTEL-SA-1"]),
    (SGX, {"claims": {"platform_id": b""}}, "platforms", "platform-not-allowed", "any-platform"),
    (SGX, {"specific": {names.SMT: True}}, "allow_smt", "smt-not-allowed", True),
    (TDX, {"specific": {names.DYNAMIC_PLATFORM: True}}, "allow_dynamic_platform", "dynamic-platform-not-allowed", True),
    (TDX, {"specific": {names.CACHED_KEYS: None}}, "allow_cached_keys", "cached-keys-not-allowed", True),
    (
        TDX,
        {"specific": {names.TCB_EVALUATION_DATA_NUMBER: 16}},
        "minimum_tcb_evaluation_data_number",
        "tcb-evaluation-data-number-too-low",
        16,
    ),
    (TDX, {"measurements": {"mrtd": b"x" * 48}}, "mrtd", "mrtd-not-allowed", "any-mrtd"),
    (TDX, {"measurements": {"rtmr0": b"x" * 48}}, "rtmr0", "rtmr0-not-allowed", "any-rtmr0"),
    (TDX, {"measurements": {"rtmr1": b"x" * 48}}, "rtmr1", "rtmr1-not-allowed", "any-rtmr1"),
    (TDX, {"measurements": {"rtmr2": b"x" * 48}}, "rtmr2", "rtmr2-not-allowed", [b"x" * 48]),
    (TDX, {"measurements": {"rtmr3": b"x" * 48}}, "rtmr3", "rtmr3-not-allowed", [b"x" * 48]),
    (TDX, {"specific": {names.TD_CONFIG_ID: b"x" * 48}}, "mr_config_id", "mr-config-id-not-allowed", [b"x" * 48]),
    (TDX, {"specific": {names.TD_OWNER: b"x" * 48}}, "mr_owner", "mr-owner-not-allowed", "any-mr-owner"),
    (
        TDX,
        {"specific": {names.TD_OWNER_CONFIG: None}},
        "mr_owner_config",
        "mr-owner-config-not-allowed",
        "any-mr-owner-config",
    ),
    (TDX, {"specific": {names.TD_XFAM: 7}}, "xfam", "xfam-not-allowed", "any-xfam"),
    (TDX, {"specific": {names.TD_ATTRIBUTES: 1 << 30}}, "allow_pks", "pks-not-allowed", True),
    (TDX, {"specific": {names.TD_ATTRIBUTES: 1 << 31}}, "allow_kl", "kl-not-allowed", True),
    (TDX, {"specific": {names.TD_ATTRIBUTES: 1 << 63}}, "allow_perfmon", "perfmon-not-allowed", True),
    (SNP, {"specific": {names.SNP_PRODUCT: "Turin"}}, "products", "product-not-allowed", ["Milan", "Turin"]),
    (SNP, {"specific": {names.SNP_CPUID: "19-1-0"}}, "cpuids", "cpuid-not-allowed", ["19-1-0"]),
    (SNP, {"specific": {names.SNP_CPUID: None}}, "cpuids", "cpuid-not-allowed", "any-cpuid"),
    (
        SNP,
        {"specific": {names.SNP_LAUNCH_MITIGATIONS: 0x11}},
        "required_launch_mitigations",
        "launch-mitigations-missing",
        0x11,
    ),
    (
        SNP,
        {"specific": {names.SNP_LAUNCH_MITIGATIONS: None}},
        "required_launch_mitigations",
        "launch-mitigations-missing",
        "any-launch-mitigations",
    ),
    (
        SNP,
        {"specific": {names.SNP_CURRENT_MITIGATIONS: 0x1F}},
        "required_current_mitigations",
        "current-mitigations-missing",
        0x1,
    ),
    (SNP, {"measurements": {"measurement": b"x" * 48}}, "measurement", "measurement-not-allowed", "any-measurement"),
    *[
        (
            SNP,
            {"specific": {f"{kind}_tcb.{part}": value}},
            f"minimum_{kind}_tcb",
            f"{kind}-tcb-too-low",
            f"any-{kind}-tcb",
        )
        for kind, part, value in [
            ("reported", "snp", 23),
            ("committed", "boot_loader", 2),
            ("current", "microcode", 208),
            ("launch", "microcode", None),
        ]
    ],
    (SNP, {"specific": {names.SNP_VMPL: 1}}, "vmpl", "vmpl-not-allowed", [0, 1]),
    (SNP, {"specific": {names.SNP_VMPL: 0xFFFFFFFF}}, "vmpl", "vmpl-not-allowed", "any-vmpl"),
    (SNP, {"specific": {names.SNP_HOST_DATA: bytes(32)}}, "host_data", "host-data-not-allowed", [bytes(32)]),
    (
        SNP,
        {"specific": {names.SNP_ID_KEY_DIGEST: bytes(48)}},
        "id_key_digest",
        "id-key-digest-not-allowed",
        "any-id-key-digest",
    ),
    (
        SNP,
        {"specific": {names.SNP_AUTHOR_KEY_DIGEST: bytes(48)}},
        "author_key_digest",
        "author-key-digest-not-allowed",
        [bytes(48)],
    ),
    (SNP, {"specific": {names.SNP_FAMILY_ID: bytes(16)}}, "family_id", "family-id-not-allowed", [bytes(16)]),
    (SNP, {"specific": {names.SNP_IMAGE_ID: bytes(16)}}, "image_id", "image-id-not-allowed", "any-image-id"),
    (SNP, {"claims": {"security_version": 3}}, "minimum_security_version", "security-version-too-low", 3),
    (SNP, {"specific": {names.SNP_SIGNER: "vlek"}}, "vlek_csp_ids", "vlek-not-allowed", "any-vlek"),
    (SNP, {"specific": {names.SNP_SIGNER: None}}, "vlek_csp_ids", "vlek-not-allowed", "any-vlek"),
    (
        SNP,
        {"specific": {names.SNP_SIGNER: "vlek", names.SNP_CSP_ID: "aws"}},
        "vlek_csp_ids",
        "vlek-not-allowed",
        ["aws"],
    ),
    (SNP, {"claims": {"platform_id": b"x" * 64}}, "platforms", "platform-not-allowed", [b"x" * 64]),
    (SNP, {"specific": {names.SMT: True}}, "allow_smt", "smt-not-allowed", True),
    (SNP, {"specific": {names.SNP_POLICY_SMT: True}}, "allow_smt", "smt-not-allowed", True),
    (
        SNP,
        {"specific": {names.SNP_POLICY_SINGLE_SOCKET: False}},
        "allow_multiple_sockets",
        "multiple-sockets-not-allowed",
        True,
    ),
    (SNP, {"specific": {names.SNP_POLICY_CXL: True}}, "allow_cxl", "cxl-not-allowed", True),
    (
        SNP,
        {"specific": {names.SNP_POLICY_CIPHERTEXT_HIDING: False}},
        "allow_visible_ciphertext",
        "visible-ciphertext-not-allowed",
        True,
    ),
    (
        SNP,
        {"specific": {names.SNP_ALIAS_CHECK_COMPLETE: False}},
        "allow_incomplete_alias_check",
        "alias-check-incomplete",
        True,
    ),
    (
        SNP,
        {"specific": {names.SNP_PROVISIONAL_FIRMWARE: True}},
        "allow_provisional_firmware",
        "provisional-firmware-not-allowed",
        True,
    ),
    (
        SNP,
        {"specific": {names.SNP_REVOCATION_CHECKED: False}},
        "allow_unchecked_revocation",
        "revocation-unchecked",
        True,
    ),
    *[
        (NITRO, {"measurements": {f"pcr{index}": b"x" * 48}}, f"pcr{index}", f"pcr{index}-not-allowed", [b"x" * 48])
        for index in (0, 1, 2, 8)
    ],
    (NITRO, {"measurements": {"pcr8": None}}, "pcr8", "pcr8-not-allowed", ...),
    (NITRO, {"measurements": {"pcr4": b"x" * 48}}, "other_pcrs", "other-pcrs-not-allowed", "any-other-pcr"),
    (NITRO, {"specific": {names.NITRO_TIMESTAMP_MS: 1_700_000_000_000}}, "maximum_age_s", "evidence-too-old", 2**30),
    (SIMULATION, {"measurements": {"measurement": b"x" * 48}}, "measurement", "measurement-not-allowed", [b"x" * 48]),
    (SIMULATION, {"claims": {"security_version": 0}}, "minimum_security_version", "security-version-too-low", 0),
    (SIMULATION, {"specific": {names.SIMULATION_ISSUED_AT: None}}, "maximum_age_s", "evidence-too-old", "any-age"),
]


@pytest.mark.parametrize(("tee", "change", "field", "code", "accepting"), CHECKS, ids=lambda item: str(item)[:40])
def test_a_claim_that_fails_is_named(
    case_of: Any, tee: TeeType, change: dict[str, Any], field: str, code: str, accepting: object
) -> None:
    case = case_of(tee)
    case.claims |= change.get("claims", {})
    for part in ("measurements", "specific"):
        for name, value in change.get(part, {}).items():
            if value is None:
                del getattr(case, part)[name]
            else:
                getattr(case, part)[name] = value
    error = refused(case)
    assert error.code == code
    assert (error.details["claim"], error.details["rule"]) == (field, "main")
    assert error.details["expected"]
    assert error.details["actual"]
    if accepting is ...:
        del case.rule[field]
    else:
        case.rule[field] = accepting
    assert run(case).rule == "main"


def test_every_field_of_every_rule_has_such_a_test() -> None:
    shared = {"configuration", "isolation", "insecure_debug"}
    signer = {"mrsigner", "product_id"}
    tested: dict[TeeType, set[str]] = {tee: {*shared} for tee in TeeType}
    for tee, _, name, _, _ in CHECKS:
        tested[tee].add(name)
    everywhere = set.union(*tested.values())
    for tee, fields in FIELDS.items():
        for field in fields:
            pcr = tee is NITRO and field.name.startswith("pcr")
            assert pcr or field.name in everywhere | signer, (tee, field.name)


def test_debug_is_refused_unless_the_rule_says_insecure_debug(case: Any) -> None:
    case.claims["debug"] = True
    assert refused(case).code == "debug-not-allowed"
    case.rule["insecure_debug"] = True
    assert any("insecure_debug" in warning for warning in run(case).warnings)


def test_configuration_and_isolation(case: Any) -> None:
    other = configure({"isolation": "shared"})
    case.rule |= {"configuration": [other.digest]}
    assert refused(case).code == "configuration-not-allowed"
    case.rule |= {"configuration": "any-configuration", "isolation": ["strict"]}
    assert refused(case).code == "isolation-not-allowed"
    case.rule |= {"isolation": "any-isolation"}
    run(case)
    if case.tee is SIMULATION:
        assert refused(case, configuration=other).code == "configuration-mismatch"


def test_the_signer_is_looked_at_only_where_the_enclave_is_left_out(case_of: Any) -> None:
    case = case_of(SGX)
    signed = {"mrenclave": "any-mrenclave", "mrsigner": [b"s" * 32], "product_id": [1], "minimum_security_version": 4}
    case.rule |= signed
    assert "any-mrenclave: code that nobody reviewed is accepted" in run(case).warnings
    for name, value, code in [
        ("mrsigner", [b"x" * 32], "mrsigner-not-allowed"),
        ("product_id", [2], "product-id-not-allowed"),
        ("minimum_security_version", 5, "security-version-too-low"),
    ]:
        case.rule |= signed | {name: value}
        assert refused(case).code == code
        del case.rule[name]
        with pytest.raises(InvalidInput, match="policy-field-missing"):
            case.policy()


def test_an_empty_allow_list_refuses_everything(case: Any) -> None:
    for name, value in list(case.rule.items()):
        if isinstance(value, list) and name != "advisories":
            narrowed = case.rule | {name: []}
            policy = Policy((Rule.of("main", case.tee, narrowed),))
            assert refused(case, policy=policy).details["claim"] == name
    assert refused(case, policy=Policy(())).code == "policy-empty"


@pytest.mark.parametrize("actual", [b"", b"r" * 63, b"r" * 63 + b"x", b"r" * 65, bytes(64)])
def test_report_data_must_be_equal(case: Any, actual: bytes) -> None:
    case.report_data = actual
    error = refused(case)
    assert (error.code, error.details["rule"]) == ("report-data-mismatch", "")


def test_an_expectation_that_anything_meets_is_a_bug_of_the_caller(case: Any) -> None:
    case.report_data = b""
    with pytest.raises(InvalidInput, match="report-data-length"):
        run(case, report_data=b"")


def test_evidence_is_not_appraised_outside_its_time(case: Any) -> None:
    assert refused(case, now=case.now + 1001).code == "evidence-expired"
    assert refused(case, now=case.now - 2).code == "evidence-expired"


def test_parts_that_nobody_understands_are_refused(case: Any) -> None:
    verified = replace(case.verified(), parts=(case.verified(),))
    with pytest.raises(Refused, match="evidence-parts-unexpected"):
        appraise(verified, configuration=case.configuration, report_data=b"r" * 64, policy=case.policy(), now=case.now)


def test_a_rule_accepts_no_other_tee(case: Any, case_of: Any) -> None:
    for tee in TeeType:
        if tee is not case.tee:
            assert refused(case, policy=case_of(tee).policy()).code == "tee-not-allowed"


def test_one_rule_of_several_is_enough_and_the_nearest_is_named(case_of: Any) -> None:
    case, other = case_of(SNP), case_of(TDX)
    far = Rule.of("far", SNP, case.rule | {"measurement": [b"x" * 48], "vmpl": [3]})
    near = Rule.of("near", SNP, case.rule | {"vmpl": [3]})
    foreign = other.policy("foreign").rules[0]
    good = Rule.of("good", SNP, case.rule)
    assert run(case, policy=Policy((foreign, far, good, near))).rule == "good"
    error = refused(case, policy=Policy((foreign, far, near)))
    assert (error.code, error.details["rule"]) == ("vmpl-not-allowed", "near")
    report = appraisal_report(
        case.verified(),
        configuration=case.configuration,
        report_data=None,
        policy=Policy((foreign, far, near)),
        now=case.now,
    )
    assert [finding.claim for finding in report.failures] == ["vmpl"]
    assert {step.name for step in report.steps if step.verdict is Verdict.FAIL} == {
        "foreign/tee",
        "far/measurement",
        "far/vmpl",
        "near/vmpl",
    }
    assert [step.name for step in report.steps if step.verdict is Verdict.SKIP] == ["report-data"]


def test_without_a_configuration_nothing_that_asks_for_one_passes(case: Any) -> None:
    report = appraisal_report(
        case.verified(), configuration=None, report_data=b"r" * 64, policy=case.policy(), now=case.now
    )
    assert {"configuration", "isolation"} <= {finding.claim for finding in report.failures}
