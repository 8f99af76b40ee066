"""Writes vectors/dcap.json: SGX and TDX quotes of a synthetic Intel, genuine in every respect but the one named.

Unlike the other generators this one uses the package, for its synthetic certificates and quotes
(``cloister.testing.evidence_dcap``): they are inputs, and what to expect of them is written here. A case names a base
and the bytes that differ from it, because everything else, certificates included, is the same.

Run it as ``python vectors/generate_dcap.py``; ``--check`` compares with what is committed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import NOW, key_of

HERE = Path(__file__).parent
Change = Callable[[SyntheticIntel], object]
BASES: dict[str, Callable[[], SyntheticIntel]] = {
    "sgx-v3": SyntheticIntel.sgx,
    "tdx-v4": lambda: SyntheticIntel.tdx(4),
    "tdx-v5": lambda: SyntheticIntel.tdx(5),
}


def report(**fields: int | bytes) -> Change:
    return lambda intel: intel.report.update(fields)


def header(**fields: int | bytes) -> Change:
    return lambda intel: intel.header.update(fields)


def qe(**fields: int | bytes) -> Change:
    return lambda intel: intel.qe_report.update(fields)


def part(name: str, value: object) -> Change:
    return lambda intel: setattr(intel, name, value)


TD = 1 << 28
# base, name, change of the quote, what to expect
CASES: tuple[tuple[str, str, Change, str], ...] = (
    ("sgx-v3", "genuine", report(), "ok"),
    ("tdx-v4", "genuine", report(), "ok"),
    ("tdx-v5", "genuine", report(), "ok"),
    ("tdx-v4", "followed by zeros", part("padding", bytes(70)), "ok"),
    ("sgx-v3", "followed by something else", part("padding", b"\x01"), "quote-trailing-bytes"),
    ("sgx-v3", "header of version 2", header(version=2), "quote-version"),
    ("sgx-v3", "header of version 4", header(version=4), "quote-tee-type"),
    ("tdx-v4", "another attestation key type", header(attestation_key_type=3), "quote-key-type"),
    ("tdx-v4", "another vendor's quoting enclave", header(qe_vendor_id=bytes(16)), "quote-vendor"),
    ("tdx-v4", "QE report not of type 6", part("outer_certification_type", 5), "quote-certification-type"),
    ("sgx-v3", "certification data of type 4", part("certification_type", 4), "quote-certification-type"),
    ("tdx-v5", "body size of another report", part("body_size", 584), "quote-length"),
    ("sgx-v3", "signature data one byte short", part("signature_length_error", -1), "quote-truncated"),
    ("sgx-v3", "reserved bytes", report(reserved4=b"\x01" + bytes(41)), "quote-reserved"),
    ("sgx-v3", "debug", report(flags=0x07), "debug-enabled"),
    ("sgx-v3", "not initialised", report(flags=0x04), "sgx-not-initialised"),
    ("sgx-v3", "provisioning key", report(flags=0x15), "sgx-provision-key"),
    ("sgx-v3", "launch key", report(flags=0x25), "sgx-einittoken-key"),
    ("tdx-v4", "debug", report(td_attributes=TD | 1), "debug-enabled"),
    ("tdx-v4", "profiling", report(td_attributes=TD | 1 << 4), "td-under-debug"),
    ("tdx-v4", "reserved attribute", report(td_attributes=TD | 1 << 40), "td-reserved-attributes"),
    ("tdx-v4", "migratable", report(td_attributes=TD | 1 << 29), "td-migratable"),
    ("tdx-v4", "exceptions for pages taken away", report(td_attributes=0), "td-sept-ve"),
    ("tdx-v5", "service TD", report(mr_service_td=b"\x01" * 48), "td-service-td"),
    ("tdx-v5", "TDX module of another signer", report(mr_signer_seam=b"\x01" * 48), "tdx-module-signer"),
    ("tdx-v5", "TDX module in debug", report(seam_attributes=b"\x01" + bytes(7)), "tdx-module-attributes"),
    ("tdx-v4", "TDX module unknown", report(tee_tcb_svn=bytes([6, 9, 3, *bytes(13)])), "tdx-module-level"),
    ("tdx-v4", "quoting enclave of another signer", qe(mr_signer=bytes(32)), "qe-signer"),
    ("tdx-v4", "quoting enclave in debug", qe(flags=0x17), "qe-debug"),
    ("tdx-v4", "quoting enclave of another product", qe(product_id=1), "qe-product"),
    ("tdx-v4", "quoting enclave revoked", qe(isv_svn=3), "tcb-revoked"),
    ("sgx-v3", "attestation key not vouched for", part("qe_report_data", bytes(64)), "qe-key-not-bound"),
    ("sgx-v3", "quoting enclave's report forged", part("qe_report_signing_key", key_of("x")), "qe-report-forged"),
    ("sgx-v3", "quote forged", part("quote_signing_key", key_of("x")), "quote-forged"),
)


def differences(base: bytes, other: bytes) -> list[list[Any]]:
    """[offset, hexadecimal] pairs that make ``other`` of ``base``; what follows the end of ``base`` comes last."""
    found: list[list[Any]] = []
    for at in range(min(len(base), len(other))):
        if base[at] != other[at]:
            if found and found[-1][0] + len(found[-1][1]) == at:
                found[-1][1] += other[at : at + 1]
            else:
                found.append([at, other[at : at + 1]])
    if len(other) > len(base):
        found.append([len(base), other[len(base) :]])
    return [[at, data.hex()] for at, data in found]


def generate() -> dict[str, Any]:
    """The file."""
    bases = {}
    for name, make in BASES.items():
        intel = make()
        bases[name] = {
            "tee": intel.tee.value,
            "quote": intel.quote().hex(),
            "collateral": intel.collateral_parts(),
            "root": intel.root.der().hex(),
            "measurements": {
                field: intel.report[field].hex()  # type: ignore[union-attr]  # these are bytes
                for field in ("mr_enclave", "mr_signer", "mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "report_data")
                if field in intel.report
            },
        }
    cases = []
    for base, name, change, expect in CASES:
        intel = BASES[base]()
        change(intel)
        patch = differences(bytes.fromhex(bases[base]["quote"]), intel.quote())
        cases.append({"name": f"{base}: {name}", "base": base, "patch": patch, "now": NOW, "expect": expect})
    return {"bases": bases, "cases": cases}


def main() -> int:
    """Write the file, or compare."""
    text = json.dumps(generate(), indent=1) + "\n"
    path = HERE / "dcap.json"
    if "--check" not in sys.argv[1:]:
        path.write_text(text)
        return 0
    if not path.exists() or path.read_text() != text:
        print("vectors/dcap.json is not what generate_dcap.py writes", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
