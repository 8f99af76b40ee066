"""Make a KeyService's state directory from a backup, in an empty place.

Checks the whole file first: its order, its counts, its digest, the chain over its records. An old backup is a genuine
file, so ask those who know a later head of the log: the witnesses (--witness), or whoever keeps a receipt, an exported
log or another backup (--not-before-head). Where the root secret opens on this machine every record is opened, too;
elsewhere custodians or a running replica must bring it before `run` can start.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.base.errors import InvalidInput, Refused
from cloister.cli.keyservice import options
from cloister.cli.keyservice.terminal import Progress, progress_line
from cloister.cli.output import Output

if TYPE_CHECKING:
    from cloister.keyservice.backup.format import Header
    from cloister.keyservice.backup.judging import Known, Told
    from cloister.keyservice.backup.restoring import Inspected, Opened

_OTHER_KEY: Final = ("signature-invalid", "log-key-retired")
SUMMARY: Final = "make a state directory from a backup"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    options.add_state(parser)
    options.add_store(parser)
    parser.add_argument("--from", dest="backup", type=Path, required=True, metavar="FILE", help="the backup")
    parser.add_argument(
        "--not-before-head",
        action="append",
        default=[],
        metavar="FILE|SIZE:ROOT",
        help="refuse a backup whose log does not continue this head: of a receipt, an exported log or another backup, "
        "or as `status` prints it; may repeat",
    )
    parser.add_argument(
        "--witness",
        action="append",
        default=[],
        metavar="URL",
        help="refuse a backup that is behind what this witness co-signed; once for each",
    )
    parser.add_argument(
        "--behind",
        action="store_true",
        help="restore it even if witnesses are ahead: to be a replica that follows, or to be read",
    )
    options.add_tee(parser)
    options.add_keyservice_id(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    from cloister.keyservice.backup.restoring import inspect, restore_state
    from cloister.keyservice.offline import ROOT_FILE
    from cloister.keyservice.storage.place import store_place

    backup: Path = args.backup
    place = options.open_place_if_any(args)
    required: list[Known] = []
    told: list[Told] = []

    def known(header: Header) -> Sequence[Known]:
        required.extend(_required(args, progress, header))
        told.extend(_ask(args, header))
        return [*required, *(item.known for item in told if item.known is not None)]

    with progress_line(out) as progress:
        try:
            with backup.open("rb") as file:
                inspected = inspect(file, known, progress)
        except OSError as error:
            raise InvalidInput("file-unreadable", f"{backup} cannot be read: {error.strerror}") from error
        for item in required:
            inspected.require(item)
        behind = _behind(args, inspected, told)
        restored = restore_state(
            backup,
            inspected,
            args.state,
            root_file=args.state / ROOT_FILE,
            store=store_place(args.state, args.store) if args.store else None,
            sealer=place.tee.sealer if place.tee else None,
            clock=place.clock,
            progress=progress,
            catching_up=bool(place.settings.replicas),
        )
    protection = place.settings.rollback_protection if restored.opened else "unknown"
    out.result(
        {
            "state": str(args.state),
            "keyservice": inspected.header.keyservice.hex(),
            "entries": inspected.end.size,
            "root": inspected.root.hex(),
            "made_at": inspected.header.made_at,
            "opened": restored.opened is not None,
            "destroyed": restored.opened.destroyed if restored.opened else 0,
            "rollback_protection": protection,
            "behind": behind,
            "witnesses": {item.address: _word(item) for item in told},
        },
        "\n".join(_text(args, inspected, restored.opened, protection, _asked(told, behind))),
    )
    return 0


def _required(args: argparse.Namespace, progress: Progress, header: Header) -> Sequence[Known]:
    """What the operator knows of the log, before the backup is read."""
    wanted = options.keyservice_id(args.keyservice)
    if wanted is not None and wanted != header.keyservice:
        raise InvalidInput("backup-other", f"the backup is of KeyService {header.keyservice.hex()}")
    return [_head(text, progress, header) for text in args.not_before_head]


def _head(text: str, progress: Progress, header: Header) -> Known:
    from cloister.keyservice.backup.judging import MAX_HEAD, Known, is_backup, known_from_file, known_from_text
    from cloister.keyservice.backup.restoring import inspect

    path = Path(text)
    if not path.is_file():
        return known_from_text(text)
    try:
        with path.open("rb") as file:
            start = file.read(MAX_HEAD)
            if not is_backup(start):
                return known_from_file(text, start, header)
            file.seek(0)
            other = inspect(file, lambda _header: (), progress, what="compare")
    except OSError as error:
        raise InvalidInput("file-unreadable", f"{path} cannot be read: {error.strerror}") from error
    if other.header.keyservice != header.keyservice:
        raise InvalidInput("backup-other", f"{text} is of another KeyService than the backup")
    return Known(text, other.end.size, other.root)


def _ask(args: argparse.Namespace, header: Header) -> list[Told]:
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.http.blocking import HttpClient
    from cloister.adapters.witness import HttpWitness
    from cloister.keyservice.backup.judging import ask_witnesses

    client = HttpClient(SystemClock())
    try:
        ports = [(address, HttpWitness(client, address)) for address in args.witness]
        return ask_witnesses(ports, header)
    finally:
        client.close()


def _behind(args: argparse.Namespace, inspected: Inspected, told: list[Told]) -> int:
    """How many entries witnesses have that the backup has not; refuses it, unless that was said to be right."""
    behind = max((inspected.behind(item.known) for item in told if item.known is not None), default=0)
    if not args.behind and any(item.trouble in _OTHER_KEY for item in told):
        raise Refused(
            "backup-behind",
            "a witness shows a head that no log key of this backup signed: the root was rotated since, or it lies",
            hint="Look for a newer backup, and ask whoever runs the witness.",
        )
    if behind and not args.behind:
        raise Refused(
            "backup-behind",
            f"witnesses know {behind} entries more than this backup has: a KeyService on it would release and "
            "acknowledge nothing",
            hint="Look for a newer backup. With --behind it is restored all the same: a replica that follows one that "
            "leads catches up, and queries are answered.",
            details={"behind": str(behind)},
        )
    return behind


def _word(item: Told) -> str:
    if item.trouble:
        return item.trouble
    return str(item.known.size) if item.known is not None else "nothing yet"


def _asked(told: list[Told], behind: int) -> str:
    """What asking the witnesses gave, for a person; empty when none was asked."""
    if behind:
        return f"It is {behind} entries behind: it releases and acknowledges nothing until it has followed."
    answered = sum(not item.trouble for item in told)
    return f"{answered} of {len(told)} witnesses answered, and know no later head of its log." if told else ""


def _text(
    args: argparse.Namespace, inspected: Inspected, opened: Opened | None, protection: str, asked: str
) -> list[str]:
    lines = [f"{args.state}: the KeyService {inspected.header.keyservice.hex()} with {inspected.end.size} entries"]
    if opened is None:
        lines.append(
            "  The root secret is not here, or does not open here: nothing was decrypted. Before it can run, "
            "custodians (`recover`) or a running replica (`join`) must bring it."
        )
    else:
        lines.append("  Every record was opened in its place, and the log was replayed.")
        if opened.destroyed:
            lines.append(f"  {opened.destroyed} keys whose time is over were destroyed again.")
    if asked:
        lines.append(f"  {asked}")
    elif protection == "none":
        lines.append(
            "  WARNING: rollback_protection is none. If this is not the newest backup, only callers that saw more will "
            "notice: revocations since then are undone."
        )
    elif not args.not_before_head:
        lines.append(
            "  Whether it is the newest, nobody was asked: say --witness URL, or look at `status` once it runs."
        )
    return lines
