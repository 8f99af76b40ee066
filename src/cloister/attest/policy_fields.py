"""Every field of every rule, in one table: parsing, encoding, appraisal, explanation and documentation follow it.

The schema for people is docs/reference/policy.md; a test compares the two. Adding a field here is all it takes, and
changes the digest of every policy with a rule of that TEE: do it in a new version of the policy format only.
"""

from __future__ import annotations

from typing import Final

from cloister.attest import claim_names as names
from cloister.attest.configuration import ISOLATION_LEVELS
from cloister.attest.policy_kinds import Allowance, Digests, Field, MaximumAge, Minimum, Numbers, Texts
from cloister.attest.policy_register_kinds import Registers, RequiredBits
from cloister.attest.policy_vendor_kinds import OtherPcrs, TcbMinimum, VlekCsps
from cloister.attest.types import TeeType

TCB_STATUSES: Final = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)

_OTHER_CODE: Final = "code that nobody reviewed is accepted"


def _measurement(name: str, length: int, label: str, *, nonzero: bool = True) -> Field:
    return Field(
        name,
        Digests(length, nonzero=nonzero),
        f"measurements.{name}",
        f"{name}-not-allowed",
        label,
        left_out=f"any-{name}",
        risk=_OTHER_CODE,
    )


def _launch(name: str, claim: str, length: int, label: str, risk: str, *, configuration: bool = True) -> Field:
    dashed = name.replace("_", "-")
    return Field(
        name,
        Digests(length, configuration=configuration),
        f"specific.{claim}",
        f"{dashed}-not-allowed",
        label,
        left_out=f"any-{dashed}",
        risk=risk,
    )


def _allow(name: str, code: str, label: str, risk: str, *bad: tuple[str, bool]) -> Field:
    claims = tuple((f"specific.{claim}", value) for claim, value in bad)
    return Field(name, Allowance(claims), claims[0][0], code, label, risk=risk, default=False)


def _security_version(label: str, *, implied_by: str | None = None) -> Field:
    return Field(
        "minimum_security_version",
        Minimum(),
        "security_version",
        "security-version-too-low",
        label,
        left_out="any-security-version",
        risk="old versions of the code with known faults are accepted",
        implied_by=implied_by,
    )


def _platforms(length: int, label: str) -> Field:
    return Field(
        "platforms",
        Digests(length, nonzero=True),
        "platform_id",
        "platform-not-allowed",
        label,
        left_out="any-platform",
        risk="any genuine chip is accepted, also one in hands that can tap its memory bus",
    )


_COMMON: Final = (
    Field(
        "configuration",
        Digests(32),
        "configuration.digest",
        "configuration-not-allowed",
        "The configuration digest",
        left_out="any-configuration",
        risk="the operator chooses how the code is configured",
    ),
    Field(
        "isolation",
        Texts(ISOLATION_LEVELS),
        "configuration.isolation",
        "isolation-not-allowed",
        "The isolation level",
        left_out="any-isolation",
        risk="users may share an instance at any level of isolation",
    ),
    Field(
        "insecure_debug",
        Allowance((("debug", True),)),
        "debug",
        "debug-not-allowed",
        "Debug mode",
        risk="the host can read and change the memory of a TEE in debug mode",
        default=False,
    ),
)

_INTEL: Final = (
    Field(
        "tcb",
        Texts(TCB_STATUSES),
        "tcb_status",
        "tcb-status-not-allowed",
        "The TCB status",
        left_out="any-tcb-status",
        risk="platforms with known vulnerabilities are accepted",
    ),
    Field(
        "advisories",
        Texts(each=True),
        "advisories",
        "advisory-not-allowed",
        "Security advisories that apply to the platform",
        left_out="any-advisory",
        risk="platforms with any known vulnerability are accepted",
    ),
    Field(
        "minimum_tcb_evaluation_data_number",
        Minimum(),
        f"specific.{names.TCB_EVALUATION_DATA_NUMBER}",
        "tcb-evaluation-data-number-too-low",
        "The TCB evaluation data number",
        left_out="any-tcb-evaluation-data-number",
        risk="old TCB information that is still in its window hides newer vulnerabilities",
    ),
    _platforms(16, "The platform (PPID)"),
    _allow(
        "allow_smt",
        "smt-not-allowed",
        "Hyper-threading",
        "threads of one core share caches with strangers",
        (names.SMT, True),
    ),
    _allow(
        "allow_dynamic_platform",
        "dynamic-platform-not-allowed",
        "A platform to which packages can be added",
        "a package added later shares the platform's keys",
        (names.DYNAMIC_PLATFORM, True),
    ),
    _allow(
        "allow_cached_keys",
        "cached-keys-not-allowed",
        "A platform whose root keys Intel's registration service keeps",
        "the registration service could reveal them",
        (names.CACHED_KEYS, True),
    ),
)

_SGX: Final = (
    _measurement("mrenclave", 32, "MRENCLAVE"),
    Field(
        "mrsigner",
        Digests(32, nonzero=True),
        "measurements.mrsigner",
        "mrsigner-not-allowed",
        "MRSIGNER",
        left_out="any-mrsigner",
        risk=_OTHER_CODE,
        implied_by="mrenclave",
    ),
    Field(
        "product_id",
        Numbers(2**16 - 1),
        f"specific.{names.SGX_PRODUCT_ID}",
        "product-id-not-allowed",
        "The product id (ISVPRODID)",
        left_out="any-product-id",
        risk="every product of the same signer is accepted",
        implied_by="mrenclave",
    ),
    _security_version("The security version (ISVSVN)", implied_by="mrenclave"),
    _launch(
        "config_id",
        names.SGX_CONFIG_ID,
        64,
        "CONFIGID",
        "the host chooses the configuration given at launch (CONFIGID)",
    ),
    Field(
        "xfrm",
        Registers(),
        f"specific.{names.SGX_XFRM}",
        "xfrm-not-allowed",
        "The enabled processor features (XFRM)",
        left_out="any-xfrm",
        risk="the host chooses which processor features the enclave may use",
    ),
    Field(
        "misc_select",
        Numbers(2**32 - 1),
        f"specific.{names.SGX_MISC_SELECT}",
        "misc-select-not-allowed",
        "MISCSELECT",
        left_out="any-misc-select",
        risk="faults may be reported to the host in more detail",
        default=[0],
    ),
)

_TDX: Final = (
    _measurement("mrtd", 48, "MRTD"),
    *(_measurement(f"rtmr{index}", 48, f"RTMR{index}", nonzero=False) for index in range(4)),
    _launch("mr_config_id", names.TD_CONFIG_ID, 48, "MRCONFIGID", "the host chooses MRCONFIGID"),
    _launch("mr_owner", names.TD_OWNER, 48, "MROWNER", "the host chooses MROWNER"),
    _launch("mr_owner_config", names.TD_OWNER_CONFIG, 48, "MROWNERCONFIG", "the host chooses MROWNERCONFIG"),
    Field(
        "xfam",
        Registers(),
        f"specific.{names.TD_XFAM}",
        "xfam-not-allowed",
        "The enabled processor features (XFAM)",
        left_out="any-xfam",
        risk="the host chooses which processor features the guest may use",
    ),
    _allow(
        "allow_pks",
        "pks-not-allowed",
        "The use of supervisor protection keys (PKS)",
        "the guest may use supervisor protection keys",
        (f"{names.TD_ATTRIBUTES}:30", True),
    ),
    _allow(
        "allow_kl",
        "kl-not-allowed",
        "The use of key locker (KL)",
        "the guest may use key locker, whose keys the host manages",
        (f"{names.TD_ATTRIBUTES}:31", True),
    ),
    _allow(
        "allow_perfmon",
        "perfmon-not-allowed",
        "The use of performance counters (PERFMON)",
        "performance counters show more of the guest",
        (f"{names.TD_ATTRIBUTES}:63", True),
    ),
)


def _tcb_minimum(kind: str) -> Field:
    return Field(
        f"minimum_{kind}_tcb",
        TcbMinimum(kind),
        f"specific.{names.snp_tcb(kind, 'snp')}",
        f"{kind}-tcb-too-low",
        f"The {kind} TCB",
        left_out=f"any-{kind}-tcb",
        risk="platforms with known vulnerabilities are accepted",
    )


def _mitigations(kind: str, claim: str) -> Field:
    return Field(
        f"required_{kind}_mitigations",
        RequiredBits(),
        f"specific.{claim}",
        f"{kind}-mitigations-missing",
        f"The {kind} mitigation vector",
        left_out=f"any-{kind}-mitigations",
        risk="mitigations that the firmware can report are not asked for",
    )


_SEV_SNP: Final = (
    Field(
        "products",
        Texts(("Milan", "Genoa", "Turin")),
        f"specific.{names.SNP_PRODUCT}",
        "product-not-allowed",
        "The product",
        left_out="any-product",
        risk="every generation of processors is accepted",
    ),
    Field(
        "cpuids",
        Texts(),
        f"specific.{names.SNP_CPUID}",
        "cpuid-not-allowed",
        "The processor's family, model and stepping",
        left_out="any-cpuid",
        risk="every model and stepping of a processor is accepted",
        implied_by="products",
    ),
    _measurement("measurement", 48, "The launch measurement"),
    *(_tcb_minimum(kind) for kind in names.TCB_KINDS),
    _mitigations("launch", names.SNP_LAUNCH_MITIGATIONS),
    _mitigations("current", names.SNP_CURRENT_MITIGATIONS),
    Field(
        "vmpl",
        Numbers(3),
        f"specific.{names.SNP_VMPL}",
        "vmpl-not-allowed",
        "The privilege level (VMPL)",
        left_out="any-vmpl",
        risk="less privileged software in the guest may speak for all of it",
    ),
    _launch("host_data", names.SNP_HOST_DATA, 32, "HOST_DATA", "the host chooses the data given at launch"),
    *(
        _launch(name, claim, length, label, risk, configuration=False)
        for name, claim, length, label, risk in (
            ("id_key_digest", names.SNP_ID_KEY_DIGEST, 48, "ID_KEY_DIGEST", "anyone may have signed the ID block"),
            (
                "author_key_digest",
                names.SNP_AUTHOR_KEY_DIGEST,
                48,
                "AUTHOR_KEY_DIGEST",
                "anyone may have certified the ID key",
            ),
            ("family_id", names.SNP_FAMILY_ID, 16, "FAMILY_ID", "images of any family are accepted"),
            ("image_id", names.SNP_IMAGE_ID, 16, "IMAGE_ID", "any image of the family is accepted"),
        )
    ),
    _security_version("The security version (GUEST_SVN)"),
    Field(
        "vlek_csp_ids",
        VlekCsps(),
        f"specific.{names.SNP_SIGNER}",
        "vlek-not-allowed",
        "The key that signed",
        left_out="any-vlek",
        risk="any cloud provider's key may have signed, which names no chip",
        default=[],
    ),
    _platforms(64, "The chip (CHIP_ID)"),
    _allow(
        "allow_smt",
        "smt-not-allowed",
        "Simultaneous multi-threading",
        "threads of one core share caches with strangers",
        (names.SMT, True),
        (names.SNP_POLICY_SMT, True),
    ),
    _allow(
        "allow_multiple_sockets",
        "multiple-sockets-not-allowed",
        "Running on more than one socket",
        "memory traffic crosses the link between sockets",
        (names.SNP_POLICY_SINGLE_SOCKET, False),
    ),
    _allow(
        "allow_cxl",
        "cxl-not-allowed",
        "Memory behind CXL devices",
        "guest memory may be on a device",
        (names.SNP_POLICY_CXL, True),
    ),
    _allow(
        "allow_visible_ciphertext",
        "visible-ciphertext-not-allowed",
        "Running without ciphertext hiding",
        "the host can watch the guest's ciphertexts change",
        (names.SNP_POLICY_CIPHERTEXT_HIDING, False),
    ),
    _allow(
        "allow_incomplete_alias_check",
        "alias-check-incomplete",
        "A platform that did not complete the check for memory aliases",
        "altered memory modules (BadRAM, CVE-2024-21944) go unnoticed",
        (names.SNP_ALIAS_CHECK_COMPLETE, False),
    ),
    _allow(
        "allow_provisional_firmware",
        "provisional-firmware-not-allowed",
        "Firmware that the platform can still roll back",
        "the host can go back to older firmware while the guest runs",
        (names.SNP_PROVISIONAL_FIRMWARE, True),
    ),
    _allow(
        "allow_unchecked_revocation",
        "revocation-unchecked",
        "Verification without AMD's revocation list",
        "a revoked intermediate key is accepted",
        (names.SNP_REVOCATION_CHECKED, False),
    ),
)


def _maximum_age(claim: str, scale: int) -> Field:
    return Field(
        "maximum_age_s",
        MaximumAge(scale),
        f"specific.{claim}",
        "evidence-too-old",
        "The age of the evidence",
        left_out="any-age",
        risk="evidence of a TEE that ended long ago is accepted, while its collateral is valid",
    )


def _pcr(index: int) -> Field:
    required = index < 3
    return Field(
        f"pcr{index}",
        Digests(48, nonzero=required),
        f"measurements.pcr{index}",
        f"pcr{index}-not-allowed",
        f"PCR{index}",
        optional=not required,
    )


_NITRO: Final = (
    *(_pcr(index) for index in range(32)),
    Field(
        "other_pcrs",
        OtherPcrs(),
        "measurements",
        "other-pcrs-not-allowed",
        "PCRs that the rule does not name",
        left_out="any-other-pcr",
        risk="role, instance and signer of the image (PCR3, PCR4, PCR8) are not looked at unless named",
    ),
    _maximum_age(names.NITRO_TIMESTAMP_MS, 1000),
)

_SIMULATION: Final = (
    _measurement("measurement", 48, "The measurement"),
    _security_version("The security version"),
    _maximum_age(names.SIMULATION_ISSUED_AT, 1),
)

FIELDS: Final[dict[TeeType, tuple[Field, ...]]] = {
    TeeType.SGX: (*_SGX, *_INTEL, *_COMMON),
    TeeType.TDX: (*_TDX, *_INTEL, *_COMMON),
    TeeType.SEV_SNP: (*_SEV_SNP, *_COMMON),
    TeeType.NITRO: (*_NITRO, *_COMMON),
    TeeType.SIMULATION: (*_SIMULATION, *_COMMON),
}
