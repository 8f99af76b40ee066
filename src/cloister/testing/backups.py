"""Backups in memory, and what somebody does to them who owns them: take apart, change, put together again."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

from cloister.base.limits import MAX_BACKUP_RECORD
from cloister.keyservice.backup.format import Header
from cloister.keyservice.backup.judging import Known
from cloister.keyservice.backup.restoring import Inspected, copy_rows, inspect
from cloister.keyservice.backup.writing import backup_pieces
from cloister.keyservice.storage.chain import CHAIN_START, chain_link
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.wire import cbor


def quiet(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody looks at."""


def backup_of(keyservice: EmbeddedKeyService) -> bytes:
    """What ``cloister keyservice backup`` writes."""
    assembled = keyservice.assembled
    pieces = backup_pieces(
        assembled.ledger,
        log_keys=assembled.root.log_keys,
        head=assembled.anchor.confirmed(),
        root=b"",
    )
    return b"".join(pieces)


def inspected(data: bytes, known: Sequence[Known] = ()) -> Inspected:
    """What can be checked without the root secret, and by those who know a head."""

    def heads(_header: Header) -> Sequence[Known]:
        return known

    found = inspect(io.BytesIO(data), heads, quiet)
    for item in known:
        found.require(item)
    return found


def restored(data: bytes) -> MemoryDisk:
    """A disk with what the backup holds, not opened yet."""
    disk = MemoryDisk()
    rows = MemoryRows(disk)
    copy_rows(io.BytesIO(data), inspected(data), rows, quiet)
    rows.close()
    return disk


def take_apart(data: bytes) -> list[dict[str, Any]]:
    """The records, decoded."""
    stream, found = io.BytesIO(data), []
    while head := stream.read(4):
        found.append(cbor.decode(stream.read(int.from_bytes(head, "big")), limit=MAX_BACKUP_RECORD, what="a record"))
    return found


def put_together(records: Sequence[dict[str, Any]], *, honest: bool = False) -> bytes:
    """A file of these records; counts, links and digest of its end are made to fit, unless ``honest``.

    Nothing in them is a secret: whoever changes a backup changes them, too.
    """
    *body, end = records
    if not honest:
        rows = [row for record in body for row in record.get("rows", ())]
        link = CHAIN_START
        for row in rows:
            link = chain_link(link, row)
        secrets = sum(bool(item) for record in body for item in record.get("secrets", ()))
        end = {"size": len(rows), "secrets": secrets, "link": link, "digest": b""}
    data = b"".join(map(_record, body))
    if not honest:
        end["digest"] = hashlib.sha256(data).digest()
    return data + _record(end)


def _record(value: dict[str, Any]) -> bytes:
    data = cbor.encode(value)
    return len(data).to_bytes(4, "big") + data
