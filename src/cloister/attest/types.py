"""Values of remote attestation, in RATS terms (RFC 9334), and the port that obtains evidence.

Types carry proof: :class:`Evidence` (bytes, believed by nobody) becomes :class:`VerifiedEvidence` only in a
verifier (signatures, chains, revocation), which becomes an :class:`Appraisal` only in ``appraise`` (claims against a
policy). ``access.decide`` takes nothing less, so a skipped step does not type-check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol, final

ClaimValue = int | str | bytes | bool | tuple[str, ...]

# Held by the verifiers, and by ``appraise``: whoever else writes one of these names skips a step, and a test finds it.
PROOF_OF_VERIFICATION: Final = object()
PROOF_OF_APPRAISAL: Final = object()


class TeeType(StrEnum):
    """The kinds of TEE whose evidence is understood; the value is the name in policies, claims and logs."""

    SGX = "sgx"
    TDX = "tdx"
    SEV_SNP = "sev-snp"
    NITRO = "nitro"
    SIMULATION = "insecure-simulation"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an attester produced: nothing in it is believed yet.

    :param body: SGX/TDX quote, SEV-SNP report, Nitro document or simulation token.
    :param endorsements: certificates that travelled with it (file name to bytes); as little believed as the body.
    """

    tee: TeeType
    body: bytes
    endorsements: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Collateral:
    """What verification needs beside the evidence, by file name, laid out as in a collateral directory.

    SGX and TDX: ``collateral.json``. SEV-SNP: ``vek.der``, ``ask_ark.pem``, ``crl.der``. Nitro, simulation: nothing.
    """

    files: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Claims:
    """What genuine evidence says, TEE-independent terms first (EAT, RFC 9711), the TEE's own beside them.

    :param measurements: name to digest: ``mrenclave, mrsigner`` | ``mrtd, rtmr0..3`` | ``measurement`` | ``pcr0..31``.
    :param configuration_digest: what the launcher gave as configuration, as it stands in the evidence: CONFIGID,
        MRCONFIGID, HOST_DATA, the digest of simulation; empty if that is zeros, or the TEE has no place for it (Nitro).
    :param report_data: what the attester bound, as it stands in the evidence (64 bytes; Nitro: ``user_data``).
    :param debug: whether the TEE's memory is open to the host.
    :param tcb_status: ``UpToDate``, ``OutOfDate``, ... for Intel; ``UpToDate`` elsewhere, where numbers decide.
    :param advisories: vendor advisories that apply, sorted.
    :param security_version: ISVSVN, GUEST_SVN or 0.
    :param platform_id: chip or PPID; empty where the TEE gives none.
    :param specific: the TEE's own claims, by its own names.
    """

    tee: TeeType
    measurements: Mapping[str, bytes]
    report_data: bytes
    debug: bool
    tcb_status: str
    advisories: tuple[str, ...]
    security_version: int
    platform_id: bytes
    specific: Mapping[str, ClaimValue]
    configuration_digest: bytes = field(kw_only=True)


@final
@dataclass(frozen=True, slots=True)
class VerifiedEvidence:
    """Evidence whose signatures, chains and revocation were verified at ``verified_at``; made by verifiers only.

    :param expires_at: the first moment at which something it rests on (certificate, CRL, collateral) runs out.
    :param parts: further verified evidence of the same workload (a GPU beside the CPU); the place is kept.
    """

    claims: Claims
    verified_at: float
    expires_at: float
    parts: tuple[VerifiedEvidence, ...] = ()
    proof: object = field(kw_only=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        """One that no verifier made is a programming error."""
        if self.proof is not PROOF_OF_VERIFICATION:
            msg = "a VerifiedEvidence is made by a verifier only"
            raise AssertionError(msg)


@dataclass(frozen=True, slots=True)
class Configuration:
    """The measured configuration of a service, as it stands in its evidence by digest.

    :param encoded: deterministic CBOR of the map; ``digest`` is SHA-256 over a context and these bytes.
    :param values: the map itself: TEE-independent names such as ``isolation``, ``co_tenancy``, ``bundle_root``.
    """

    encoded: bytes
    digest: bytes
    values: Mapping[str, ClaimValue]


@final
@dataclass(frozen=True, slots=True)
class Appraisal:
    """Verified claims that satisfied a policy; made by ``appraise`` only.

    :param policy_digest: which policy.
    :param rule: which of its rules, by name.
    :param warnings: what the policy left open by name (``AnyTcbStatus``, simulation, ...), for people.
    """

    claims: Claims
    configuration: Configuration
    policy_digest: bytes
    rule: str
    appraised_at: float
    expires_at: float
    warnings: tuple[str, ...] = ()
    proof: object = field(kw_only=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        """One that no appraisal made is a programming error."""
        if self.proof is not PROOF_OF_APPRAISAL:
            msg = "an Appraisal is made by appraise() only"
            raise AssertionError(msg)


class Attester(Protocol):
    """Port: obtains evidence inside the TEE. Adapters in ``cloister.adapters.tee``; fake in ``cloister.testing``."""

    @property
    def tee(self) -> TeeType: ...

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over exactly these 64 bytes.

        :raises Unavailable: ``evidence-unavailable`` when the device does not answer.
        :raises Tampered: ``evidence-device-lied`` when what comes back is not for these bytes.
        """


class CollateralSource(Protocol):
    """Port: collateral for evidence. Adapters: a directory, Intel PCS/PCCS, AMD KDS, a cache before them."""

    def collateral(self, evidence: Evidence) -> Collateral:
        """What verification of this evidence needs.

        :raises Unavailable: ``collateral-unavailable`` when the source is away and nothing valid is cached.
        :raises InvalidInput: ``collateral-malformed`` when what comes back is oversized or not what was asked.
        """


class Sealer(Protocol):
    """Port: keeps bytes for the same code with the same configuration on the same platform, across restarts."""

    def seal(self, plaintext: bytes) -> bytes:
        """Encrypt and authenticate to this measurement and configuration digest."""

    def unseal(self, data: bytes) -> bytes:
        """What was sealed.

        :raises Tampered: ``unseal-failed`` when it was sealed elsewhere, by other code, or changed.
        """
