"""README.md says of every negative case which test refuses it, and with which codes: this file writes it.

``python tests/adversarial/attest/test_table.py`` writes it. Rows come from the tables of cases in the tests, whose
names begin with the case's number, and from the functions listed below; each function must exist and its codes stand in
its file.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
TESTS: Final = HERE.parents[1]

CASES: Final = {
    "A1": "a flipped bit anywhere in what is signed, or in the signature",
    "A2": "evidence cut short, or with something behind it",
    "A3": "before its time or after it: evidence, certificates, revocation lists, collateral",
    "A4": "other report data, the right bytes in the wrong field, none at all, a nonce again or of another session",
    "A5": "another measurement; allow-lists that are empty, of the wrong length, of zeros",
    "A6": "evidence of one TEE for another's verifier or policy, and simulation",
    "A7": "a foreign root, CA or leaf with the vendor's names",
    "A8": "a key that the evidence does not bind",
    "I1": "debug mode, genuinely signed",
    "I2": "revoked certificates; a revocation list that is missing, forged or of another CA",
    "I3": "collateral of another platform, TEE, version or signer, or changed, or old",
    "I4": "every TCB status, allowed and not",
    "I5": "a quoting enclave that is not Intel's, in debug mode, too old, or vouches for another key",
    "I6": "the quote's header, certification data and lengths",
    "I7": "attributes, registers and owners of a TD, and its module",
    "I8": "attributes, product, version and configuration of an enclave",
    "S1": "the guest policy",
    "S2": "a VLEK for a VCEK and the reverse; reserved signing keys; author key without digest",
    "S3": "a certificate of another chip, firmware or product; another product's layout",
    "S4": "firmware below a minimum, out of order, or not committed",
    "S5": "VMPL, host data, ID block, version",
    "S6": "alias check, multi-threading, masked chip",
    "S7": "AMD's revocation list; an expired VLEK",
    "S8": "signature algorithm, range and encoding; reserved bytes",
    "N1": "debug mode, missing and zero PCRs",
    "N2": "algorithms and headers; detached payloads; what emulators make",
    "N3": "the certificate bundle",
    "N4": "CBOR that is not as Nitro writes it; fields out of range",
    "G1": "GPU evidence beside the CPU's (no part but the CPU's is understood)",
}
# what others' verifiers let pass
REGRESSIONS: Final = {
    "go-sev-guest 190": "forged root chains",
    "Microsoft TEE verification 142": "a VLEK taken for a VCEK",
    "attestation-rs 67": "no check of debug or VMPL",
    "attestation-go 12": "revocation that could not be checked passed",
    "dcap-qvl 125": "OutOfDate reported as valid",
    "CVE-2025-64186": "incomplete documents passed",
    "keep 577": "PCRs skipped when none was configured",
}

# file: names of tables of cases in it
TABLES: Final = {
    "test_dcap_negative.py": ("ANY", "SGX_ONLY", "TDX_ONLY", "V5_ONLY"),
    "test_dcap_policy.py": ("CLAIMS",),
    "test_amd_aws_policies.py": ("SNP", "DOCUMENTS"),
    "test_snp_reports.py": ("REPORTS",),
    "test_snp_chains.py": ("INTERMEDIATES", "ROOTS"),
    "test_snp_leaves.py": ("LEAVES", "VLEKS"),
    "test_nitro_documents.py": ("_CONTENT", "_CHAINS"),
}

_DCAP: Final = "adversarial/attest/test_dcap_negative.py"
_COLLATERAL: Final = "adversarial/attest/test_dcap_collateral.py"
_INTEL_POLICY: Final = "adversarial/attest/test_dcap_policy.py"
_POLICIES: Final = "adversarial/attest/test_amd_aws_policies.py"
_REPORTS: Final = "adversarial/attest/test_snp_reports.py"
_CHAINS: Final = "adversarial/attest/test_snp_chains.py"
_LEAVES: Final = "adversarial/attest/test_snp_leaves.py"
_NITRO: Final = "adversarial/attest/test_nitro_documents.py"
_PROVISIONING: Final = "adversarial/attest/test_provisioning.py"
_BYTES: Final = "property/attest/test_dcap_bytes.py"
_FLIPS: Final = "vectors/attest/test_recorded_flips.py"
_RECORDED_DCAP: Final = "vectors/attest/test_dcap_recorded.py"
_RECORDED_SNP: Final = "vectors/attest/test_recorded_snp.py"
_RECORDED_NITRO: Final = "vectors/attest/test_recorded_nitro.py"
_SIMULATION: Final = "unit/attest/test_simulation.py"
_APPRAISE: Final = "unit/attest/test_appraise.py"
_POLICY: Final = "unit/attest/test_policy.py"

# case or project, file, function, codes that it demands (none where any refusal will do)
FUNCTIONS: Final = (
    ("A1", _BYTES, "test_every_bit_of_the_header_is_signed", ""),
    ("A1", _BYTES, "test_every_byte_of_the_signed_regions_is_refused_when_flipped", ""),
    ("A1", _BYTES, "test_every_flip_in_the_certificates_is_refused_or_changes_nothing", ""),
    ("A1", _BYTES, "test_every_flip_of_a_recorded_quote_is_refused_or_changes_nothing", ""),
    ("A1", _BYTES, "test_flips_in_the_collateral_are_refused_or_change_nothing", ""),
    ("A1", _FLIPS, "test_every_bit_of_a_report", ""),
    ("A1", _FLIPS, "test_every_bit_of_a_documents_signature_and_payload", ""),
    ("A1", _SIMULATION, "test_every_flipped_bit_is_refused", ""),
    ("A1", _REPORTS, "test_a_report_signed_by_another_chips_key", "snp-signature"),
    ("A1", _NITRO, "test_a_signature_by_another_key_or_of_another_document", "nitro-signature"),
    ("A2", _BYTES, "test_a_quote_cut_anywhere_is_refused", ""),
    ("A2", _BYTES, "test_zeros_behind_a_quote_change_nothing", ""),
    ("A2", _FLIPS, "test_a_report_of_every_other_length", "snp-report-length"),
    ("A2", _FLIPS, "test_a_document_of_every_other_length", "nitro-cbor-malformed nitro-cbor-trailing"),
    ("A2", _SIMULATION, "test_every_truncation_and_extension_is_refused", ""),
    ("A3", _CHAINS, "test_a_list_that_is_not_the_roots_or_not_of_today", "crl-expired crl-not-yet-valid"),
    (
        "A3",
        _RECORDED_SNP,
        "test_the_recorded_vlek_expires_after_a_year",
        "certificate-not-yet-valid certificate-expired",
    ),
    ("A3", _RECORDED_NITRO, "test_a_recorded_document_is_refused_outside_of_its_time", ""),
    ("A3", _SIMULATION, "test_time_bounds_it", "simulation-not-yet-valid simulation-expired time-malformed"),
    ("A3", _APPRAISE, "test_evidence_is_not_appraised_outside_its_time", "evidence-expired"),
    ("A4", _PROVISIONING, "test_a4_a_nonce_is_used_once", "challenge-redeemed"),
    ("A4", _PROVISIONING, "test_a4_a_nonce_of_another_time_or_service", "challenge-malformed challenge-expired"),
    ("A4", _PROVISIONING, "test_a4_evidence_over_another_nonce", "report-data-mismatch"),
    ("A4", _INTEL_POLICY, "test_report_data_must_be_what_is_expected_in_full", "report-data-mismatch"),
    ("A4", _APPRAISE, "test_report_data_must_be_equal", "report-data-mismatch"),
    ("A4", _APPRAISE, "test_an_expectation_that_anything_meets_is_a_bug_of_the_caller", "report-data-length"),
    ("A5", _INTEL_POLICY, "test_an_empty_allow_list_refuses_everything", ""),
    ("A5", _APPRAISE, "test_an_empty_allow_list_refuses_everything", ""),
    ("A5", _POLICY, "test_a_mistake_is_named_with_its_place", "policy-field-length"),
    ("A5", _POLICY, "test_a_zero_measurement_needs_debug_by_name", "policy-zero-measurement"),
    ("A6", _DCAP, "test_evidence_of_another_tee_is_refused", ""),
    ("A6", _REPORTS, "test_a_report_under_another_label", "snp-report-length"),
    ("A6", _NITRO, "test_a_document_under_another_label", ""),
    ("A6", _PROVISIONING, "test_a6_evidence_under_another_label", ""),
    ("A6", "vectors/attest/test_no_confusion.py", "test_a_label_does_not_make_evidence", ""),
    ("A6", "vectors/attest/test_no_confusion.py", "test_simulation_is_no_real_tee", ""),
    ("A6", _SIMULATION, "test_production_anchors_refuse_it", "simulation-refused"),
    ("A6", _APPRAISE, "test_a_rule_accepts_no_other_tee", "tee-not-allowed"),
    ("A7", _DCAP, "test_a_foreign_root_with_the_same_names_is_refused", "root-not-pinned"),
    ("A7", _DCAP, "test_a_self_signed_chain_with_the_vendors_names_is_refused", "chain-forged root-not-pinned"),
    ("A7", _CHAINS, "test_a_forged_chain_with_amds_names", "snp-root-not-pinned certificate-signature"),
    ("A7", _CHAINS, "test_a_root_certificate_that_its_own_key_did_not_sign", "certificate-signature"),
    ("A7", _NITRO, "test_a_forged_chain_with_awss_names", "nitro-root-not-pinned certificate-signature"),
    ("A8", _PROVISIONING, "test_a8_the_session_goes_to_the_attested_key_only", "report-data-mismatch"),
    ("I1", _RECORDED_DCAP, "test_a_td_in_debug_mode_is_refused_although_every_signature_is_genuine", "debug-enabled"),
    ("I2", _COLLATERAL, "test_broken_collateral_is_refused", "crl-missing crl-malformed"),
    ("I3", _COLLATERAL, "test_a_status_changed_after_signing_is_refused", "tcb-info-forged"),
    ("I3", _COLLATERAL, "test_collateral_signed_with_a_pck_key_is_refused", "chain-shape"),
    ("I3", _RECORDED_DCAP, "test_collateral_of_another_platform_is_refused", ""),
    (
        "I4",
        _INTEL_POLICY,
        "test_each_status_is_accepted_where_it_is_listed_and_nowhere_else",
        "tcb-status-not-allowed tcb-revoked",
    ),
    ("I4", _INTEL_POLICY, "test_an_advisory_is_accepted_only_by_name", "advisory-not-allowed"),
    ("I4", _INTEL_POLICY, "test_a_td_to_be_relaunched_is_accepted_only_by_that_name", "tcb-status-not-allowed"),
    ("S2", _CHAINS, "test_a_vlek_presented_where_the_report_says_vcek", "snp-intermediate-kind"),
    ("S2", _CHAINS, "test_a_vcek_under_the_asvk", "snp-intermediate-kind"),
    ("S2", _CHAINS, "test_a_vlek_under_the_ask", "snp-intermediate-kind"),
    ("S2", _POLICIES, "test_a_vlek_needs_the_rules_consent", "vlek-not-allowed"),
    ("S3", _RECORDED_SNP, "test_a_genuine_leaf_of_another_recording_does_not_verify_the_report", "snp-signature"),
    ("S3", _LEAVES, "test_a_tcb_of_turin_in_the_layout_of_milan", "snp-tcb-layout"),
    ("S3", _LEAVES, "test_each_level_of_turin", "snp-tcb-mismatch"),
    ("S3", _LEAVES, "test_a_chip_id_of_turin_has_eight_bytes", "snp-chip-id"),
    (
        "S3",
        _LEAVES,
        "test_a_whole_chain_of_another_product",
        "snp-cpu-mismatch snp-root-not-pinned certificate-issuer-name",
    ),
    ("S4", _POLICIES, "test_an_older_firmware_with_its_own_certificate", "reported-tcb-too-low"),
    ("S4", _POLICIES, "test_a_platform_that_went_back_to_older_firmware", "current-tcb-too-low"),
    ("S7", _CHAINS, "test_a_revoked_root_or_intermediate", "certificate-revoked"),
    ("S7", _CHAINS, "test_the_revoked_intermediate_of_the_vlek", "certificate-revoked"),
    (
        "S7",
        _CHAINS,
        "test_a_list_that_is_not_the_roots_or_not_of_today",
        "certificate-signature certificate-issuer-name crl-malformed",
    ),
    ("S7", _CHAINS, "test_a_list_that", "crl-not-complete"),
    ("S7", _POLICIES, "test_unchecked_revocation_needs_the_rules_consent", "revocation-unchecked"),
    ("S8", _REPORTS, "test_reserved_bytes_that_are_not_zero", "snp-reserved-not-zero"),
    ("S8", _REPORTS, "test_a_signature_outside_of_its_range", "snp-signature-range snp-signature-encoding"),
    ("N1", _POLICY, "test_every_field_is_required_or_has_the_strictest_default", "policy-field-missing"),
    (
        "N2",
        _NITRO,
        "test_headers",
        "nitro-algorithm nitro-algorithm-missing nitro-protected-header nitro-unprotected-header",
    ),
    ("N2", _NITRO, "test_what_qemus_virtio_nsm_makes", "nitro-algorithm certificate-malformed"),
    ("N2", _NITRO, "test_envelopes", "nitro-payload-detached nitro-envelope nitro-signature-length"),
    (
        "N3",
        _NITRO,
        "test_bundles",
        "nitro-root-not-pinned certificate-issuer-name certificate-path-length",
    ),
    ("N3", _RECORDED_NITRO, "test_a_leaf_swapped_between_two_recorded_documents_is_refused", ""),
    (
        "N4",
        _NITRO,
        "test_payload_encodings",
        "nitro-cbor-duplicate-key nitro-cbor-trailing nitro-cbor-indefinite nitro-cbor-tag nitro-cbor-malformed",
    ),
    (
        "N4",
        _NITRO,
        "test_payload_encodings",
        "nitro-cbor-too-large nitro-field-type",
    ),
    ("N4", _NITRO, "test_envelopes", "nitro-cbor-trailing nitro-cbor-tag nitro-cbor-indefinite"),
    ("G1", _APPRAISE, "test_parts_that_nobody_understands_are_refused", "evidence-parts-unexpected"),
    ("go-sev-guest 190", _CHAINS, "test_a_forged_chain_with_amds_names", "snp-root-not-pinned certificate-signature"),
    ("go-sev-guest 190", _CHAINS, "test_a_root_certificate_that_its_own_key_did_not_sign", "certificate-signature"),
    ("go-sev-guest 190", _DCAP, "test_a_foreign_root_with_the_same_names_is_refused", "root-not-pinned"),
    (
        "Microsoft TEE verification 142",
        _CHAINS,
        "test_a_vlek_presented_where_the_report_says_vcek",
        "snp-intermediate-kind",
    ),
    ("Microsoft TEE verification 142", _POLICIES, "test_a_vlek_needs_the_rules_consent", "vlek-not-allowed"),
    ("attestation-rs 67", _POLICIES, "test_one_thing_differs_in_a_report", "debug-not-allowed vmpl-not-allowed"),
    ("attestation-go 12", _POLICIES, "test_unchecked_revocation_needs_the_rules_consent", "revocation-unchecked"),
    ("attestation-go 12", _COLLATERAL, "test_collateral_that_is_absent_is_refused", "collateral-missing"),
    ("dcap-qvl 125", _RECORDED_DCAP, "test_out_of_date_is_never_reported_as_up_to_date", ""),
    (
        "dcap-qvl 125",
        _INTEL_POLICY,
        "test_each_status_is_accepted_where_it_is_listed_and_nowhere_else",
        "tcb-status-not-allowed",
    ),
    (
        "CVE-2025-64186",
        _NITRO,
        "test_a_signed_payload_that_no_policy_may_accept",
        "nitro-pcr-missing nitro-field-missing",
    ),
    ("CVE-2025-64186", _CHAINS, "test_an_incomplete_chain", "snp-certificate-missing"),
    ("keep 577", _POLICIES, "test_one_thing_differs_in_a_document", "pcr2-not-allowed"),
    ("keep 577", _NITRO, "test_a_signed_payload_that_no_policy_may_accept", "nitro-pcr-missing"),
)

Row = tuple[str, str, str]  # file, what, codes


def tables() -> dict[str, list[Row]]:
    """Case to rows, from the tables of cases: those with one code together."""
    found: dict[str, dict[tuple[str, str], list[str]]] = defaultdict(lambda: defaultdict(list))
    for file, names in TABLES.items():
        module = _load(HERE / file)
        for name in names:
            for case, code in _entries(getattr(module, name)):
                number, _, what = case.partition(" ")
                if number in CASES:
                    found[number][f"adversarial/attest/{file}", code].append(re.sub(r" \([^)]*\)", "", what))
    return {
        number: [(file, "; ".join(dict.fromkeys(what)), f"`{code}`") for (file, code), what in rows.items()]
        for number, rows in found.items()
    }


def _entries(table: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and code of each case: the code is the text of a pair, whichever place it has."""
    found: list[tuple[str, str]] = []
    for name, value in table.items():
        if isinstance(value, dict):
            found += _entries(value)
        else:
            found.append((name, next(item for item in value if isinstance(item, str))))
    return found


def _load(path: Path) -> Any:
    specification = importlib.util.spec_from_file_location(f"table_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def functions() -> dict[str, list[Row]]:
    """Case or project to rows, from the list above."""
    found: dict[str, list[Row]] = defaultdict(list)
    for case, file, name, codes in FUNCTIONS:
        what = name.removeprefix("test_").replace("_", " ")
        found[case].append((file, re.sub(r"^[as]\d+ ", "", what), ", ".join(f"`{code}`" for code in codes.split())))
    return found


def page() -> str:
    """README.md."""
    lines = [
        "# Evidence that must be refused",
        "",
        "<!-- written by tests/adversarial/attest/test_table.py -->",
        "",
        "Each case is refused with the code beside it. Cases that need valid signatures are signed under a throw-away",
        "root by the generators in `cloister.testing` (`evidence_dcap`, `evidence_snp`, `evidence_nitro`). No code:",
        "any refusal will do, and what is not refused must claim the same.",
    ]
    listed, written = tables(), functions()
    for title, names in (("", CASES), ("What others' verifiers let pass", REGRESSIONS)):
        lines += ["", f"## {title}"] if title else []
        for name, what in names.items():
            lines += ["", f"### {name}: {what}" if title else f"## {name}: {what}", ""]
            lines += ["| refused | code | test |", "| --- | --- | --- |"]
            rows = [*listed.get(name, ()), *written.get(name, ())]
            lines += [f"| {text.replace('|', '')} | {codes} | `{file}` |" for file, text, codes in rows]
    return "\n".join(lines) + "\n"


def test_the_table_is_fresh() -> None:
    assert (HERE / "README.md").read_text() == page(), "run python tests/adversarial/attest/test_table.py"


def test_every_case_is_refused_somewhere() -> None:
    listed, written = tables(), functions()
    assert {*listed, *written} == {*CASES, *REGRESSIONS}


def test_every_listed_function_is_there_with_its_codes() -> None:
    for _, file, name, codes in FUNCTIONS:
        text = (TESTS / file).read_text()
        assert f"def {name}(" in text, (file, name)
        for code in codes.split():
            assert code in text, (file, code)


def test_every_code_is_documented() -> None:
    """In the list of errors, or with the field of the policy whose check fails."""
    reference = TESTS.parent / "docs" / "reference"
    text = (reference / "errors.md").read_text() + (reference / "policy.md").read_text()
    codes = set(re.findall(r"`([a-z0-9-]+)`", " ".join(row[2] for rows in tables().values() for row in rows)))
    codes |= {code for _, _, _, listed in FUNCTIONS for code in listed.split()}
    pcrs = {f"pcr{index}-not-allowed" for index in range(32)}  # written once for all of them
    assert len(codes) > 150
    assert not {code for code in codes - pcrs if f"`{code}`" not in text}


if __name__ == "__main__":
    (HERE / "README.md").write_text(page())
