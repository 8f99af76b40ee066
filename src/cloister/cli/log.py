"""Export a KeyService's log, check it offline, and see who could read what.

    cloister log export --out FILE [--leaves] [--as NAME]     what concerns you, opened, with proofs
    cloister log export --out FILE --keyservice URL           all leaves and the signed head; nothing is opened
    cloister log verify FILE [--keyservice-id HEX] [--bundle FILE --bundle-root HEX] [--earlier FILE] [--receipt FILE]
    cloister log show FILE [...as verify]

`verify` needs no network. Exit status: 0 everything checks, 1 something does not. An export never shows that nothing
else concerns you: the attested KeyService says that when it answers `cloister access log`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Final

from cloister.base.errors import InvalidInput
from cloister.base.ids import parse_id
from cloister.base.limits import MAX_BUNDLE, MAX_RECEIPT, MIB
from cloister.cli.account import add_account_options, open_client
from cloister.cli.files import read_file
from cloister.cli.output import Output
from cloister.log.export import OpenedEntry, VerifiedExport, verify_export, write_export

MAX_EXPORT: Final = 1024 * MIB  # of ten million entries and what was opened


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("action", choices=("export", "verify", "show"), help="what to do")
    parser.add_argument("file", nargs="?", type=Path, help="verify, show: an exported log")
    parser.add_argument("--out", type=Path, metavar="FILE", help="export: where to")
    parser.add_argument("--leaves", action="store_true", help="export: all leaves, so that histories can be compared")
    parser.add_argument("--keyservice", metavar="URL", help="export: of this KeyService, without an identity")
    parser.add_argument("--keyservice-id", metavar="HEX", help="verify: it must be this KeyService's log")
    parser.add_argument(
        "--bundle", type=Path, metavar="FILE", help="verify: its witnesses must have co-signed the head"
    )
    parser.add_argument("--bundle-root", metavar="HEX", help="verify: the key that signs the bundle")
    parser.add_argument(
        "--earlier", type=Path, action="append", default=[], metavar="FILE", help="verify: another export of the log"
    )
    parser.add_argument(
        "--receipt", type=Path, action="append", default=[], metavar="FILE", help="verify: a receipt you were given"
    )
    add_account_options(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    if args.action == "export":
        return _export(args, out)
    verified = _verify(args)
    return _show(verified, out) if args.action == "show" else _report(verified, out)


def _export(args: argparse.Namespace, out: Output) -> int:
    if args.out is None:
        raise InvalidInput("argument", "`cloister log export` needs --out FILE")
    opened: list[OpenedEntry] = []
    if args.keyservice:
        from cloister.adapters.clock import SystemClock
        from cloister.adapters.http.blocking import HttpClient
        from cloister.adapters.keyservice import HttpTransport, fetch_log

        http = HttpClient(SystemClock())
        try:
            header, leaves = fetch_log(HttpTransport(http, args.keyservice))
        finally:
            http.close()
    else:
        from cloister.client.audit import export_own

        with open_client(args) as client:
            header, leaves, opened = export_own(client, leaves=args.leaves)
    with args.out.open("wb") as file:
        for piece in write_export(header, leaves, opened):
            file.write(piece)
    out.result(
        {
            "file": str(args.out),
            "keyservice": header.keyservice.hex(),
            "entries": header.head.size,
            "opened": len(opened),
            "leaves": bool(leaves),
            "cosignatures": len(header.head.cosignatures),
        },
        f"{args.out}: {len(opened)} entries opened, of a log of {header.head.size}, "
        f"co-signed by {len(header.head.cosignatures)} witnesses",
    )
    return 0


def _verify(args: argparse.Namespace) -> VerifiedExport:
    from cloister.log.receipt import verify_receipt

    if args.file is None:
        raise InvalidInput("argument", f"`cloister log {args.action}` needs a FILE")
    witnesses, threshold = _witnesses(args)
    verified = _read(args.file, witnesses, threshold)
    wanted = args.keyservice_id
    if wanted is not None and parse_id(wanted, what="the KeyService's id") != verified.header.keyservice:
        raise InvalidInput("export-other", f"this is the log of KeyService {verified.header.keyservice.hex()}")
    for path in args.earlier:
        verified.check_same_history(_read(path, (), 0))
    for path in args.receipt:
        data = read_file(path, limit=MAX_RECEIPT, what="the receipt")
        verified.check_receipt(verify_receipt(data, verified.header.log_keys))
    return verified


def _read(path: Path, witnesses: tuple[bytes, ...], threshold: int) -> VerifiedExport:
    data = read_file(path, limit=MAX_EXPORT, what="the exported log")
    return verify_export(data, witnesses=witnesses, threshold=threshold)


def _witnesses(args: argparse.Namespace) -> tuple[tuple[bytes, ...], int]:
    if args.bundle is None:
        return (), 0
    from cloister.adapters.clock import SystemClock
    from cloister.attest.bundle import open_bundle

    root = parse_id(args.bundle_root or "", what="--bundle-root")
    data = read_file(args.bundle, limit=MAX_BUNDLE, what="the trust bundle")
    bundle = open_bundle(data, root, 0, SystemClock().now())
    return bundle.witnesses, bundle.witness_threshold


def _report(verified: VerifiedExport, out: Output) -> int:
    header = verified.header
    result: dict[str, object] = {
        "verdict": "genuine",
        "keyservice": header.keyservice.hex(),
        "entries": header.head.size,
        "root": header.head.root.hex(),
        "time": header.head.time,
        "leaves": verified.tree is not None,
        "opened": len(verified.entries),
        "log_keys": [key.hex() for key in header.log_keys.all],
        "cosigned": {item.key.hex(): item.time for item in verified.cosignatures},
    }
    lines = [
        f"the log of KeyService {header.keyservice.hex()}: {header.head.size} entries, {_when(header.head.time)}",
        f"  {len(verified.entries)} entries opened, each in the head",
        "  all leaves are there and make its root"
        if verified.tree
        else "  without leaves: histories cannot be compared",
        *(
            f"  its root was rotated at entry {item.size}, {_when(item.time)}: log key {item.key.hex()} from there on"
            for item in header.log_keys.certificates
        ),
        *(f"  co-signed by witness {item.key.hex()} at {_when(item.time)}" for item in verified.cosignatures),
    ]
    if not verified.cosignatures:
        lines.append("  no witness was asked for: say --bundle FILE --bundle-root HEX")
    out.result(result, "\n".join(lines))
    return 0


def _show(verified: VerifiedExport, out: Output) -> int:
    from cloister.client.audit import describe

    rows: list[dict[str, Any]] = [describe(index, entry) for index, entry in verified.entries]
    lines = [f"{row['index']:>6}  {_when(row['time'])}  {row['what']}" for row in rows]
    out.result({"keyservice": verified.header.keyservice.hex(), "events": rows}, "\n".join(lines) or "nothing opened")
    return 0


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
