"""Arguments and files of commands that look at evidence: evidence, collateral, trust anchors, time."""

from __future__ import annotations

import argparse
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cloister.adapters.clock import SystemClock
from cloister.adapters.collateral.configured import VENDORS, open_collateral
from cloister.adapters.collateral.subject import subject_of
from cloister.attest.anchors import TrustAnchors, production_anchors
from cloister.attest.configuration import decode_configuration
from cloister.attest.snp.certificates import CERT_TABLE, cert_table
from cloister.attest.snp.parse import REPORT_SIZE
from cloister.attest.types import Claims, Collateral, Configuration, Evidence, TeeType
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.limits import MAX_COLLATERAL, MAX_CONFIGURATION, MAX_EVIDENCE
from cloister.cli.files import read_file
from cloister.crypto.sign import PUBLIC_KEY_LENGTH

TEES: Final = {"simulation": TeeType.SIMULATION} | {tee.value: tee for tee in TeeType if tee is not TeeType.SIMULATION}

# what a collateral directory may hold for each TEE; other files in it are not looked at
_COLLATERAL: Final[dict[TeeType, tuple[str, ...]]] = {
    TeeType.SGX: ("collateral.json",),
    TeeType.TDX: ("collateral.json",),
    TeeType.SEV_SNP: ("vek.der", "ask_ark.pem", "crl.der"),
    TeeType.NITRO: (),
    TeeType.SIMULATION: (),
}


@dataclass(frozen=True, slots=True)
class Presented:
    """What was given on the command line, read but not believed.

    :param problem: what already speaks against it, with the step it belongs to: the arguments can be used, the evidence
        is longer than any, or the service that was named has no collateral for it.
    """

    evidence: Evidence
    collateral: Collateral
    anchors: TrustAnchors
    configuration: Configuration | None
    now: float
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A step that failed before verification."""

    step: str
    error: CloisterError
    clause: str


def add_evidence_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``--tee --evidence --collateral --configuration --at --insecure-simulation-key``.

    :param required: whether ``--tee`` and ``--evidence`` must be given.
    """
    parser.add_argument("--tee", required=required, choices=[*TEES], help="the kind of TEE that the evidence is of")
    parser.add_argument(
        "--evidence", required=required, type=Path, metavar="FILE", help="quote, report, document or token"
    )
    parser.add_argument(
        "--collateral",
        metavar="SOURCE",
        help="folder with collateral.json (sgx, tdx) or vek.der, ask_ark.pem and crl.der (sev-snp); or a bundle file; "
        "or `vendors`, or the address of a PCCS, to ask for it",
    )
    parser.add_argument(
        "--configuration", type=Path, metavar="FILE", help="the service's configuration, for rules that ask for one"
    )
    parser.add_argument("--at", type=float, metavar="UNIX", help="verify as of this time; default: now")
    parser.add_argument(
        "--insecure-simulation-key",
        action="append",
        default=[],
        metavar="HEX",
        help="accept insecure-simulation evidence of this key; it protects nothing",
    )


def read_presented(args: argparse.Namespace) -> Presented:
    """Read what the arguments name.

    :raises InvalidInput: ``file-unreadable``, ``argument``, ``file-too-long`` (of what is not evidence), and the codes
        of configurations.
    """
    if args.at is not None and not 0 <= args.at < 2**40:
        raise InvalidInput("argument", f"--at {args.at} is no Unix time")
    tee = TEES[args.tee]
    evidence, problem = Evidence(tee, b""), None
    try:
        evidence = evidence_of(tee, read_file(args.evidence, limit=MAX_EVIDENCE, what="evidence"))
    except InvalidInput as error:
        if error.code != "file-too-long":
            raise
        problem = Problem("parse", InvalidInput("evidence-too-long", error.message), "attestation.md 2.1")
    names = _COLLATERAL[tee]
    if names and args.collateral is None and not evidence.endorsements:
        raise InvalidInput("argument", f"evidence of {tee} needs --collateral DIR with {', '.join(names)}")
    configuration = None
    if args.configuration is not None:
        configuration = decode_configuration(
            read_file(args.configuration, limit=MAX_CONFIGURATION, what="configuration")
        )
    collateral = Collateral()
    try:
        collateral = _collateral(args.collateral, evidence)
    except Unavailable as error:
        problem = problem or Problem("collateral", error, "attestation.md 2.7")
    return Presented(
        evidence=evidence,
        collateral=collateral,
        anchors=anchors_of(args),
        configuration=configuration,
        now=SystemClock().now() if args.at is None else args.at,
        problem=problem,
    )


def evidence_of(tee: TeeType, data: bytes) -> Evidence:
    """A file's bytes as evidence: behind an SEV-SNP report the host's certificate table may stand.

    That is how tools write the answer to an extended guest request. The report itself is read as strictly as ever.
    """
    table = data[REPORT_SIZE:]
    if tee is TeeType.SEV_SNP and table:
        with suppress(InvalidInput):
            if cert_table(table):
                return Evidence(tee, data[:REPORT_SIZE], MappingProxyType({CERT_TABLE: table}))
    return Evidence(tee, data)


def anchors_of(args: argparse.Namespace) -> TrustAnchors:
    """The vendors' roots, and the simulation keys that were named.

    :raises InvalidInput: ``argument``.
    """
    keys = tuple(from_hex(text, "--insecure-simulation-key") for text in args.insecure_simulation_key)
    if any(len(key) != PUBLIC_KEY_LENGTH for key in keys):
        raise InvalidInput("argument", f"--insecure-simulation-key: a key has {PUBLIC_KEY_LENGTH} bytes")
    return production_anchors().with_simulation(keys)


def _collateral(source: str | None, evidence: Evidence) -> Collateral:
    """:raises Unavailable: ``collateral-unavailable`` of a service or bundle.

    :raises InvalidInput: the source cannot be used.
    """
    if source is None:
        return Collateral()
    path = Path(source)
    if source == VENDORS or source.startswith(("http://", "https://")) or path.is_file():
        # A service's clock is the machine's, whatever --at says: it gives what is valid now.
        opened = open_collateral(source, production_anchors(), SystemClock())
        return opened.collateral(evidence) if _names_a_platform(evidence) else Collateral()
    if not path.is_dir():
        raise InvalidInput("argument", f"--collateral {path} is neither a folder nor a bundle file")
    files = {
        name: read_file(path / name, limit=MAX_COLLATERAL, what="collateral")
        for name in _COLLATERAL[evidence.tee]
        if (path / name).exists()
    }
    return Collateral(files)


def _names_a_platform(evidence: Evidence) -> bool:
    """Of what is no evidence nobody has collateral; the verifier says what is wrong with it."""
    try:
        subject_of(evidence)
    except InvalidInput:
        return False
    return True


def from_hex(text: str, what: str) -> bytes:
    """Bytes of hexadecimal text.

    :raises InvalidInput: ``argument``.
    """
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise InvalidInput("argument", f"{what} is not hexadecimal text") from error


def claims_json(claims: Claims) -> dict[str, object]:
    """Claims for JSON: bytes as hexadecimal text."""
    return {
        "tee": claims.tee.value,
        "measurements": {name: value.hex() for name, value in claims.measurements.items()},
        "configuration_digest": claims.configuration_digest.hex(),
        "report_data": claims.report_data.hex(),
        "debug": claims.debug,
        "tcb_status": claims.tcb_status,
        "advisories": list(claims.advisories),
        "security_version": claims.security_version,
        "platform_id": claims.platform_id.hex(),
        "specific": {name: _json(value) for name, value in sorted(claims.specific.items())},
    }


def _json(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return list(value) if isinstance(value, tuple) else value
