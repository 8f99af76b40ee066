"""What SGX and TDX quotes hold, field by field (spec/attestation.md, clauses 3.1 to 3.3).

Sources: Intel, "SGX ECDSA QuoteGenReference" (version 3, appendix A) and "TDX DCAP Quote Generation Library and Quoting
Enclave" (versions 4 and 5, appendix A). Integers are little-endian on the wire and plain integers here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HEADER_LENGTH: Final = 48
ENCLAVE_REPORT_LENGTH: Final = 384
TD_REPORT_10_LENGTH: Final = 584
TD_REPORT_15_LENGTH: Final = 648
TD_REPORT_15_EXTENDED_LENGTH: Final = 885

INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
KEY_TYPE_ECDSA_P256: Final = 2
TEE_SGX: Final = 0x00
TEE_TDX: Final = 0x81
CERTIFICATION_PCK_CHAIN: Final = 5
CERTIFICATION_QE_REPORT: Final = 6

# ATTRIBUTES.FLAGS of an SGX enclave (Intel SDM volume 3D, table 36-3)
SGX_INIT: Final = 1 << 0
SGX_DEBUG: Final = 1 << 1
SGX_PROVISION_KEY: Final = 1 << 4
SGX_EINITTOKEN_KEY: Final = 1 << 5

# TDATTRIBUTES of a TD (Intel TDX Module ABI specification, 348551)
TD_DEBUG: Final = 1 << 0
TD_UNDER_DEBUG: Final = 0xFF  # "TUD": a TD with any of these bits is not trusted
TD_SERVICE_TD_EXTENSION: Final = 1 << 17
TD_SEPT_VE_DISABLE: Final = 1 << 28
TD_MIGRATABLE: Final = 1 << 29


def _ones(low: int, high: int) -> int:
    return ((1 << (high - low + 1)) - 1) << low


# Bits that are reserved, or that no policy could speak of (18 to 22, and 62, a provisioning agent of TDX Connect).
# What remains beside those above: single-step defence 16, LASS 27, PKS 30, KL 31, PERFMON 63.
TD_RESERVED: Final = _ones(1, 3) | _ones(7, 15) | _ones(18, 26) | _ones(32, 62)


@dataclass(frozen=True, slots=True)
class QuoteHeader:
    """The first 48 bytes; ``qe_svn`` and ``pce_svn`` are reserved (zero) from version 4 on."""

    version: int
    attestation_key_type: int
    tee_type: int
    qe_svn: int
    pce_svn: int
    qe_vendor_id: bytes
    user_data: bytes


@dataclass(frozen=True, slots=True)
class EnclaveReport:
    """An SGX enclave's REPORT body, 384 bytes: of the workload, and of the quoting enclave.

    :param raw: the bytes themselves, which a signature covers.
    :param attributes: 16 bytes, ``flags`` then ``xfrm``.
    """

    raw: bytes
    cpu_svn: bytes
    misc_select: int
    extended_product_id: bytes
    flags: int
    xfrm: int
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes
    product_id: int
    isv_svn: int
    config_svn: int
    family_id: bytes
    report_data: bytes


@dataclass(frozen=True, slots=True)
class TdReport:
    """A TD's report body. Fields of later versions are ``None`` where the version has none.

    :param version: ``1.0`` (584 bytes), ``1.5`` (648) or ``1.5ex`` (885).
    :param tee_tcb_svn: at launch; ``tee_tcb_svn2`` is the current one (1.5), after an update of the running module.
    :param extension: what 1.5ex adds, undivided: VM index, TD id, device and service TD hashes, initial TCB.
    """

    version: str
    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: int
    xfam: int
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mr_service_td: bytes | None = None
    extension: bytes | None = None


@dataclass(frozen=True, slots=True)
class QuoteSignature:
    """Signature data: who signed the body, and who vouches for that key.

    :param signature: of the attestation key over header and body, r then s.
    :param attestation_key: ECDSA P-256, x then y.
    :param qe_report_signature: of the PCK key over ``qe_report.raw``.
    :param qe_authentication_data: hashed with the attestation key into the QE's report data.
    :param pck_chain: PEM text, leaf first, as it stands in the quote.
    """

    signature: bytes
    attestation_key: bytes
    qe_report: EnclaveReport
    qe_report_signature: bytes
    qe_authentication_data: bytes
    pck_chain: bytes


@dataclass(frozen=True, slots=True)
class SgxQuote:
    """A version 3 quote. ``signed`` is what the attestation key signed; ``padding`` counts the zeros after the end."""

    header: QuoteHeader
    report: EnclaveReport
    signature: QuoteSignature
    signed: bytes
    padding: int


@dataclass(frozen=True, slots=True)
class TdxQuote:
    """A version 4 or 5 quote of a TD."""

    header: QuoteHeader
    report: TdReport
    signature: QuoteSignature
    signed: bytes
    padding: int
