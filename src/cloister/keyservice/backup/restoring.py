"""A store again from a backup (spec/protocol.md, 13.25.4): checked, written to an empty place, opened if it can be.

Without the root secret what can be checked is the file: its order, its counts, its digest, the hash chain over its
records, and its leaf hashes against heads that others know. With it every record is opened in its place, as at a start.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from cloister.attest.types import Sealer
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import RESTORE_BATCH, RESTORE_BATCH_BYTES
from cloister.crypto.digest import same
from cloister.keyservice.backup.format import End, Header, Kept, Page, read_backup
from cloister.keyservice.backup.judging import Known, require_known
from cloister.keyservice.backup.writing import Progress, place_new
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.root import Root, open_root, write_new
from cloister.keyservice.rotation import require_root, stored
from cloister.keyservice.storage.place import STORE_FILE, StorePlace
from cloister.keyservice.storage.port import ENTRIES, HEAD, SECRETS, TABLES, Row, Rows
from cloister.keyservice.storage.sqlite import SqliteRows, hold
from cloister.log.frontier import Frontier
from cloister.log.merkle import HASH_LENGTH

PART_FILE: Final = "store.sqlite.restored"
PART_ROOT: Final = "root.sealed.restored"
_SQLITE: Final = ("", "-wal", "-shm", "-journal", ".lock")


@dataclass(frozen=True, slots=True)
class Inspected:
    """A backup whose file is whole and in order; only :func:`inspect` makes one.

    :param root: of the tree over all its leaf hashes.
    :param roots: by size, of the smaller trees that were asked for.
    """

    header: Header
    end: End
    root: bytes
    roots: Mapping[int, bytes]

    def require(self, known: Known) -> None:
        """The log continues a head that was asked for when it was inspected; raises as ``require_known``."""
        require_known(known, self.end.size, self.roots)

    def behind(self, known: Known) -> int:
        """How many entries it lacks of such a head; raises ``log-fork`` as :meth:`require`."""
        if known.size > self.end.size:
            return known.size - self.end.size
        self.require(known)
        return 0


@dataclass(frozen=True, slots=True)
class Opened:
    """What opening a restored store showed.

    :param destroyed: secrets that its entries say are to be destroyed by now, and that are gone now.
    """

    entries: int
    destroyed: int


def inspect(
    file: BinaryIO, known: Callable[[Header], Sequence[Known]], progress: Progress, *, what: str = "check"
) -> Inspected:
    """Read a whole backup, once, so that it can be held against what others know.

    :param known: given the header, the heads with which it will be compared.
    :raises InvalidInput: ``backup-malformed`` and the codes of CBOR.
    :raises Tampered: ``backup-truncated``, ``backup-changed``; ``log-fork``: its own head is of another log.
    """
    records = read_backup(file.read)
    header = next(records)
    if not isinstance(header, Header):
        raise AssertionError  # noqa: TRY004  # it is the first, or it raises
    own = [Known("a log key that was retired", item.size, item.root) for item in header.log_keys.certificates]
    if header.head is not None:
        own.append(Known("the KeyService that made it", header.head.size, header.head.root))
    wanted = {item.size for item in (*known(header), *own)}
    frontier, roots, end = Frontier(), dict[int, bytes](), None
    for record in records:
        match record:
            case Page(leaves=leaves):
                for at in range(0, len(leaves), HASH_LENGTH):
                    frontier.append(leaves[at : at + HASH_LENGTH])
                    if frontier.size in wanted:
                        roots[frontier.size] = frontier.root()
                progress(what, frontier.size, max(frontier.size, header.entries))
            case End():
                end = record
            case Header() | Kept():
                continue
    if end is None:
        raise AssertionError
    inspected = Inspected(header, end, frontier.root(), roots)
    for item in own:
        inspected.require(item)
    return inspected


def copy_rows(file: BinaryIO, inspected: Inspected, rows: Rows, progress: Progress) -> None:
    """Write what an inspected backup holds to empty storage; the head comes last, so that a part of it opens nowhere.

    :raises Refused: ``state-exists``: the storage is not empty.
    :raises Tampered: ``backup-changed``: the file is not the one that was inspected. :raises Unavailable: the store's.
    """
    if any(next(iter(rows.scan(table)), None) is not None for table in TABLES):
        raise Refused("state-exists", "the store is not empty", hint="A backup is restored into an empty place only.")
    batch: list[Row] = []
    held = 0
    kept: Kept | None = None
    for record in read_backup(file.read):
        match record:
            case Page(first=first, rows=page):
                for index, row in enumerate(page, first):
                    batch.append(Row(ENTRIES, index, row.record))
                    if row.secret:
                        batch.append(Row(SECRETS, index, row.secret))
                    held += len(row.record) + len(row.secret)
                if len(batch) >= RESTORE_BATCH or held >= RESTORE_BATCH_BYTES:
                    rows.write(batch, [])
                    batch, held = [], 0
                progress("restore", first + len(page), inspected.end.size)
            case Kept():
                kept = record
            case End():
                if record != inspected.end:
                    raise Tampered("backup-changed", "the backup changed while it was being restored")
            case Header():
                continue
    rows.write(batch, [])
    if kept is not None:
        rows.write([Row(HEAD, index, data) for index, data in kept.rows], [])


def authenticate(rows: Rows, root: Root, inspected: Inspected, clock: Clock, *, catching_up: bool = False) -> Opened:
    """Open every record in its place and replay the log, as a start does; destroy what is to be destroyed by now.

    :param catching_up: it will be one of several replicas, which gets from others what it lacks.
    :raises InvalidInput: ``backup-other``: the root secret is another KeyService's, or of another generation.
    :raises Tampered: as ``require_root``; the store's and the log's codes; ``backup-changed``: the leaf hashes are of
        another log.
    """
    if root.log_keys != inspected.header.log_keys:
        raise InvalidInput(
            "backup-other",
            "the root secret that is here is of another KeyService than the backup, or was rotated since",
            hint="Restore into an empty directory: the backup holds the root secret of its time, sealed.",
        )
    ledger = Ledger(stored(rows, root), clock)
    require_root(ledger, root, catching_up=catching_up)
    head = ledger.head()
    if head.size != inspected.end.size or not same(head.root, inspected.root):
        raise Tampered("backup-changed", "the leaf hashes in the backup are not those of its entries")
    return Opened(head.size, ledger.sweep())


@dataclass(frozen=True, slots=True)
class Restored:
    """:param opened: ``None`` where no root secret is there that opens here."""

    opened: Opened | None


def restore_state(
    backup: Path,
    inspected: Inspected,
    state: Path,
    *,
    root_file: Path,
    store: StorePlace | None = None,
    sealer: Sealer | None,
    clock: Clock,
    progress: Progress,
    catching_up: bool = False,
) -> Restored:
    """A state directory from a backup, and the root secret with it if it opens here.

    A file is written under another name first. What a database had taken is taken back if something is wrong; where
    that fails, too, or the process is killed, what is left has no head, and is neither run nor restored over.

    :param store: a database that the records go to; by default a file in the directory.
    :param sealer: of the TEE of this machine, if there is one. :param catching_up: as :func:`authenticate`.
    :raises Refused: ``state-exists``: there is a store. :raises Unavailable: ``state-unwritable``, the store's.
    :raises CloisterError: as :func:`copy_rows` and :func:`authenticate`.
    """
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(state, error) from error
    if store is not None:
        return _restore_database(
            backup,
            inspected,
            store,
            root_file=root_file,
            sealer=sealer,
            clock=clock,
            progress=progress,
            catching_up=catching_up,
        )
    store_file = state / STORE_FILE
    with hold(store_file):
        _require_absent(store_file)
        root, sealed = _find_root(inspected, root_file, state / PART_ROOT, sealer)
        part = state / PART_FILE
        try:
            _remove(part)
            opened = _fill(backup, inspected, part, root=root, clock=clock, progress=progress, catching_up=catching_up)
            if sealed:
                write_new(root_file, sealed)
            place_new(part, store_file)
        except OSError as error:
            raise _unwritable(state, error) from error
        finally:
            with contextlib.suppress(OSError):
                _remove(part)
    return Restored(opened)


def _fill(
    backup: Path,
    inspected: Inspected,
    part: Path,
    *,
    root: Root | None,
    clock: Clock,
    progress: Progress,
    catching_up: bool,
) -> Opened | None:
    rows = SqliteRows(part)
    try:
        with backup.open("rb") as file:
            copy_rows(file, inspected, rows, progress)
        return None if root is None else authenticate(rows, root, inspected, clock, catching_up=catching_up)
    finally:
        rows.close()


def _restore_database(
    backup: Path,
    inspected: Inspected,
    store: StorePlace,
    *,
    root_file: Path,
    sealer: Sealer | None,
    clock: Clock,
    progress: Progress,
    catching_up: bool = False,
) -> Restored:
    if store.exists():
        raise Refused(
            "state-exists",
            f"{store.name} holds a log already, or a part of one",
            hint="A backup is restored into an empty namespace only. Name another one in --store.",
        )
    root, sealed = _find_root(inspected, root_file, root_file.with_name(PART_ROOT), sealer)
    rows = store.rows()
    try:
        with backup.open("rb") as file:
            copy_rows(file, inspected, rows, progress)
        opened = None if root is None else authenticate(rows, root, inspected, clock, catching_up=catching_up)
        if sealed:
            write_new(root_file, sealed)
    except BaseException as error:
        if not isinstance(error, Refused):  # then somebody else's is there
            with contextlib.suppress(CloisterError):
                _empty(rows)
        if isinstance(error, OSError):
            raise _unwritable(backup, error) from error
        raise
    finally:
        rows.close()
    return Restored(opened)


def _empty(rows: Rows) -> None:
    """The head first: from then on nothing opens what is left."""
    for table in (HEAD, *(table for table in TABLES if table != HEAD)):
        while drop := [(table, index) for index, _ in itertools.islice(rows.scan(table), RESTORE_BATCH)]:
            rows.write([], drop)


def _find_root(inspected: Inspected, root_file: Path, part: Path, sealer: Sealer | None) -> tuple[Root | None, bytes]:
    """The root secret that is here, or else the one in the backup if this TEE opens it: then also its sealed bytes.

    :raises CloisterError: as ``open_root``, of one that is here.
    """
    if os.path.lexists(root_file):
        return (None if sealer is None else open_root(root_file, sealer)), b""
    sealed = inspected.header.root
    if sealer is None or not sealed:
        return None, b""
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)
    write_new(part, sealed)
    try:
        return open_root(part, sealer), sealed
    except Tampered:
        return None, b""  # of another platform, or of other code: custodians or a replica bring it
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _require_absent(store_file: Path) -> None:
    for suffix in ("", "-wal", "-journal"):
        path = store_file.with_name(store_file.name + suffix)
        if os.path.lexists(path):
            raise Refused(
                "state-exists",
                f"{path} is there already",
                hint="A backup is restored into an empty place only. Move the directory away, and keep it until all "
                "is well: its copy of the log may be the newer one.",
            )


def _remove(path: Path) -> None:
    for suffix in _SQLITE:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> Unavailable:
    return Unavailable("state-unwritable", f"{path} cannot be written: {error.strerror or type(error).__name__}")
