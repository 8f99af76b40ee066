"""dcap-qvl's refusals, as stable codes of the step that they belong to.

The library (pinned exactly) checks in a fixed order and says what failed in English. The steps below are in that order,
so a refusal at one step means that every step above it passed. A sentence that is not in the table still refuses: it is
reported as ``dcap-refused`` at the first step. ``tests/adversarial/attest`` makes every row happen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered

COLLATERAL_SIGNATURES: Final = "collateral-signatures"
QUOTING_ENCLAVE: Final = "quoting-enclave"
QUOTE_SIGNATURE: Final = "quote-signature"
TCB: Final = "tcb"
ATTRIBUTES: Final = "attributes"

_Row = tuple[str, str, type[CloisterError], str]

# (how the library's sentence starts, step, family, code)
_ROWS: Final[tuple[_Row, ...]] = (
    ("Failed to decode TcbInfo", COLLATERAL_SIGNATURES, InvalidInput, "collateral-malformed"),
    ("Signature is invalid for tcb_info", COLLATERAL_SIGNATURES, Tampered, "tcb-info-forged"),
    ("Failed to decode QeIdentity", COLLATERAL_SIGNATURES, InvalidInput, "collateral-malformed"),
    ("Signature is invalid for qe_identity", COLLATERAL_SIGNATURES, Tampered, "qe-identity-forged"),
    ("Unsupported QE Identity id/version", COLLATERAL_SIGNATURES, Refused, "qe-identity-version"),
    ("Signature is invalid for qe_report", QUOTING_ENCLAVE, Tampered, "qe-report-forged"),
    ("Invalid QE auth data length", QUOTING_ENCLAVE, Refused, "qe-authentication-length"),
    ("QE report hash mismatch", QUOTING_ENCLAVE, Tampered, "qe-key-not-bound"),
    ("QE MRSIGNER mismatch", QUOTING_ENCLAVE, Refused, "qe-signer"),
    ("QE report validation failed", QUOTING_ENCLAVE, Refused, "qe-debug"),
    ("QE ISVPRODID mismatch", QUOTING_ENCLAVE, Refused, "qe-product"),
    ("QE MISCSELECT mismatch", QUOTING_ENCLAVE, Refused, "qe-misc-select"),
    ("QE ATTRIBUTES mismatch", QUOTING_ENCLAVE, Refused, "qe-attributes"),
    ("QE ISVSVN", QUOTING_ENCLAVE, Refused, "qe-too-old"),
    ("No TCB levels found in QE Identity", QUOTING_ENCLAVE, Refused, "qe-too-old"),
    ("ISV enclave report signature is invalid", QUOTE_SIGNATURE, Tampered, "quote-forged"),
    ("Fmspc mismatch", TCB, Refused, "fmspc-mismatch"),
    ("No matching TCB level found", TCB, Refused, "tcb-level-none"),
    ("SGX component count mismatch", TCB, InvalidInput, "collateral-malformed"),
    ("TDX component count mismatch", TCB, InvalidInput, "collateral-malformed"),
    ("Unrecognized TCB status", TCB, Refused, "tcb-status-unknown"),
    ("TDX module TCB level check", TCB, Refused, "tdx-module-level"),
    ("TDX module identity check", TCB, Refused, "tdx-module-identity"),
    ("Failed to evaluate the current TDX TCB", TCB, Refused, "tdx-module-level"),
    ("TCB status is invalid: Revoked", TCB, Refused, "tcb-revoked"),
    ("Debug mode is enabled", ATTRIBUTES, Refused, "debug-enabled"),
    ("TD profiling is enabled", ATTRIBUTES, Refused, "td-under-debug"),
    ("Reserved bits in TD attributes", ATTRIBUTES, Refused, "td-reserved-attributes"),
    ("TD migration is enabled", ATTRIBUTES, Refused, "td-migratable"),
    ("SERVTD_EXT is enabled", ATTRIBUTES, Refused, "td-service-td"),
    ("SEPT_VE_DISABLE is not enabled", ATTRIBUTES, Refused, "td-sept-ve"),
    ("Invalid MR service TD", ATTRIBUTES, Refused, "td-service-td"),
)
_PREFIX: Final = "Verification failed: "


@dataclass(frozen=True, slots=True)
class Failure:
    """A refusal by dcap-qvl: the step it belongs to, and the error to raise there."""

    step: str
    error: CloisterError


def classify(sentence: str) -> Failure:
    """The step, family and code of what dcap-qvl says."""
    text = sentence.removeprefix(_PREFIX)
    for start, step, family, code in _ROWS:
        if text.startswith(start):
            return Failure(step, family(code, text[:300]))
    return Failure(COLLATERAL_SIGNATURES, Refused("dcap-refused", f"DCAP verification refuses: {text[:300]}"))
