"""Names of the TEE-specific claims in ``Claims.specific``: verifiers fill them in, policies ask for them.

A name is absent when the evidence does not have the thing (a PCK certificate without a configuration, a Nitro document
without a nonce), and a policy that asks for an absent claim refuses (spec/attestation.md, section 9.2). Integers are
unsigned; a register that the vendor defines little-endian is the integer it encodes.
"""

from __future__ import annotations

from typing import Final

# --- Intel, SGX and TDX (spec/attestation.md, section 3); platform_id is the PPID ---
FMSPC: Final = "fmspc"  # bytes, 6
PCE_ID: Final = "pce_id"  # bytes, 2, as in the PCK certificate
TCB_EVALUATION_DATA_NUMBER: Final = "tcb_evaluation_data_number"  # int, the smaller of TCB info's and QE identity's
TCB_DATE: Final = "tcb_date"  # int, Unix time of the TCB level that the platform matched
SMT: Final = (
    "smt"  # bool, hyper-threading is on; Intel: PCK configuration, absent without one; SNP: PLATFORM_INFO bit 0
)
DYNAMIC_PLATFORM: Final = "dynamic_platform"  # bool, packages may be added to the platform; absent for single-package
CACHED_KEYS: Final = "cached_keys"  # bool, platform root keys are kept by Intel's registration service; absent likewise
QUOTE_VERSION: Final = "quote_version"  # int, 3 (SGX), 4 or 5 (TDX)
PLATFORM_INSTANCE_ID: Final = "platform_instance_id"  # bytes, 16; absent for single-package platforms

# --- SGX; measurements are mrenclave and mrsigner, security_version is ISVSVN ---
SGX_FLAGS: Final = (
    "attributes"  # int, ATTRIBUTES.FLAGS (INIT 0, DEBUG 1, MODE64 2, PROVISION_KEY 4, EINITTOKEN_KEY 5, KSS 7)
)
SGX_XFRM: Final = "xfrm"  # int, ATTRIBUTES.XFRM
SGX_MISC_SELECT: Final = "misc_select"  # int
SGX_PRODUCT_ID: Final = "product_id"  # int, ISVPRODID
SGX_EXTENDED_PRODUCT_ID: Final = "extended_product_id"  # bytes, 16, ISVEXTPRODID
SGX_FAMILY_ID: Final = "family_id"  # bytes, 16, ISVFAMILYID
SGX_CONFIG_ID: Final = "config_id"  # bytes, 64, CONFIGID
SGX_CONFIG_SVN: Final = "config_svn"  # int, CONFIGSVN

# --- TDX; measurements are mrtd and rtmr0..3, security_version is 0 ---
TD_REPORT: Final = "td_report"  # str, "1.0", "1.5" or "1.5ex"
TD_ATTRIBUTES: Final = "td_attributes"  # int (DEBUG 0, SEPT_VE_DISABLE 28, MIGRATABLE 29, PKS 30, KL 31, PERFMON 63)
TD_XFAM: Final = "xfam"  # int
TD_CONFIG_ID: Final = "mr_config_id"  # bytes, 48, MRCONFIGID
TD_OWNER: Final = "mr_owner"  # bytes, 48, MROWNER
TD_OWNER_CONFIG: Final = "mr_owner_config"  # bytes, 48, MROWNERCONFIG
TD_SEAM: Final = "mr_seam"  # bytes, 48, MRSEAM
TD_TEE_TCB_SVN: Final = "tee_tcb_svn"  # bytes, 16, at launch
TD_TEE_TCB_SVN2: Final = "tee_tcb_svn2"  # bytes, 16, now; absent before TD report 1.5

# --- SEV-SNP (section 4); measurement is "measurement", security_version is GUEST_SVN, platform_id is CHIP_ID ---
SNP_PRODUCT: Final = "product"  # str, "Milan", "Genoa" or "Turin"
SNP_REPORT_VERSION: Final = "report_version"  # int, 2..5
SNP_SIGNER: Final = "signer"  # str, "vcek" or "vlek"
SNP_CSP_ID: Final = "csp_id"  # str, of the VLEK certificate; absent with a VCEK
SNP_REVOCATION_CHECKED: Final = "revocation_checked"  # bool, a valid CRL was there and lists nothing of the chain
SNP_VMPL: Final = "vmpl"  # int
SNP_POLICY: Final = (
    "guest_policy"  # int, 64 bits (SMT 16, MIGRATE_MA 18, DEBUG 19, SINGLE_SOCKET 20, CXL_ALLOW 21, ...)
)
SNP_PLATFORM_INFO: Final = "platform_info"  # int, 64 bits
SNP_ALIAS_CHECK_COMPLETE: Final = "alias_check_complete"  # bool, PLATFORM_INFO bit 5
SNP_POLICY_SMT: Final = "policy_smt"  # bool, guest policy bit 16: SMT is allowed
SNP_POLICY_SINGLE_SOCKET: Final = "policy_single_socket"  # bool, guest policy bit 20: only one socket
SNP_POLICY_CXL: Final = "policy_cxl"  # bool, guest policy bit 21: CXL is allowed
SNP_POLICY_CIPHERTEXT_HIDING: Final = "policy_ciphertext_hiding"  # bool, guest policy bit 24: it is required
SNP_HOST_DATA: Final = "host_data"  # bytes, 32
SNP_ID_KEY_DIGEST: Final = "id_key_digest"  # bytes, 48; zero when the guest was launched without an ID block
SNP_AUTHOR_KEY_DIGEST: Final = "author_key_digest"  # bytes, 48; zero without an author key
SNP_FAMILY_ID: Final = "family_id"  # bytes, 16
SNP_IMAGE_ID: Final = "image_id"  # bytes, 16
SNP_CPUID: Final = "cpuid"  # str, "family-model-stepping" in hexadecimal (19-a0-2); absent in report version 2
SNP_FIRMWARE_VERSION: Final = "firmware_version"  # str, current "major.minor.build"
SNP_LAUNCH_MITIGATIONS: Final = "launch_mitigations"  # int, LAUNCH_MIT_VECTOR; absent before report version 5
SNP_CURRENT_MITIGATIONS: Final = "current_mitigations"  # int, CURRENT_MIT_VECTOR; absent before report version 5
SNP_PROVISIONAL_FIRMWARE: Final = "provisional_firmware"  # bool, the current TCB or version is not the committed one

TCB_KINDS: Final = ("reported", "committed", "current", "launch")
TCB_PARTS: Final = ("fmc", "boot_loader", "tee", "snp", "microcode")


def snp_tcb(kind: str, part: str) -> str:
    """Name of one security patch level, an int: ``reported_tcb.snp``; ``fmc`` is absent before Turin."""
    return f"{kind}_tcb.{part}"


# --- Nitro (section 5); measurements are pcr0..31 as present, report_data is user_data (empty if null) ---
NITRO_MODULE_ID: Final = "module_id"  # str
NITRO_TIMESTAMP_MS: Final = "timestamp_ms"  # int, milliseconds since the Unix epoch
NITRO_NONCE: Final = "nonce"  # bytes; absent if null
NITRO_PUBLIC_KEY: Final = "public_key"  # bytes; absent if null

# --- simulation (section 6); measurement is "measurement" ---
SIMULATION_WARNING: Final = "warning"  # str, always "insecure-simulation"
SIMULATION_ISSUED_AT: Final = "issued_at"  # int, Unix time
SIMULATION_CONFIGURATION: Final = "configuration_digest"  # bytes, 32
