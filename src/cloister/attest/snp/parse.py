"""An SEV-SNP attestation report as bytes, to its fields (spec/attestation.md, clause 4.1).

Source: AMD, SEV Secure Nested Paging Firmware ABI Specification (56860), ATTESTATION_REPORT. Version 3 added the CPUID
fields, version 5 the mitigation vectors; where an older version has reserved bytes there, they must be zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.base.errors import InvalidInput

REPORT_SIZE: Final = 1184
SIGNED_SIZE: Final = 0x2A0
VERSIONS: Final = range(2, 6)
CPUID_VERSION: Final = 3
MITIGATION_VERSION: Final = 5
SIGNATURE_ALGORITHM: Final = 1  # ECDSA P-384 with SHA-384
VMPL_HOST: Final = 0xFFFFFFFF  # the host asked for the report, not the guest
VMPL_HIGHEST: Final = 3

POLICY_SMT: Final = 1 << 16
POLICY_RESERVED_ONE: Final = 1 << 17
POLICY_MIGRATE_MA: Final = 1 << 18
POLICY_DEBUG: Final = 1 << 19
POLICY_SINGLE_SOCKET: Final = 1 << 20
POLICY_CXL: Final = 1 << 21
POLICY_CIPHERTEXT_HIDING: Final = 1 << 24
POLICY_RESERVED_ZERO: Final = ((1 << 64) - 1) ^ ((1 << 26) - 1)

PLATFORM_SMT: Final = 1 << 0
PLATFORM_ALIAS_CHECK_COMPLETE: Final = 1 << 5

_COMPONENT: Final = 72  # bytes of R, and of S
_SIGNIFICANT: Final = 48


@dataclass(frozen=True, slots=True)
class FirmwareVersion:
    """Of the SEV firmware; ordered by (major, minor, build)."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True)
class SnpReport:
    """All fields of a report, by the names of the specification; nothing in it is believed yet.

    TCB versions stay 8 bytes, because their layout depends on the product (clause 4.6).

    :param signed: the bytes under the signature.
    :param signing_key: 0 VCEK, 1 VLEK, 7 none; others are reserved.
    :param cpuid_family, cpuid_model, cpuid_stepping: ``None`` in version 2.
    :param launch_mit_vector, current_mit_vector: ``None`` before version 5.
    :param r, s: of the signature, as integers.
    """

    signed: bytes
    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: int
    author_key_en: bool
    mask_chip_key: bool
    signing_key: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid_family: int | None
    cpuid_model: int | None
    cpuid_stepping: int | None
    chip_id: bytes
    committed_tcb: bytes
    current_version: FirmwareVersion
    committed_version: FirmwareVersion
    launch_tcb: bytes
    launch_mit_vector: int | None
    current_mit_vector: int | None
    r: int
    s: int


def parse(body: bytes) -> SnpReport:
    """Read a report.

    :raises InvalidInput: ``snp-report-length``, ``snp-report-version``, ``snp-signature-algorithm``,
        ``snp-reserved-not-zero``, ``snp-vmpl-range``, ``snp-signature-encoding``.
    """
    if len(body) != REPORT_SIZE:
        raise InvalidInput("snp-report-length", f"an SEV-SNP report has {REPORT_SIZE} bytes, this one {len(body)}")
    version = _u32(body, 0x000)
    if version not in VERSIONS:
        raise InvalidInput("snp-report-version", f"report version {version} is not understood; 2 to 5 are")
    algorithm = _u32(body, 0x034)
    if algorithm != SIGNATURE_ALGORITHM:
        raise InvalidInput("snp-signature-algorithm", f"signature algorithm {algorithm} is not ECDSA P-384 (1)")
    vmpl = _u32(body, 0x030)
    if vmpl > VMPL_HIGHEST and vmpl != VMPL_HOST:
        raise InvalidInput("snp-vmpl-range", f"VMPL {vmpl} is neither 0 to 3 nor the host's")
    flags = _u32(body, 0x048)
    has_cpuid = version >= CPUID_VERSION
    has_mitigations = version >= MITIGATION_VERSION
    if flags >> 5:
        raise InvalidInput("snp-reserved-not-zero", "reserved bits after SIGNING_KEY (0x48) are set")
    _zero(body, 0x04C, 0x050)
    _zero(body, 0x18B if has_cpuid else 0x188, 0x1A0)
    _zero(body, 0x1EB, 0x1EC)
    _zero(body, 0x1EF, 0x1F0)
    _zero(body, 0x208 if has_mitigations else 0x1F8, SIGNED_SIZE)
    _zero(body, SIGNED_SIZE + 2 * _COMPONENT, REPORT_SIZE)
    return SnpReport(
        signed=body[:SIGNED_SIZE],
        version=version,
        guest_svn=_u32(body, 0x004),
        policy=_u64(body, 0x008),
        family_id=body[0x010:0x020],
        image_id=body[0x020:0x030],
        vmpl=vmpl,
        current_tcb=body[0x038:0x040],
        platform_info=_u64(body, 0x040),
        author_key_en=bool(flags & 1),
        mask_chip_key=bool(flags & 2),
        signing_key=flags >> 2,
        report_data=body[0x050:0x090],
        measurement=body[0x090:0x0C0],
        host_data=body[0x0C0:0x0E0],
        id_key_digest=body[0x0E0:0x110],
        author_key_digest=body[0x110:0x140],
        report_id=body[0x140:0x160],
        report_id_ma=body[0x160:0x180],
        reported_tcb=body[0x180:0x188],
        cpuid_family=body[0x188] if has_cpuid else None,
        cpuid_model=body[0x189] if has_cpuid else None,
        cpuid_stepping=body[0x18A] if has_cpuid else None,
        chip_id=body[0x1A0:0x1E0],
        committed_tcb=body[0x1E0:0x1E8],
        current_version=FirmwareVersion(build=body[0x1E8], minor=body[0x1E9], major=body[0x1EA]),
        committed_version=FirmwareVersion(build=body[0x1EC], minor=body[0x1ED], major=body[0x1EE]),
        launch_tcb=body[0x1F0:0x1F8],
        launch_mit_vector=_u64(body, 0x1F8) if has_mitigations else None,
        current_mit_vector=_u64(body, 0x200) if has_mitigations else None,
        r=_component(body, SIGNED_SIZE, "R"),
        s=_component(body, SIGNED_SIZE + _COMPONENT, "S"),
    )


def _u32(body: bytes, at: int) -> int:
    return int.from_bytes(body[at : at + 4], "little")


def _u64(body: bytes, at: int) -> int:
    return int.from_bytes(body[at : at + 8], "little")


def _zero(body: bytes, start: int, end: int) -> None:
    if any(body[start:end]):
        raise InvalidInput("snp-reserved-not-zero", f"reserved bytes 0x{start:x} to 0x{end - 1:x} are not zero")


def _component(body: bytes, at: int, name: str) -> int:
    """R or S: little-endian, 48 significant bytes of 72 (clause 4.7)."""
    if any(body[at + _SIGNIFICANT : at + _COMPONENT]):
        raise InvalidInput("snp-signature-encoding", f"{name} of the signature has more than {_SIGNIFICANT} bytes")
    return int.from_bytes(body[at : at + _SIGNIFICANT], "little")
