"""Verify SGX and TDX quotes (spec/attestation.md, section 3): pure, of evidence, collateral, anchors and time.

dcap-qvl verifies signatures, paths, revocation and TCB levels, without its own policy (``claims_only``) and never with
its network client. What it leaves to its caller is checked here by hand, and so is what needs its own code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

import dcap_qvl

from cloister.attest.anchors import TrustAnchors
from cloister.attest.dcap import chain as paths
from cloister.attest.dcap.claims import claims_of, tcb_of
from cloister.attest.dcap.collateral import FILE, DcapCollateral, parse_collateral
from cloister.attest.dcap.collateral_check import check_kind, roots_of, signers
from cloister.attest.dcap.parse import parse
from cloister.attest.dcap.pck import PckPlatform, platform_of
from cloister.attest.dcap.quote import (
    SGX_DEBUG,
    SGX_EINITTOKEN_KEY,
    SGX_INIT,
    SGX_PROVISION_KEY,
    TD_DEBUG,
    TD_MIGRATABLE,
    TD_RESERVED,
    TD_SEPT_VE_DISABLE,
    TD_SERVICE_TD_EXTENSION,
    TD_UNDER_DEBUG,
    EnclaveReport,
    SgxQuote,
    TdReport,
    TdxQuote,
)
from cloister.attest.dcap.reasons import (
    ATTRIBUTES,
    COLLATERAL_SIGNATURES,
    QUOTE_SIGNATURE,
    QUOTING_ENCLAVE,
    TCB,
    Failure,
    classify,
)
from cloister.attest.steps import Steps
from cloister.attest.types import PROOF_OF_VERIFICATION, Collateral, Evidence, TeeType, VerifiedEvidence
from cloister.base.errors import InvalidInput, Refused, Tampered
from cloister.crypto.digest import same

_COMMON: Final = (
    ("parse", "attestation.md 3.1"),
    ("collateral", "attestation.md 3.5"),
    ("pck-chain", "attestation.md 3.4"),
    ("revocation", "attestation.md 3.4"),
    ("platform", "attestation.md 3.5"),
    (COLLATERAL_SIGNATURES, "attestation.md 3.5"),
    (QUOTING_ENCLAVE, "attestation.md 3.6"),
    (QUOTE_SIGNATURE, "attestation.md 3.7"),
)
SGX_PLAN: Final = (*_COMMON, (TCB, "attestation.md 3.8"), (ATTRIBUTES, "attestation.md 3.9"))
TDX_PLAN: Final = (
    *_COMMON,
    ("tdx-module", "attestation.md 3.10"),
    (TCB, "attestation.md 3.8"),
    (ATTRIBUTES, "attestation.md 3.10"),
)


def verify_sgx(
    evidence: Evidence, collateral: Collateral, anchors: TrustAnchors, now: float, steps: Steps
) -> VerifiedEvidence:
    """Verify an SGX quote (version 3).

    :param collateral: ``collateral.json``.
    :param now: Unix seconds; everything must hold at this moment.
    :raises InvalidInput: the quote or the collateral is malformed.
    :raises Tampered: a signature or a binding does not hold.
    :raises Refused: revoked, expired, of another platform, or with properties that no policy may allow.
    """
    steps.extend(SGX_PLAN)
    return _verify(TeeType.SGX, evidence, collateral, anchors, now, steps)


def verify_tdx(
    evidence: Evidence, collateral: Collateral, anchors: TrustAnchors, now: float, steps: Steps
) -> VerifiedEvidence:
    """Verify a TDX quote (versions 4 and 5, TD reports 1.0 and 1.5); see :func:`verify_sgx`."""
    steps.extend(TDX_PLAN)
    return _verify(TeeType.TDX, evidence, collateral, anchors, now, steps)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What dcap-qvl said: its claims, or its refusal."""

    claims: dict[str, Any]
    failure: Failure | None

    def at(self, step: str) -> None:
        """Raise the refusal if it belongs to this step."""
        if self.failure is not None and self.failure.step == step:
            raise self.failure.error


def _verify(  # noqa: PLR0917  # the two public functions with their kind of TEE
    tee: TeeType, evidence: Evidence, collateral: Collateral, anchors: TrustAnchors, now: float, steps: Steps
) -> VerifiedEvidence:
    with steps.step("parse"):
        quote = _parse(tee, evidence)
    with steps.step("collateral"):
        parts = _collateral(collateral)
        check_kind(tee, parts, now)
    roots = roots_of(anchors)
    with steps.step("pck-chain"):
        path = paths.pck_path(paths.read_chain(quote.signature.pck_chain, "the PCK chain"), roots, now)
        platform = platform_of(path.leaf)
    with steps.step("revocation"):
        root_crl = paths.read_crl(parts.root_ca_crl, path.root, now, "the root CRL")
        pck_crl = paths.read_crl(parts.pck_crl, path.issuer, now, "the PCK CRL")
        paths.check_revoked(root_crl, path.root, "root-revoked", "the Intel root")
        paths.check_revoked(root_crl, path.issuer, "pck-ca-revoked", "the PCK CA")
        paths.check_revoked(pck_crl, path.leaf, "pck-revoked", "the PCK certificate")
    with steps.step("platform"):
        _check_platform(parts, platform)
    with steps.step(COLLATERAL_SIGNATURES):
        signing = signers(parts, roots, root_crl, now)
        if any(root != path.root for _, root in signing):
            raise Refused("root-not-pinned", "the collateral's signers end in another root than the PCK chain")
        outcome = _run_dcap(evidence.body, parts, path, now)
        outcome.at(COLLATERAL_SIGNATURES)
    with steps.step(QUOTING_ENCLAVE):
        outcome.at(QUOTING_ENCLAVE)
        _check_qe(quote)
    with steps.step(QUOTE_SIGNATURE):
        outcome.at(QUOTE_SIGNATURE)
    if isinstance(quote, TdxQuote):
        with steps.step("tdx-module"):
            _check_module(quote.report)
    with steps.step(TCB):
        outcome.at(TCB)
    with steps.step(ATTRIBUTES):
        if isinstance(quote, TdxQuote):
            _check_td(quote.report)
        else:
            _check_enclave(quote.report)
        outcome.at(ATTRIBUTES)
        _check_agreement(outcome.claims, quote, platform)
        tcb = tcb_of(outcome.claims)
    windows = [
        paths.window_of(cert) for cert in (path.leaf, path.issuer, path.root, *(signer for signer, _ in signing))
    ]
    ends = [w.end for w in windows] + [paths.crl_window(crl).end for crl in (root_crl, pck_crl)]
    ends += [float(parts.tcb_info.window.next_update), float(parts.qe_identity.window.next_update)]
    claims = claims_of(quote, platform, tcb)
    return VerifiedEvidence(claims, verified_at=now, expires_at=min(ends), proof=PROOF_OF_VERIFICATION)


def _parse(tee: TeeType, evidence: Evidence) -> SgxQuote | TdxQuote:
    """Clauses 2.3 and 3.1."""
    if evidence.tee is not tee:
        raise Refused(
            "evidence-other-tee", f"evidence labelled {evidence.tee.value!r} is not for the {tee.value!r} verifier"
        )
    quote = parse(evidence.body)
    if isinstance(quote, TdxQuote) != (tee is TeeType.TDX):
        raise Refused("evidence-other-tee", f"evidence labelled {tee.value!r} holds a quote of the other Intel TEE")
    return quote


def _collateral(collateral: Collateral) -> DcapCollateral:
    data = collateral.files.get(FILE)
    if data is None:
        raise InvalidInput("collateral-missing", f"verification of an Intel quote needs {FILE!r}")
    return parse_collateral(data)


def _check_platform(parts: DcapCollateral, platform: PckPlatform) -> None:
    """Clause 3.5: FMSPC and PCE id; dcap-qvl compares the first only."""
    info = parts.tcb_info
    if info.fmspc != platform.fmspc:
        raise Refused("fmspc-mismatch", f"TCB info is of {info.fmspc.hex()}, the platform is {platform.fmspc.hex()}")
    if info.pce_id != platform.pce_id:
        raise Refused(
            "pce-id-mismatch", f"TCB info is of PCE {info.pce_id.hex()}, the platform has {platform.pce_id.hex()}"
        )


def _run_dcap(body: bytes, parts: DcapCollateral, path: paths.PckPath, now: float) -> _Outcome:
    """Clauses 3.4 to 3.8, by dcap-qvl; it is handed the very certificates that were read here."""
    document = json.loads(parts.encode())
    document["pck_certificate_chain"] = paths.pem((path.leaf, path.issuer, path.root))
    moment = max(int(now), 0)
    root = paths.der(path.root)
    try:
        material = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(document))
        policy = dcap_qvl.QuotePolicy.claims_only(moment)
        text = dcap_qvl.QuoteVerifier(root).verify_with_policy(body, material, moment, policy).to_json()
        return _Outcome(json.loads(text), None)
    except ValueError as error:
        return _Outcome({}, classify(str(error)))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a Rust panic is no Exception in Python
            raise
        return _Outcome({}, classify("the verifier gave up on these bytes"))


def _check_qe(quote: SgxQuote | TdxQuote) -> None:
    """Clause 3.6: all 64 bytes of the QE's report data; dcap-qvl compares the first 32 only."""
    data = quote.signature.qe_report.report_data
    expected = hashlib.sha256(quote.signature.attestation_key + quote.signature.qe_authentication_data).digest()
    if not same(data[:32], expected):
        raise Tampered("qe-key-not-bound", "the quoting enclave vouches for another attestation key")
    if any(data[32:]):
        raise Refused("qe-report-data", "the second half of the quoting enclave's report data is not zero")


def _check_enclave(report: EnclaveReport) -> None:
    """Clause 3.9."""
    for bit, wanted, code, what in (
        (SGX_DEBUG, False, "debug-enabled", "is in debug mode"),
        (SGX_INIT, True, "sgx-not-initialised", "is not initialised"),
        (SGX_PROVISION_KEY, False, "sgx-provision-key", "may derive the provisioning key"),
        (SGX_EINITTOKEN_KEY, False, "sgx-einittoken-key", "may derive the launch key"),
    ):
        if bool(report.flags & bit) is not wanted:
            raise Refused(code, f"the enclave {what} (ATTRIBUTES {report.flags:#x})")


def _check_module(report: TdReport) -> None:
    """Clause 3.10: the TDX module itself."""
    if any(report.mr_signer_seam):
        raise Refused("tdx-module-signer", "the TDX module is not Intel's (MRSIGNERSEAM is not zero)")
    if any(report.seam_attributes):
        raise Refused("tdx-module-attributes", f"SEAMATTRIBUTES is {report.seam_attributes.hex()}, not zero")


def _check_td(report: TdReport) -> None:
    """Clause 3.10: the TD's attributes."""
    value = report.td_attributes
    for bad, code, what in (
        (value & TD_DEBUG, "debug-enabled", "is in debug mode"),
        (value & TD_RESERVED, "td-reserved-attributes", "has reserved attributes"),
        (value & TD_UNDER_DEBUG, "td-under-debug", "can be observed by the host"),
        (value & TD_MIGRATABLE, "td-migratable", "may be migrated"),
        (value & TD_SERVICE_TD_EXTENSION, "td-service-td", "may be bound to service TDs"),
        (not value & TD_SEPT_VE_DISABLE, "td-sept-ve", "gets exceptions for pages that the host takes away"),
        (any(report.mr_service_td or b""), "td-service-td", "is bound to a service TD (MRSERVICETD is not zero)"),
    ):
        if bad:
            raise Refused(code, f"the TD {what} (TDATTRIBUTES {value:#x})")


def _check_agreement(claims: dict[str, Any], quote: SgxQuote | TdxQuote, platform: PckPlatform) -> None:
    """Two readers of one quote must have read the same: otherwise one verified what the other did not report."""
    pck = claims["platform"]["pck"]
    theirs = (bytes(pck["ppid"]), bytes(pck["fmspc"]), bytes(pck["pce_id"]), bytes(pck["cpu_svn"]), pck["pce_svn"])
    ours = (platform.ppid, platform.fmspc, platform.pce_id, platform.cpu_svn, platform.pce_svn)
    report = claims["report"]
    if isinstance(quote, TdxQuote):
        base = report.get("TD15Ex", {}).get("base") or report.get("TD15") or {}
        base = base.get("base") or report.get("TD10") or {}
        read = (base.get("mr_td"), base.get("report_data"), base.get("td_attributes"))
        here = (
            quote.report.mr_td.hex(),
            quote.report.report_data.hex(),
            quote.report.td_attributes.to_bytes(8, "little").hex(),
        )
    else:
        base = report.get("SgxEnclave") or {}
        read = (base.get("mr_enclave"), base.get("report_data"), base.get("mr_signer"))
        here = (quote.report.mr_enclave.hex(), quote.report.report_data.hex(), quote.report.mr_signer.hex())
    if theirs != ours or read != here:
        raise Tampered("dcap-disagreement", "two readers of this quote read different values from it")
