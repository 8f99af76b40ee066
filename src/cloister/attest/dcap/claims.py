"""Claims of a verified quote, in the TEE-independent form and with Intel's own beside (``attest/claim_names.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from cloister.attest import claim_names as names
from cloister.attest.dcap.pck import PckPlatform
from cloister.attest.dcap.quote import SGX_DEBUG, TD_DEBUG, SgxQuote, TdxQuote
from cloister.attest.types import Claims, ClaimValue, TeeType
from cloister.base.errors import Refused

# every status Intel defines but Revoked, which dcap-qvl and this module refuse (clause 3.8)
STATUSES: Final = frozenset(
    {
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "TDRelaunchAdvised",
        "TDRelaunchAdvisedConfigurationNeeded",
    }
)


@dataclass(frozen=True, slots=True)
class Tcb:
    """Where the platform, its quoting enclave and its TDX module stand.

    :param advisories: of all of them, also of the running TDX module where it differs from the one at launch.
    :param evaluation_number: the smaller of TCB info's and QE identity's.
    :param date: Unix time of the matched level.
    """

    status: str
    advisories: tuple[str, ...]
    evaluation_number: int
    date: int


def tcb_of(claims: dict[str, Any]) -> Tcb:
    """Read dcap-qvl's verdict, and look at the status again.

    :raises Refused: ``tcb-revoked``, ``tcb-status-unknown``.
    """
    verdict, platform, qe = claims["tcb"], claims["platform"], claims["qe"]
    levels = [platform["tcb_level"], platform["current_tcb_level"] or {}, qe["tcb_level"]]
    statuses = [verdict["status"], *(level["tcbStatus"] for level in levels if level)]
    if "Revoked" in statuses:
        raise Refused("tcb-revoked", "Intel has revoked this platform's security version")
    if unknown := [status for status in statuses if status not in STATUSES]:
        raise Refused("tcb-status-unknown", f"TCB status {str(unknown[0])[:64]!r} is not one that Intel defines")
    advisories = {*verdict["advisory_ids"], *(name for level in levels for name in level.get("advisoryIDs", ()))}
    return Tcb(
        status=verdict["status"],
        advisories=tuple(sorted(advisories)),
        evaluation_number=verdict["eval_data_number"],
        date=platform["tcb_date_tag"],
    )


def claims_of(quote: SgxQuote | TdxQuote, platform: PckPlatform, tcb: Tcb) -> Claims:
    """Claims of a quote whose every signature was verified."""
    specific: dict[str, ClaimValue] = {
        names.QUOTE_VERSION: quote.header.version,
        names.FMSPC: platform.fmspc,
        names.PCE_ID: platform.pce_id,
        names.TCB_EVALUATION_DATA_NUMBER: tcb.evaluation_number,
        names.TCB_DATE: tcb.date,
    }
    optional: dict[str, ClaimValue | None] = {
        names.SMT: platform.smt,
        names.DYNAMIC_PLATFORM: platform.dynamic_platform,
        names.CACHED_KEYS: platform.cached_keys,
        names.PLATFORM_INSTANCE_ID: platform.instance_id,
    }
    if isinstance(quote, TdxQuote):
        optional[names.TD_TEE_TCB_SVN2] = quote.report.tee_tcb_svn2
        specific |= _td(quote)
        measurements = {"mrtd": quote.report.mr_td, **{f"rtmr{i}": value for i, value in enumerate(quote.report.rtmr)}}
        debug, configuration = bool(quote.report.td_attributes & TD_DEBUG), quote.report.mr_config_id
    else:
        specific |= _enclave(quote)
        measurements = {"mrenclave": quote.report.mr_enclave, "mrsigner": quote.report.mr_signer}
        debug, configuration = bool(quote.report.flags & SGX_DEBUG), quote.report.config_id
    specific |= {name: value for name, value in optional.items() if value is not None}
    return Claims(
        tee=TeeType.TDX if isinstance(quote, TdxQuote) else TeeType.SGX,
        measurements=MappingProxyType(measurements),
        report_data=quote.report.report_data,
        debug=debug,
        tcb_status=tcb.status,
        advisories=tcb.advisories,
        security_version=0 if isinstance(quote, TdxQuote) else quote.report.isv_svn,
        platform_id=platform.ppid,
        specific=MappingProxyType(specific),
        configuration_digest=configuration if any(configuration) else b"",
    )


def _td(quote: TdxQuote) -> dict[str, ClaimValue]:
    report = quote.report
    return {
        names.TD_REPORT: report.version,
        names.TD_ATTRIBUTES: report.td_attributes,
        names.TD_XFAM: report.xfam,
        names.TD_CONFIG_ID: report.mr_config_id,
        names.TD_OWNER: report.mr_owner,
        names.TD_OWNER_CONFIG: report.mr_owner_config,
        names.TD_SEAM: report.mr_seam,
        names.TD_TEE_TCB_SVN: report.tee_tcb_svn,
    }


def _enclave(quote: SgxQuote) -> dict[str, ClaimValue]:
    report = quote.report
    return {
        names.SGX_FLAGS: report.flags,
        names.SGX_XFRM: report.xfrm,
        names.SGX_MISC_SELECT: report.misc_select,
        names.SGX_PRODUCT_ID: report.product_id,
        names.SGX_EXTENDED_PRODUCT_ID: report.extended_product_id,
        names.SGX_FAMILY_ID: report.family_id,
        names.SGX_CONFIG_ID: report.config_id,
        names.SGX_CONFIG_SVN: report.config_svn,
    }
