"""Collateral in one file, for places without a network.

cloister collateral bundle ...     fetch, or take from a folder, what the verification of evidence needs
cloister collateral show FILE      what a bundle holds, and until when
cloister collateral verify FILE    check every part of a bundle against the vendors' roots

A bundle is given to `cloister verify --collateral FILE`, and to services in place of the vendors' addresses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cloister.adapters.clock import SystemClock
from cloister.adapters.collateral.amd_kds import AMD, AmdKds
from cloister.adapters.collateral.bundle import (
    Bundle,
    Entry,
    check_bundle,
    make_bundle,
    parse_bundle,
    write_atomically,
)
from cloister.adapters.collateral.directory import FILES, DirectoryCollateral
from cloister.adapters.collateral.fetch import Fetcher
from cloister.adapters.collateral.intel_pcs import INTEL, IntelPcs
from cloister.adapters.collateral.subject import AmdSubject, certificate_der, subject_of
from cloister.adapters.collateral.vendors import VendorCollateral
from cloister.attest.anchors import production_anchors
from cloister.attest.snp.certificates import VEK_FILE, Signer
from cloister.attest.types import CollateralSource, Evidence
from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_COLLATERAL_BUNDLE, MAX_EVIDENCE
from cloister.cli.evidence import evidence_of
from cloister.cli.files import read_file
from cloister.cli.output import Output, show_error

_TEES = {tee.value: tee for tee, files in FILES.items() if files}


def configure(parser: argparse.ArgumentParser) -> None:
    """The sub-commands of ``cloister collateral``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
    common.add_argument("--at", type=float, metavar="UNIX", help="as of this time; default: now")
    bundle = actions.add_parser("bundle", parents=[common], help="make a bundle for the platforms of some evidence")
    bundle.add_argument("--output", required=True, type=Path, metavar="FILE", help="the bundle to write")
    bundle.add_argument(
        "--evidence",
        required=True,
        action="append",
        metavar="TEE:FILE",
        help=f"evidence of a platform ({', '.join(_TEES)}); may be given several times",
    )
    bundle.add_argument("--directory", type=Path, metavar="DIR", help="take the collateral from here; no network")
    bundle.add_argument("--intel-service", default=INTEL, metavar="URL", help=f"PCS or PCCS; default: {INTEL}")
    bundle.add_argument("--amd-service", default=AMD, metavar="URL", help=f"KDS; default: {AMD}")
    bundle.add_argument("--ca-file", type=Path, metavar="FILE", help="certificate authorities of a service of your own")
    show = actions.add_parser("show", parents=[common], help="what a bundle holds; nothing is verified")
    show.add_argument("file", type=Path, metavar="FILE")
    check = actions.add_parser("verify", parents=[common], help="check every part of a bundle")
    check.add_argument("file", type=Path, metavar="FILE")


def run(args: argparse.Namespace, out: Output) -> int:
    """Run one of them."""
    now = SystemClock().now() if args.at is None else args.at
    try:
        if not 0 <= now < 2**40:
            raise InvalidInput("argument", f"--at {args.at} is no Unix time")
        job = _job(args, now, out)
    except InvalidInput as error:
        show_error(error, as_json=out.as_json)
        return 2
    return job()


def _job(args: argparse.Namespace, now: float, out: Output) -> Callable[[], int]:
    """What to do, once the arguments and the files they name have been read."""
    if args.action == "bundle":
        evidence, source = _evidence(args), _source(args)
        return lambda: _bundle(args.output, evidence, source, now=now, out=out)
    bundle = parse_bundle(read_file(args.file, limit=MAX_COLLATERAL_BUNDLE, what="bundle"))
    return lambda: (_show if args.action == "show" else _verify)(bundle, now, out)


def _evidence(args: argparse.Namespace) -> tuple[Evidence, ...]:
    found = []
    for text in args.evidence:
        name, _, path = text.partition(":")
        if name not in _TEES or not path:
            raise InvalidInput("argument", f"--evidence {text!r} is not TEE:FILE with a TEE of {', '.join(_TEES)}")
        found.append(evidence_of(_TEES[name], read_file(Path(path), limit=MAX_EVIDENCE, what="evidence")))
    if args.directory is not None and len(found) != 1:
        raise InvalidInput("argument", "--directory holds the collateral of one platform: give one --evidence")
    return tuple(found)


def _source(args: argparse.Namespace) -> CollateralSource:
    if args.directory is not None:
        return DirectoryCollateral(args.directory)
    fetcher = Fetcher(ca_file=args.ca_file)
    return VendorCollateral(
        intel=IntelPcs(fetcher, base=args.intel_service), amd=AmdKds(fetcher, base=args.amd_service)
    )


def _bundle(path: Path, evidence: tuple[Evidence, ...], source: CollateralSource, *, now: float, out: Output) -> int:
    entries: dict[str, Entry] = {}
    for item in evidence:
        subject = subject_of(item)
        if subject is None or subject.key in entries:
            continue
        collateral = source.collateral(item)
        if isinstance(subject, AmdSubject) and subject.signer is Signer.VLEK and VEK_FILE in collateral.files:
            subject = replace(subject, vek=certificate_der(collateral.files[VEK_FILE]))  # which is what names it
        entries[subject.key] = Entry(subject.key, int(now), collateral)
    bundle = make_bundle(entries.values(), production_anchors(), now)
    write_atomically(path, bundle.encode())
    out.result(
        {"file": str(path), "expires_at": bundle.expires_at, "entries": [entry.subject for entry in bundle.entries]},
        f"{path}: {len(bundle.entries)} platforms, valid until {_date(bundle.expires_at)}",
    )
    return 0


def _show(bundle: Bundle, now: float, out: Output) -> int:
    out.result(
        {
            "made_at": bundle.made_at,
            "expires_at": bundle.expires_at,
            "verified": False,
            "entries": [
                {
                    "subject": entry.subject,
                    "tee": entry.tee.value,
                    "fetched_at": entry.fetched_at,
                    "files": {name: len(data) for name, data in sorted(entry.collateral.files.items())},
                }
                for entry in bundle.entries
            ],
        },
        "\n".join(
            [
                f"made {_date(bundle.made_at)}, says it is valid until {_date(bundle.expires_at)}",
                *(f"{entry.subject}, fetched {_date(entry.fetched_at)}" for entry in bundle.entries),
            ]
        ),
    )
    if bundle.expires_at < now:
        out.line("warning: it has run out; make a new one")
    out.line("nothing was verified: see `cloister collateral verify`")
    return 0


def _verify(bundle: Bundle, now: float, out: Output) -> int:
    reports = check_bundle(bundle, production_anchors(), now)
    good = [report for report in reports if report.problem is None]
    lines = [
        f"PASS  {report.subject}: valid until {_date(report.expires_at or 0)}"
        if report.problem is None
        else f"FAIL  {report.subject}: {report.problem.message} [{report.problem.code}]"
        for report in reports
    ]
    ends = [report.expires_at for report in good if report.expires_at is not None]
    out.result(
        {
            "verdict": "accepted" if len(good) == len(reports) else "refused",
            "expires_at": int(min(ends)) if ends and len(good) == len(reports) else None,
            "entries": [
                {
                    "subject": report.subject,
                    "verdict": "PASS" if report.problem is None else "FAIL",
                    "code": "ok" if report.problem is None else report.problem.code,
                    "expires_at": None if report.expires_at is None else int(report.expires_at),
                }
                for report in reports
            ],
        },
        "\n".join(lines),
    )
    return 0 if len(good) == len(reports) else 1


def _date(seconds: float) -> str:
    moment = datetime.fromtimestamp(0, UTC) + timedelta(seconds=int(seconds))
    return moment.strftime("%Y-%m-%d %H:%M UTC")
