"""Policies: TOML and CBOR say the same; every mistake is named with its place; nothing is left out unsaid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.attest.appraise import appraise
from cloister.attest.policy import Policy, Rule
from cloister.attest.policy_fields import FIELDS
from cloister.attest.policy_kinds import LeftOut
from cloister.attest.policy_observed import policy_for
from cloister.attest.policy_toml import format_policy, parse_policy
from cloister.attest.policy_words import explain_policy
from cloister.attest.types import TeeType
from cloister.base.errors import InvalidInput, Refused
from cloister.wire import cbor

TEXT = """
version = 1
co_tenancy = true

[rule.lab]
tee = "insecure-simulation"
measurement = ["{m}"]
minimum_security_version = 0
maximum_age_s = 600
configuration = "any-configuration"
isolation = ["strict", "per-user"]
""".format(m="ab" * 48)


def refused(text: str) -> tuple[str, str]:
    with pytest.raises(InvalidInput) as caught:
        parse_policy(text)
    return caught.value.code, caught.value.details.get("place", "")


def test_text_encoding_and_value_say_the_same(case: Any) -> None:
    policy = Policy((*case.policy("main").rules, *case.policy("spare").rules), co_tenancy=True)
    assert parse_policy(format_policy(policy)) == policy
    assert Policy.decode(policy.encode()) == policy
    assert Policy.decode(policy.encode()).digest == policy.digest
    assert len(policy.digest) == 32


def test_a_policy_is_read() -> None:
    policy = parse_policy(TEXT)
    rule = policy.rules[0]
    assert (rule.name, rule.tee, policy.co_tenancy) == ("lab", TeeType.SIMULATION, True)
    assert rule.values["measurement"] == (b"\xab" * 48,)
    assert rule.values["configuration"] == LeftOut("any-configuration")
    assert rule.values["isolation"] == ("per-user", "strict")
    assert rule.values["insecure_debug"] is False


def test_order_and_repetition_in_lists_do_not_change_the_digest() -> None:
    other = TEXT.replace('["strict", "per-user"]', '["per-user", "strict", "strict"]')
    assert parse_policy(other).digest == parse_policy(TEXT).digest
    assert parse_policy(TEXT.replace("600", "601")).digest != parse_policy(TEXT).digest


@pytest.mark.parametrize(
    ("old", "new", "code", "place"),
    [
        ("version = 1", "version = 2", "policy-version", "version"),
        ("version = 1", "", "policy-version", "version"),
        ("version = 1", "version = true", "policy-version", "version"),
        ("co_tenancy = true", "co_tenancy = 1", "policy-field-type", "co_tenancy"),
        ("co_tenancy = true", "cotenancy = true", "policy-unknown-field", "cotenancy"),
        ("[rule.lab]", "[rules.lab]", "policy-unknown-field", "rules"),
        ("[rule.lab]", '[rule."Lab 1"]', "policy-name", "rule.Lab 1"),
        ("[rule.lab]", "[[rule.lab]]", "policy-field-type", "rule.lab"),
        ('tee = "insecure-simulation"', "", "policy-field-missing", "rule.lab.tee"),
        ('"insecure-simulation"', '"sgx2"', "policy-tee", "rule.lab.tee"),
        ("measurement", "mesurement", "policy-unknown-field", "rule.lab.mesurement"),
        ("maximum_age_s = 600", "", "policy-field-missing", "rule.lab.maximum_age_s"),
        ("= 600", "= 600.5", "policy-field-type", "rule.lab.maximum_age_s"),
        ("= 600", "= -1", "policy-field-range", "rule.lab.maximum_age_s"),
        ("= 600", "= true", "policy-field-type", "rule.lab.maximum_age_s"),
        ("= 600", '= "any-time"', "policy-left-out", "rule.lab.maximum_age_s"),
        ('"any-configuration"', '"any-configurations"', "policy-left-out", "rule.lab.configuration"),
        ('"any-configuration"', '"abcd"', "policy-field-type", "rule.lab.configuration"),
        ('"any-configuration"', '["abcd"]', "policy-field-length", "rule.lab.configuration[0]"),
        ('"any-configuration"', '["configuration-digest"]', "policy-field-type", "rule.lab.configuration[0]"),
        ('"any-configuration"', '["any-configuration"]', "policy-field-type", "rule.lab.configuration[0]"),
        ('["strict", "per-user"]', '["strict", "none"]', "policy-field-range", "rule.lab.isolation[1]"),
        ('["strict", "per-user"]', '["strict", 1]', "policy-field-type", "rule.lab.isolation[1]"),
        ("ab" * 48, "00" * 48, "policy-zero-measurement", "rule.lab.measurement"),
        ("ab" * 48, "zz" * 48, "policy-field-type", "rule.lab.measurement[0]"),
        ("ab" * 48, "ab" * 47 + "a", "policy-field-type", "rule.lab.measurement[0]"),
        ("isolation", "insecure_debug = 1\nisolation", "policy-field-type", "rule.lab.insecure_debug"),
        ("[rule.lab]", "[rule.lab", "policy-syntax", ""),
        ("co_tenancy = true", "co_tenancy = true\nco_tenancy = true", "policy-syntax", ""),
    ],
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, code: str, place: str) -> None:
    assert old in TEXT
    assert refused(TEXT.replace(old, new, 1)) == (code, place)


def test_every_field_is_required_or_has_the_strictest_default(case: Any) -> None:
    for field in FIELDS[case.tee]:
        plain = case.policy().rules[0].plain()
        if field.name not in plain:
            assert field.optional
            continue
        del plain[field.name]
        stronger = field.implied_by is not None and isinstance(plain[field.implied_by], list)
        if field.optional or field.default is not None or stronger:
            value = Rule.of("main", case.tee, plain).values.get(field.name)
            assert value in (False, (), (0,), None) or (stronger and isinstance(value, LeftOut))
        else:
            with pytest.raises(InvalidInput, match="policy-field-missing") as caught:
                Rule.of("main", case.tee, plain)
            assert caught.value.details["place"] == f"rule.main.{field.name}"


def test_a_check_is_left_out_by_its_own_name_only_and_warned_of(case: Any) -> None:
    for field in FIELDS[case.tee]:
        plain = case.rule | {field.name: "any-thing"}
        with pytest.raises(InvalidInput, match="policy-left-out"):
            Rule.of("main", case.tee, plain)
        if field.left_out is None:
            continue
        signer = {"mrsigner": [b"s" * 32], "product_id": [1], "minimum_security_version": 4}
        others = case.rule | signer if field.name == "mrenclave" else case.rule
        rule = Rule.of("main", case.tee, others | {field.name: field.left_out})
        assert rule.values[field.name] == LeftOut(field.left_out)
        warned = [str(sentence) for sentence in explain_policy(Policy((rule,))) if sentence.warning]
        assert field.implied_by or any(field.left_out in text for text in warned)


def test_a_zero_measurement_needs_debug_by_name(case_of: Any) -> None:
    case = case_of(TeeType.NITRO)
    case.rule |= {f"pcr{index}": [bytes(48)] for index in range(3)}
    with pytest.raises(InvalidInput, match="policy-zero-measurement"):
        case.policy()
    case.rule["insecure_debug"] = True
    case.policy()


@pytest.mark.parametrize(
    ("field", "value", "code", "place"),
    [
        ("minimum_reported_tcb", 3, "policy-field-type", ""),
        ("minimum_reported_tcb", {"snp": 1}, "policy-field-missing", ".boot_loader"),
        ("minimum_reported_tcb", {"ucode": 1}, "policy-unknown-field", ".ucode"),
        (
            "minimum_reported_tcb",
            {"boot_loader": 256, "tee": 0, "snp": 0, "microcode": 0},
            "policy-field-range",
            ".boot_loader",
        ),
        ("minimum_launch_tcb", "any-reported-tcb", "policy-left-out", ""),
        ("vmpl", [4], "policy-field-range", "[0]"),
        ("products", ["Rome"], "policy-field-range", "[0]"),
        ("vlek_csp_ids", ["a\nb"], "policy-field-range", "[0]"),
        ("allow_smt", "any-smt", "policy-left-out", ""),
        ("platforms", [bytes(64)], "policy-zero-measurement", ""),
        ("image_id", ["configuration-digest"], "policy-field-type", "[0]"),
    ],
)
def test_a_mistake_in_an_snp_rule(case_of: Any, field: str, value: object, code: str, place: str) -> None:
    case = case_of(TeeType.SEV_SNP)
    case.rule[field] = value
    with pytest.raises(InvalidInput) as caught:
        case.policy()
    assert (caught.value.code, caught.value.details["place"]) == (code, f"rule.main.{field}{place}")


@pytest.mark.parametrize("top", [7, 1 << 62, 1 << 63, 2**64 - 1])
def test_registers_of_64_bits_have_one_encoding_and_text(case_of: Any, top: int) -> None:
    case = case_of(TeeType.TDX)
    case.rule["xfam"] = [top if top < 1 << 63 else top.to_bytes(8, "big"), 3]
    policy = case.policy()
    assert policy.rules[0].values["xfam"] == tuple(sorted({3, top}))
    assert Policy.decode(policy.encode()) == policy
    text = format_policy(policy)
    assert parse_policy(text) == policy
    written = hex(top) if top < 1 << 63 else f'"{top:#x}"'
    assert written in text
    assert parse_policy(text.replace(written, f'"{top:#018x}"')) == policy


@pytest.mark.parametrize("bad", ['"e7"', '"0x"', '"0x10000000000000000"', '"0xg"', "-1", "1.5", "true", '"0x 1"'])
def test_what_is_no_register(case_of: Any, bad: str) -> None:
    case = case_of(TeeType.TDX)
    text = format_policy(case.policy())
    assert "xfam = [0x61ae7]" in text
    with pytest.raises(InvalidInput) as caught:
        parse_policy(text.replace("xfam = [0x61ae7]", f"xfam = [{bad}]"))
    assert caught.value.details["place"] == "rule.main.xfam[0]"
    case = case_of(TeeType.SEV_SNP)
    text = format_policy(case.policy())
    assert "required_launch_mitigations = 0x5" in text
    with pytest.raises(InvalidInput) as caught:
        parse_policy(text.replace("required_launch_mitigations = 0x5", f"required_launch_mitigations = {bad}"))
    assert caught.value.details["place"] == "rule.main.required_launch_mitigations"


def test_a_register_of_63_bits_is_no_byte_string(case_of: Any) -> None:
    """Else one policy would have two encodings, and two digests."""
    case = case_of(TeeType.TDX)
    for plain in ((7).to_bytes(8, "big"), b"\xff" * 7, 1 << 64):
        case.rule["xfam"] = [plain]
        with pytest.raises(InvalidInput, match="policy-field-"):
            case.policy()


def test_pcrs_beside_the_named_ones_are_zero_or_left_out(case_of: Any) -> None:
    case = case_of(TeeType.NITRO)
    case.rule["other_pcrs"] = "zero"
    with pytest.raises(InvalidInput, match="policy-field-range"):
        case.policy()
    case.rule["other_pcrs"] = "any-other-pcr"
    case.policy()


def test_evidence_without_a_claim_makes_no_policy(case_of: Any) -> None:
    case = case_of(TeeType.NITRO)
    del case.measurements["pcr1"]
    with pytest.raises(InvalidInput, match="policy-observed"):
        policy_for(case.verified().claims, case.configuration)


def test_encodings_other_than_the_one_are_refused(case: Any) -> None:
    plain = case.policy().plain()
    plain["rules"][0]["expect"]["isolation"] = ["strict", "per-user"]  # type: ignore[index]
    with pytest.raises(InvalidInput, match="policy-not-canonical"):
        Policy.decode(cbor.encode(plain))
    del plain["rules"][0]["expect"]["insecure_debug"]  # type: ignore[index]
    with pytest.raises(InvalidInput, match="policy-not-canonical"):
        Policy.decode(cbor.encode(plain))
    plain["extra"] = 1
    with pytest.raises(InvalidInput, match="field-unknown"):
        Policy.decode(cbor.encode(plain))


def test_sizes_are_bounded(case_of: Any) -> None:
    case = case_of(TeeType.SIMULATION)
    rule = case.policy().rules[0]
    with pytest.raises(InvalidInput, match="policy-too-long"):
        Policy((rule,) * 65)
    with pytest.raises(InvalidInput, match="policy-name"):
        Policy((rule, rule))
    with pytest.raises(InvalidInput, match="policy-too-long"):
        Rule.of("main", case.tee, case.rule | {"configuration": [bytes([n % 256]) * 32 for n in range(300)]})
    many = [n.to_bytes(48, "big") for n in range(1, 250)]
    rules = tuple(Rule.of(f"r{n}", case.tee, case.rule | {"measurement": many}) for n in range(4))
    with pytest.raises(InvalidInput, match="policy-too-long"):
        Policy(rules)
    with pytest.raises(InvalidInput, match="policy-too-long"):
        parse_policy("#" * 200_000)


def test_an_explanation_says_what_is_demanded_and_what_is_open() -> None:
    lines = [str(sentence) for sentence in explain_policy(parse_policy(TEXT))]
    assert "lab: Evidence must be of insecure-simulation." in lines
    assert f"lab: The measurement must be {'ab' * 48}." in lines
    assert "lab: The isolation level must be one of per-user, strict." in lines
    assert "lab: Debug mode is refused." in lines
    assert "warning: lab: any-configuration: the operator chooses how the code is configured" in lines
    assert any(line.startswith("warning: lab: insecure-simulation") for line in lines)
    assert str(explain_policy(Policy(()))[0]) == "warning: There is no rule, so everything is refused."


def test_known_attacks_are_warned_of(case_of: Any) -> None:
    snp = case_of(TeeType.SEV_SNP)
    assert not [line for line in explain_policy(snp.policy()) if line.warning]
    snp.rule["minimum_reported_tcb"] = {"boot_loader": 3, "tee": 0, "snp": 20, "microcode": 209}
    snp.rule["allow_incomplete_alias_check"] = True
    warned = " ".join(str(line) for line in explain_policy(snp.policy()) if line.warning)
    assert "CVE-2024-56161" in warned
    assert "CVE-2024-21944" in warned
    sgx = case_of(TeeType.SGX)
    sgx.rule |= {"tcb": ["OutOfDate"], "mrenclave": []}
    warned = " ".join(str(line) for line in explain_policy(sgx.policy()) if line.warning)
    assert "tcb OutOfDate" in warned
    assert "mrenclave = []: nothing can satisfy this rule" in warned


# a value of one field, and how the warning of it begins
WEAK: list[tuple[TeeType, str, object, str]] = [
    (TeeType.SGX, "tcb", ["SWHardeningNeeded"], "tcb SWHardeningNeeded: the code must defend itself"),
    (TeeType.SGX, "tcb", ["ConfigurationNeeded"], "tcb ConfigurationNeeded: the platform's settings"),
    (TeeType.TDX, "tcb", ["OutOfDateConfigurationNeeded"], "tcb OutOfDateConfigurationNeeded: known vulnerabilities"),
    (TeeType.TDX, "tcb", ["TDRelaunchAdvised"], "tcb TDRelaunchAdvised: the TD was started"),
    (TeeType.TDX, "advisories", ["INTEL-SA-00615"], "advisories INTEL-SA-00615: platforms"),
    (TeeType.TDX, "minimum_tcb_evaluation_data_number", 0, "minimum_tcb_evaluation_data_number = 0: "),
    (TeeType.SEV_SNP, "vmpl", [0, 2], "vmpl 2: what runs at a lower number"),
    (TeeType.SEV_SNP, "vlek_csp_ids", ["CN=cloud"], "vlek_csp_ids CN=cloud: the key names no chip"),
    (
        TeeType.SEV_SNP,
        "minimum_launch_tcb",
        {"boot_loader": 0, "tee": 0, "snp": 0, "microcode": 0},
        "minimum_launch_tcb of zeros: ",
    ),
    (TeeType.SEV_SNP, "products", ["Milan", "Turin"], "several products share one minimum TCB"),
    (TeeType.NITRO, "maximum_age_s", 604_800, "maximum_age_s = 604800: evidence of a TEE that ended days ago"),
]


@pytest.mark.parametrize(("tee", "field", "value", "warned"), WEAK)
def test_a_check_that_demands_little_is_warned_of(
    case_of: Any, tee: TeeType, field: str, value: object, warned: str
) -> None:
    strict, weak = case_of(tee), case_of(tee)
    strict.rule |= {"tcb": ["UpToDate"], "advisories": []} if tee in (TeeType.SGX, TeeType.TDX) else {}
    weak.rule |= strict.rule | {field: value}
    assert not [line for line in explain_policy(strict.policy()) if line.warning]
    (line,) = [line for line in explain_policy(weak.policy()) if line.warning]
    assert line.text.startswith(warned)


def test_old_firmware_is_warned_of_where_any_product_is_accepted(case_of: Any) -> None:
    snp = case_of(TeeType.SEV_SNP)
    snp.rule |= {"products": "any-product"}
    snp.rule["minimum_reported_tcb"] = {"boot_loader": 3, "tee": 0, "snp": 20, "microcode": 209}
    warned = [line.text for line in explain_policy(snp.policy()) if line.warning]
    assert sum("CVE-2024-56161" in text for text in warned) == 2


def test_the_least_version_matters_where_the_code_is_not_named(case_of: Any) -> None:
    codes = {TeeType.SEV_SNP: "measurement", TeeType.SIMULATION: "measurement", TeeType.SGX: "mrenclave"}
    for tee, code in codes.items():
        case = case_of(tee)
        case.rule |= {"minimum_security_version": 0}
        if tee is TeeType.SGX:
            case.rule |= {"mrsigner": [b"s" * 32], "product_id": [1]}
        expected = "minimum_security_version = 0: every version of the code is accepted"
        assert expected not in [line.text for line in explain_policy(case.policy())]
        case.rule |= {code: f"any-{code}"}
        assert expected in [line.text for line in explain_policy(case.policy())]


def test_an_explanation_reads_as_sentences(case_of: Any) -> None:
    tdx = case_of(TeeType.TDX)
    tdx.rule |= {"advisories": []}
    lines = [line.text for line in explain_policy(tdx.policy())]
    assert "Security advisories that apply to the platform: none may." in lines
    assert "The use of key locker (KL) is refused." in lines
    tdx.rule |= {"advisories": ["INTEL-SA-1", "INTEL-SA-2"]}
    lines = [line.text for line in explain_policy(tdx.policy())]
    assert "Security advisories that apply to the platform: only INTEL-SA-1, INTEL-SA-2." in lines


def test_an_explanation_names_every_value(case_of: Any) -> None:
    snp = case_of(TeeType.SEV_SNP)
    many = [bytes([n]) * 48 for n in range(1, 20)]
    snp.rule |= {"measurement": many, "host_data": ["configuration-digest", b"h" * 32]}
    lines = [line.text for line in explain_policy(snp.policy())]
    assert f"The launch measurement must be one of {', '.join(value.hex() for value in many)}." in lines
    assert f"HOST_DATA must be one of {(b'h' * 32).hex()}, the digest of its configuration." in lines


def test_a_policy_from_what_is_seen_accepts_that_and_no_other_measurement(case: Any) -> None:
    verified = case.verified()
    policy = policy_for(verified.claims, case.configuration)
    assert parse_policy(format_policy(policy)) == policy
    arguments = {"configuration": case.configuration, "report_data": b"r" * 64, "now": case.now}
    assert appraise(verified, policy=policy, **arguments).rule == "observed"
    pinned = policy_for(verified.claims, case.configuration, pin_platform=True)
    assert appraise(verified, policy=pinned, **arguments).rule == "observed"
    name = {"sgx": "mrenclave", "tdx": "rtmr2", "nitro": "pcr1"}.get(case.tee.value, "measurement")
    case.measurements[name] = b"x" * len(case.measurements[name])
    with pytest.raises(Refused, match=f"{name}-not-allowed"):
        appraise(case.verified(), policy=policy, **arguments)


def test_a_policy_from_debug_evidence_needs_the_word(case: Any) -> None:
    case.claims["debug"] = True
    with pytest.raises(Refused, match="debug-not-allowed"):
        policy_for(case.verified().claims, None)
    policy = policy_for(case.verified().claims, None, insecure_debug=True)
    assert policy.rules[0].values["insecure_debug"] is True


def test_the_reference_documents_every_field() -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "policy.md").read_text()
    for tee, fields in FIELDS.items():
        for field in fields:
            if not (field.name.startswith("pcr") and field.name != "pcr0"):
                assert f"`{field.name}`" in text, (tee, field.name)
            assert field.left_out is None or f"`{field.left_out}`" in text, field.left_out
