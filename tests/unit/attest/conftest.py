"""Claims and rules of every TEE, to be varied one at a time."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from cloister.attest import claim_names as names
from cloister.attest.configuration import configure
from cloister.attest.policy import Policy, Rule
from cloister.attest.types import PROOF_OF_VERIFICATION, Claims, ClaimValue, TeeType, VerifiedEvidence

NOW = 1_800_000_000.0
CONFIGURATION = configure({"isolation": "per-user", "co_tenancy": False, "bundle_root": b"b" * 32})
COMMON: dict[str, Any] = {"configuration": [CONFIGURATION.digest], "isolation": ["per-user", "strict"]}
INTEL: dict[str, Any] = {
    "tcb": ["UpToDate", "SWHardeningNeeded"],
    "advisories": ["INTEL-SA-00615"],
    "minimum_tcb_evaluation_data_number": 17,
    "platforms": [b"p" * 16],
}
INTEL_CLAIMS: dict[str, ClaimValue] = {
    names.TCB_EVALUATION_DATA_NUMBER: 18,
    names.SMT: False,
    names.DYNAMIC_PLATFORM: False,
    names.CACHED_KEYS: False,
}
SNP_TCB = {"boot_loader": 3, "tee": 0, "snp": 24, "microcode": 209}

RULES: dict[TeeType, dict[str, Any]] = {
    TeeType.SGX: {
        "mrenclave": [b"e" * 32],
        "config_id": ["configuration-digest"],
        "xfrm": [7, 0xE7],
        **INTEL,
        **COMMON,
    },
    TeeType.TDX: {
        "mrtd": [b"t" * 48],
        **{f"rtmr{index}": [bytes([index]) * 48] for index in range(4)},
        "mr_config_id": ["configuration-digest"],
        "mr_owner": [bytes(48)],
        "mr_owner_config": [bytes(48)],
        "xfam": [0x61AE7],
        **INTEL,
        **COMMON,
    },
    TeeType.SEV_SNP: {
        "products": ["Milan"],
        "cpuids": ["19-1-1", "19-1-2"],
        "measurement": [b"m" * 48],
        **{f"minimum_{kind}_tcb": SNP_TCB for kind in names.TCB_KINDS},
        "required_launch_mitigations": 0x5,
        "required_current_mitigations": 1 << 63 | 0x7,
        "vmpl": [0],
        "host_data": ["configuration-digest"],
        "id_key_digest": [b"i" * 48],
        "author_key_digest": [b"a" * 48],
        "family_id": [b"f" * 16],
        "image_id": [b"g" * 16],
        "minimum_security_version": 4,
        "platforms": [b"p" * 64],
        **COMMON,
    },
    TeeType.NITRO: {
        **{f"pcr{index}": [bytes([index + 1]) * 48] for index in range(3)},
        "pcr8": [b"8" * 48],
        "other_pcrs": "all-zero",
        "maximum_age_s": 300,
        **COMMON,
    },
    TeeType.SIMULATION: {
        "measurement": [b"m" * 48],
        "minimum_security_version": 4,
        "maximum_age_s": 300,
        **COMMON,
    },
}

MEASUREMENTS: dict[TeeType, dict[str, bytes]] = {
    TeeType.SGX: {"mrenclave": b"e" * 32, "mrsigner": b"s" * 32},
    TeeType.TDX: {"mrtd": b"t" * 48, **{f"rtmr{index}": bytes([index]) * 48 for index in range(4)}},
    TeeType.SEV_SNP: {"measurement": b"m" * 48},
    TeeType.NITRO: {
        **{f"pcr{index}": bytes([index + 1]) * 48 for index in range(3)},
        **{f"pcr{index}": bytes(48) for index in range(3, 16)},
        "pcr8": b"8" * 48,
    },
    TeeType.SIMULATION: {"measurement": b"m" * 48},
}

SPECIFIC: dict[TeeType, dict[str, ClaimValue]] = {
    TeeType.SGX: {
        names.SGX_PRODUCT_ID: 1,
        names.SGX_MISC_SELECT: 0,
        names.SGX_XFRM: 0xE7,
        names.SGX_CONFIG_ID: CONFIGURATION.digest + bytes(32),
        **INTEL_CLAIMS,
    },
    TeeType.TDX: {
        names.TD_ATTRIBUTES: 1 << 28,
        names.TD_XFAM: 0x61AE7,
        names.TD_CONFIG_ID: CONFIGURATION.digest + bytes(16),
        names.TD_OWNER: bytes(48),
        names.TD_OWNER_CONFIG: bytes(48),
        **INTEL_CLAIMS,
    },
    TeeType.SEV_SNP: {
        names.SNP_PRODUCT: "Milan",
        names.SNP_SIGNER: "vcek",
        names.SNP_REVOCATION_CHECKED: True,
        names.SNP_VMPL: 0,
        names.SNP_CPUID: "19-1-1",
        names.SNP_LAUNCH_MITIGATIONS: 0x15,
        names.SNP_CURRENT_MITIGATIONS: 1 << 63 | 0x1F,
        names.SMT: False,
        names.SNP_ALIAS_CHECK_COMPLETE: True,
        names.SNP_POLICY_SMT: False,
        names.SNP_POLICY_SINGLE_SOCKET: True,
        names.SNP_POLICY_CXL: False,
        names.SNP_POLICY_CIPHERTEXT_HIDING: True,
        names.SNP_HOST_DATA: CONFIGURATION.digest,
        names.SNP_ID_KEY_DIGEST: b"i" * 48,
        names.SNP_AUTHOR_KEY_DIGEST: b"a" * 48,
        names.SNP_FAMILY_ID: b"f" * 16,
        names.SNP_IMAGE_ID: b"g" * 16,
        names.SNP_PROVISIONAL_FIRMWARE: False,
        **{names.snp_tcb(kind, part): level for kind in names.TCB_KINDS for part, level in SNP_TCB.items()},
    },
    TeeType.NITRO: {names.NITRO_TIMESTAMP_MS: int(NOW * 1000) - 5000},
    TeeType.SIMULATION: {
        names.SIMULATION_WARNING: "insecure-simulation",
        names.SIMULATION_ISSUED_AT: int(NOW) - 5,
        names.SIMULATION_CONFIGURATION: CONFIGURATION.digest,
    },
}

PLATFORM_IDS = {TeeType.SGX: b"p" * 16, TeeType.TDX: b"p" * 16, TeeType.SEV_SNP: b"p" * 64}


class Case:
    """A rule and evidence that it accepts, for one TEE."""

    def __init__(self, tee: TeeType) -> None:
        self.tee = tee
        self.rule = dict(RULES[tee])
        self.measurements = dict(MEASUREMENTS[tee])
        self.specific = dict(SPECIFIC[tee])
        self.configuration = CONFIGURATION
        self.now = NOW
        self.report_data = b"r" * 64
        self.claims: dict[str, Any] = {
            "debug": False,
            "tcb_status": "UpToDate",
            "advisories": (),
            "security_version": 4,
            "platform_id": PLATFORM_IDS.get(tee, b""),
        }

    def policy(self, name: str = "main") -> Policy:
        return Policy((Rule.of(name, self.tee, self.rule),))

    def verified(self) -> VerifiedEvidence:
        claims = Claims(
            tee=self.tee,
            measurements=MappingProxyType(self.measurements),
            report_data=self.report_data,
            specific=MappingProxyType(self.specific),
            configuration_digest=CONFIGURATION.digest,
            **self.claims,
        )
        return VerifiedEvidence(claims, verified_at=NOW - 1, expires_at=NOW + 1000, proof=PROOF_OF_VERIFICATION)


@pytest.fixture(params=list(TeeType), ids=lambda tee: tee.value)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(scope="session")
def case_of() -> type[Case]:
    return Case
