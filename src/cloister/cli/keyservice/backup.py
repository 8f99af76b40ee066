"""Copy a KeyService's store to one file, while it runs or while it is stopped.

One that runs writes the backup itself, and says so to nobody but its state directory's owner. For one that is stopped
its TEE is needed, as for `run`. The file holds what lies on the disk: encrypted records, and the root secret as it is
sealed to this platform. Only this KeyService can read it.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.base.errors import CloisterError, Unavailable
from cloister.base.limits import MIB
from cloister.cli.keyservice import options
from cloister.cli.keyservice.terminal import Progress, progress_line
from cloister.cli.output import Output

if TYPE_CHECKING:
    from cloister.adapters.http.blocking import BlockingAnswer, HttpClient
    from cloister.keyservice.backup.writing import Written
    from cloister.keyservice.ledger import Ledger
    from cloister.wire.calls import LogHead

SUMMARY: Final = "copy its store to one file"
_READ: Final = MIB
_STDOUT: Final = Path("-")


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    options.add_state(parser)
    options.add_store(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="where to, `-` for standard output; nothing is overwritten",
    )
    options.add_control(parser)
    options.add_tee(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.http.blocking import HttpClient
    from cloister.keyservice.backup.writing import BackupHistory

    state: Path = args.state
    clock, control = SystemClock(), options.control_origin(args)
    client = HttpClient(clock)
    try:
        with progress_line(out) as progress:
            running = options.control_answers(client, control)
            if running:
                written = _from_running(client, control, args.out, progress)
            else:
                written = _from_stopped(args, progress)
                BackupHistory(state).note(int(clock.now()), written.end.size)
    finally:
        client.close()
    if args.out == _STDOUT:
        return 0
    head = written.header.head
    out.result(
        {
            "file": str(args.out),
            "keyservice": written.header.keyservice.hex(),
            "entries": written.end.size,
            "secrets": written.end.secrets,
            "bytes": written.bytes,
            "made_at": written.header.made_at,
            "confirmed": None if head is None else head.size,
            "sealed_root": bool(written.header.root),
            "digest": written.end.digest.hex(),
            "running": running,
        },
        f"{args.out}: {written.end.size} entries and {written.end.secrets} sealed keys, {written.bytes} bytes",
    )
    return 0


def _from_running(client: HttpClient, origin: str, target: Path, progress: Progress) -> Written:
    from cloister.base.limits import BACKUP_S
    from cloister.keyservice.control import ControlPath

    with client.open("GET", origin, ControlPath.BACKUP, deadline_s=BACKUP_S) as answer:
        if answer.status != 200:
            raise options.problem_of(answer)
        try:
            written = _write(target, io.BufferedReader(_Body(answer), _READ), progress)
        except Unavailable as error:
            if error.code != "answer-truncated":
                raise
            raise Unavailable(
                "backup-interrupted",
                "the KeyService ended the backup before its end",
                hint="Its log says why: it was stopped, or another history replaced what was copied. Repeat it.",
            ) from error
    content = json.dumps({"entries": written.end.size}).encode()
    with suppress(CloisterError):  # only its own note of it is missing then
        client.request("POST", origin, ControlPath.KEPT, content=content)
    return written


def _write(target: Path, source: io.BufferedReader, progress: Progress) -> Written:
    from cloister.keyservice.backup.writing import keep_backup, pass_backup

    if target != _STDOUT:
        return keep_backup(target, source.read, progress)
    written = pass_backup(sys.stdout.buffer, source.read, progress)
    sys.stdout.buffer.flush()
    return written


def _from_stopped(args: argparse.Namespace, progress: Progress) -> Written:
    from cloister.keyservice.backup.writing import backup_pieces, sealed_root
    from cloister.keyservice.ledger import Ledger
    from cloister.keyservice.offline import ROOT_FILE, kept_root
    from cloister.keyservice.rotation import require_root, stored
    from cloister.keyservice.storage.place import store_place

    store = store_place(args.state, args.store)
    if not store.exists():
        raise Unavailable("state-missing", f"{args.state} holds no KeyService")
    place = options.open_place(args)
    if place.tee.sealer is None:
        raise Unavailable(
            "sealing-unavailable",
            f"{place.tee.attester.tee.value} has no sealing key: a KeyService that is stopped cannot be opened there",
            hint="Take the backup from one that runs.",
        )
    root = kept_root(args.state, place.tee.sealer, store)
    rows = store.rows()
    try:
        ledger = Ledger(stored(rows, root), place.clock, None, place.tee.measurement)
        require_root(ledger, root, catching_up=bool(place.settings.replicas))
        pieces = backup_pieces(
            ledger,
            log_keys=root.log_keys,
            head=_confirmed(ledger),
            root=sealed_root(args.state / ROOT_FILE),
        )
        return _write(args.out, io.BufferedReader(_Pieces(pieces), _READ), progress)
    finally:
        rows.close()


def _confirmed(ledger: Ledger) -> LogHead | None:
    """The newest co-signed head that a replica keeps with its store (clause 13.19.1)."""
    from cloister.base.limits import MAX_REPLICA_REPLY
    from cloister.wire import cbor
    from cloister.wire.calls import LogHead

    kept = ledger.proof()
    return LogHead.read(cbor.decode(kept, limit=MAX_REPLICA_REPLY, what="the store's proof")) if kept else None


class _Body(io.RawIOBase):
    """An answer's body, as a stream."""

    def __init__(self, answer: BlockingAnswer) -> None:
        super().__init__()
        self._answer = answer

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, area: memoryview) -> int:  # type: ignore[override]
        """What one read gives."""
        return self._answer.readinto(memoryview(area))


class _Pieces(io.RawIOBase):
    """Pieces one after the other, as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, area: memoryview) -> int:  # type: ignore[override]
        """As much of the next piece as fits."""
        self._rest = self._rest or next(self._pieces, b"")
        count = min(len(area), len(self._rest))
        area[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
