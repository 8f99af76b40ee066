"""Export a KeyService's log, check it offline, and see who could read what.

    cloister log export --out FILE [--leaves] [--as NAME]     what concerns you, opened, with proofs
    cloister log export --out FILE --keyservice URL           all leaves and the signed head; nothing is opened
    cloister log export --out FILE --all --as AUDITOR         all of it, for an auditor that the KeyService names
    cloister log verify FILE [--keyservice-id HEX] [--bundle FILE --bundle-root HEX] [--earlier FILE] [--receipt FILE]
    cloister log show FILE [...as verify]                     what happened, entry by entry
    cloister log readers FILE [...as verify]                  who could read what, when, by which policies and code

`verify` needs no network. Exit status: 0 everything checks, 1 something does not. Where the whole log is opened it is
also replayed: every statement must be signed and allowed, every release must stand under a grant and a consent. An
export of one party never shows that nothing else concerns it: the attested KeyService says that (`access log`).
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from cloister.base.errors import InvalidInput
from cloister.base.ids import parse_id
from cloister.base.limits import MAX_BUNDLE, MAX_RECEIPT, MIB
from cloister.cli.account import add_account_options, open_client
from cloister.cli.files import read_file
from cloister.cli.output import Output
from cloister.cli.progress import progress_bars
from cloister.log.export import ExportHeader, OpenedEntry, VerifiedExport, verify_export, write_export

if TYPE_CHECKING:
    from cloister.keyservice.state.audit import Audit

MAX_EXPORT: Final = 1024 * MIB  # of ten million entries and what was opened


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("action", choices=("export", "verify", "show", "readers"), help="what to do")
    parser.add_argument("file", nargs="?", type=Path, help="verify, show, readers: an exported log")
    parser.add_argument("--out", type=Path, metavar="FILE", help="export: where to")
    parser.add_argument("--leaves", action="store_true", help="export: all leaves, so that histories can be compared")
    parser.add_argument(
        "--all", action="store_true", help="export: the whole log, opened; for auditors that its KeyService names"
    )
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
    report = {"show": _show, "readers": _readers, "verify": _report}[args.action]
    return report(verified, out)


def _export(args: argparse.Namespace, out: Output) -> int:
    if args.out is None:
        raise InvalidInput("argument", "`cloister log export` needs --out FILE")
    if args.keyservice and args.all:
        raise InvalidInput("argument", "--all needs an auditor's identity, and --keyservice asks without one")
    with ExitStack() as stack:
        header, leaves, opened = _exported(args, stack)
        show = stack.enter_context(progress_bars(out))
        file = stack.enter_context(_whole_file(args.out))
        count = 0

        def counted() -> Iterator[OpenedEntry]:
            nonlocal count
            for count, item in enumerate(opened, 1):  # said at the end
                if args.all and not count % 256:
                    show("entries", count, header.head.size)
                yield item

        for piece in write_export(header, leaves, counted()):
            file.write(piece)
    out.result(
        {
            "file": str(args.out),
            "keyservice": header.keyservice.hex(),
            "entries": header.head.size,
            "opened": count,
            "leaves": bool(leaves),
            "cosignatures": len(header.head.cosignatures),
        },
        f"{args.out}: {count} entries opened, of a log of {header.head.size}, "
        f"co-signed by {len(header.head.cosignatures)} witnesses",
    )
    return 0


def _exported(args: argparse.Namespace, stack: ExitStack) -> tuple[ExportHeader, bytes, Iterable[OpenedEntry]]:
    if args.keyservice:
        from cloister.adapters.clock import SystemClock
        from cloister.adapters.http.blocking import HttpClient
        from cloister.adapters.keyservice import HttpTransport, fetch_log

        http = HttpClient(SystemClock())
        stack.callback(http.close)
        return *fetch_log(HttpTransport(http, args.keyservice)), ()
    from cloister.client.audit import export_all, export_own

    client = stack.enter_context(open_client(args))
    return export_all(client) if args.all else export_own(client, leaves=args.leaves)


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """The file, which is there when everything was written to it, and not otherwise."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
    audited = _audited(verified)
    if audited is not None:
        result["audit"] = {
            "statements": audited.statements,
            "releases": audited.releases,
            "findings": [dataclasses.asdict(finding) for finding in audited.findings],
        }
    if audited and audited.findings:
        result["verdict"] = "against the rules"
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
    if audited is not None:
        good = not audited.findings
        lines.append(
            f"  replayed: {audited.statements} statements, each signed and allowed, and {audited.releases} releases, "
            "each under a grant and a consent"
            if good
            else f"  AGAINST THE RULES: {len(audited.findings)} findings"
        )
        lines += [f"    entry {found.index}: {found.what} [{found.code}]" for found in audited.findings]
    out.result(result, "\n".join(lines))
    return 1 if audited and audited.findings else 0


def _audited(verified: VerifiedExport) -> Audit | None:
    """Replayed, where everything was opened."""
    if not verified.entries or len(verified.entries) != verified.header.head.size:
        return None
    from cloister.keyservice.state.audit import audit

    return audit(verified.entries, verified.header.keyservice)


def _show(verified: VerifiedExport, out: Output) -> int:
    from cloister.client.audit import describe

    rows: list[dict[str, Any]] = [describe(index, entry) for index, entry in verified.entries]
    lines = [f"{row['index']:>6}  {_when(row['time'])}  {row['what']}" for row in rows]
    out.result({"keyservice": verified.header.keyservice.hex(), "events": rows}, "\n".join(lines) or "nothing opened")
    return 0


def _readers(verified: VerifiedExport, out: Output) -> int:
    from cloister.client.audit import readers

    rows = readers(verified.entries)
    lines: list[str] = []
    for row in rows:
        owner, _, name = row["model"].partition("/")
        code = ", ".join(f"{name} {value[:16]}..." for name, value in row["measurements"].items())
        lines += [
            f"user {row['user'][:12]}...  model {owner[:12]}.../{name} version {row['version']}",
            f"  {_when(row['first'])} to {_when(row['until'])}, {row['releases']} releases",
            f"  on {row['tee']} {code}, configuration {row['configuration'][:16]}...",
            f"  by the owner's policy {row['owner_policy'][:16]}... and the user's {row['user_policy'][:16]}...",
        ]
    out.result({"keyservice": verified.header.keyservice.hex(), "readers": rows}, "\n".join(lines) or "nobody")
    return 0


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
