"""SEV-SNP leaves, issued by the right CA for another chip, firmware or purpose: each with its own code.

The numbers (A1, S3, ...) are those of the list of negative cases; names in parentheses are the projects in which a
verifier let the case pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cloister.attest.snp.certificates import CHAIN_FILE, VEK_FILE, Signer
from cloister.attest.snp.tcb import LEVEL_OIDS, RESERVED_LEVEL_OIDS
from cloister.attest.steps import Steps
from cloister.attest.types import VerifiedEvidence
from cloister.attest.verify import verify
from cloister.testing.certificates import Template
from cloister.testing.evidence_snp import (
    LEVELS,
    NOW,
    Case,
    SnpAuthority,
    build_report,
    leaf_extensions,
    tcb,
)
from cloister.testing.refusals import require_refusal

OID = "1.3.6.1.4.1.3704.1."
VLEK = Signer.VLEK


def check(amd: SnpAuthority, case: Case, product: str = "Milan", steps: Steps | None = None) -> VerifiedEvidence:
    return verify(*case, amd.anchors(product), NOW, steps)


def refused(amd: SnpAuthority, code: str, case: Case, product: str = "Milan") -> None:
    require_refusal(code, *case, amd.anchors(product), NOW)


# --- the leaf ---


def leaf_case(amd: SnpAuthority, change: Callable[[Template], Template], signer: Signer = Signer.VCEK) -> Case:
    files = amd.chain("Milan", signer, leaf=change(amd.leaf_template("Milan", signer)))
    return amd.evidence("Milan", signer, files=files)


def with_extensions(values: dict[str, bytes | None]) -> Callable[[Template], Template]:
    def change(template: Template) -> Template:
        merged = {**template.extensions, **values}
        return replace(template, extensions={oid: value for oid, value in merged.items() if value is not None})

    return change


LEAVES: dict[str, tuple[str, Callable[[Template], Template]]] = {
    "S2 VCEK without HWID": ("snp-extension-missing", with_extensions({OID + "4": None})),
    "S2 VCEK with cspID": ("snp-leaf-kind", with_extensions({OID + "5": b"\x16\x03CN="})),
    "S2 a VLEK's name": ("snp-leaf-kind", lambda leaf: replace(leaf, subject="SEV-VLEK")),
    "S2 another name": ("snp-leaf-kind", lambda leaf: replace(leaf, subject="SEV-VCEK2")),
    "S3 HWID of another chip": ("snp-chip-id", with_extensions({OID + "4": b"\x5d" * 64})),
    "S3 HWID too short": ("snp-extension-malformed", with_extensions({OID + "4": b"\x5c" * 63})),
    "S3 HWID of Turin's length": ("snp-extension-malformed", with_extensions({OID + "4": b"\x5c" * 8})),
    "S3 product Genoa": ("snp-product-mismatch", with_extensions({OID + "2": b"\x16\x05Genoa"})),
    "S3 product longer": ("snp-product-mismatch", with_extensions({OID + "2": b"\x16\x06Milano"})),
    "S3 product absent": ("snp-extension-missing", with_extensions({OID + "2": None})),
    "S3 product not text": ("snp-extension-malformed", with_extensions({OID + "2": b"\x02\x01\x00"})),
    "S3 product with rest": ("snp-extension-malformed", with_extensions({OID + "2": b"\x16\x05Milan\x00"})),
    "S3 struct version 2": ("snp-struct-version", with_extensions({OID + "1": b"\x02\x01\x02"})),
    "S3 struct version absent": ("snp-extension-missing", with_extensions({OID + "1": None})),
    "S3 has an FMC level": ("snp-tcb-layout", with_extensions({LEVEL_OIDS["fmc"]: b"\x02\x01\x01"})),
    "S3 level negative": ("snp-extension-malformed", with_extensions({LEVEL_OIDS["snp"]: b"\x02\x01\x80"})),
    "S3 level too long": ("snp-extension-malformed", with_extensions({LEVEL_OIDS["snp"]: b"\x02\x02\x00\x1b"})),
    "S3 level above 255": ("snp-extension-malformed", with_extensions({LEVEL_OIDS["snp"]: b"\x02\x02\x01\x1b"})),
    "A3 leaf not yet valid": ("certificate-not-yet-valid", lambda leaf: replace(leaf, not_before=NOW + 1)),
    "A3 leaf expired": ("certificate-expired", lambda leaf: replace(leaf, not_after=NOW - 1)),
    "A7 leaf names another issuer": ("certificate-issuer-name", lambda leaf: replace(leaf, issuer="SEV-Genoa")),
    "A7 leaf is a CA": ("certificate-leaf-is-ca", lambda leaf: replace(leaf, ca=True)),
    "A7 leaf may not sign": ("certificate-key-usage", lambda leaf: replace(leaf, usage=frozenset())),
    "A7 leaf with a critical extension": (
        "certificate-critical-extension",
        lambda leaf: replace(leaf, extensions={**leaf.extensions, "1.2.3.4": b""}, critical=frozenset({"1.2.3.4"})),
    ),
}
for _part, _oid in LEVEL_OIDS.items():
    if _part != "fmc":
        LEAVES[f"S3 leaf lacks {_part}"] = ("snp-extension-missing", with_extensions({_oid: None}))
        for _step in (-1, 1):
            _wrong = leaf_extensions("Milan", Signer.VCEK, **{_part: LEVELS[_part] + _step})[_oid]
            LEAVES[f"S3 leaf {_part} {_step:+}"] = ("snp-tcb-mismatch", with_extensions({_oid: _wrong}))
for _oid in RESERVED_LEVEL_OIDS:
    LEAVES[f"S3 leaf level {_oid[-1:]} is not zero"] = ("snp-tcb-layout", with_extensions({_oid: b"\x02\x01\x01"}))


@pytest.mark.parametrize("case", LEAVES)
def test_a_leaf_that_was_issued_for_something_else(amd: SnpAuthority, case: str) -> None:
    code, change = LEAVES[case]
    refused(amd, code, leaf_case(amd, change))


VLEKS: dict[str, tuple[str, Callable[[Template], Template]]] = {
    "S2 VLEK without cspID": ("snp-extension-missing", with_extensions({OID + "5": None})),
    "S2 VLEK with HWID": ("snp-leaf-kind", with_extensions({OID + "4": b"\x5c" * 64})),
    "S2 a VCEK's name": ("snp-leaf-kind", lambda leaf: replace(leaf, subject="SEV-VCEK")),
    "S7 VLEK expired": ("certificate-expired", lambda leaf: replace(leaf, not_after=NOW - 1)),
    "S2 cspID not text": ("snp-extension-malformed", with_extensions({OID + "5": b"\x16\x01\x07"})),
}


@pytest.mark.parametrize("case", VLEKS)
def test_a_vlek_that_is_none(amd: SnpAuthority, case: str) -> None:
    code, change = VLEKS[case]
    refused(amd, code, leaf_case(amd, change, VLEK))


def test_an_hwid_in_an_octet_string_is_the_same_chip(amd: SnpAuthority) -> None:
    """AMD has issued the HWID both bare and wrapped."""
    assert check(amd, leaf_case(amd, with_extensions({OID + "4": b"\x04\x40" + b"\x5c" * 64}))).claims.platform_id


# --- Turin ---


def test_a_tcb_of_turin_in_the_layout_of_milan(amd: SnpAuthority) -> None:
    """S3: the levels are right, the bytes where they stand are another product's."""
    milan = tcb("Milan")
    refused(amd, "snp-tcb-layout", amd.evidence("Turin", reported_tcb=milan, current_tcb=milan), "Turin")
    turin = tcb("Turin")
    refused(amd, "snp-tcb-layout", amd.evidence("Milan", reported_tcb=turin, current_tcb=turin))


@pytest.mark.parametrize("part", ["fmc", "boot_loader", "tee", "snp", "microcode"])
@pytest.mark.parametrize("step", [-1, 1])
def test_each_level_of_turin(amd: SnpAuthority, part: str, step: int) -> None:
    version = tcb("Turin", **{part: LEVELS[part] + step})
    refused(amd, "snp-tcb-mismatch", amd.evidence("Turin", reported_tcb=version, current_tcb=version), "Turin")


def test_a_chip_id_of_turin_has_eight_bytes(amd: SnpAuthority) -> None:
    refused(amd, "snp-chip-id", amd.evidence("Turin", chip_id=b"\x5c" * 64), "Turin")
    refused(amd, "snp-chip-id", amd.evidence("Turin", chip_id=b"\x5c" * 7 + bytes(57)), "Turin")


def test_turins_leaf_needs_the_fmc_level(amd: SnpAuthority) -> None:
    template = amd.leaf_template("Turin", Signer.VCEK)
    lacking = {oid: value for oid, value in template.extensions.items() if oid != LEVEL_OIDS["fmc"]}
    files = amd.chain("Turin", leaf=replace(template, extensions=lacking))
    refused(amd, "snp-extension-missing", amd.evidence("Turin", files=files), "Turin")


def test_a_whole_chain_of_another_product(amd: SnpAuthority) -> None:
    """S3: everything is genuine and of Genoa, the report of a Milan."""
    report = build_report("Milan", version=3)
    refused(amd, "snp-cpu-mismatch", amd.evidence("Genoa", body=report), "Genoa")
    refused(amd, "snp-root-not-pinned", amd.evidence("Genoa"), "Milan")
    mixed = amd.chain("Milan")[VEK_FILE], amd.chain("Genoa")[CHAIN_FILE]
    files = dict(zip((VEK_FILE, CHAIN_FILE), mixed, strict=True))
    refused(amd, "certificate-issuer-name", amd.evidence("Genoa", files=files), "Genoa")
