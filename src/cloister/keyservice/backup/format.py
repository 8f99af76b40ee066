"""What a backup is, byte for byte (spec/protocol.md, 13.25.1): records, each ``u32 length || CBOR``. Pure.

First a header, then entries in order with the secrets beside them, the records that the store keeps with its head, and
an end that says how much there was. Whoever reads one gets the records in this order or an error; what they say is
authenticated only when they are opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, final

from cloister.base.errors import InvalidInput, Tampered
from cloister.base.limits import (
    MAX_BACKUP_KEPT,
    MAX_BACKUP_RECORD,
    MAX_BACKUP_ROWS,
    MAX_ENTRY,
    MAX_SEALED_ROOT,
)
from cloister.crypto.digest import same
from cloister.keyservice.storage.chain import CHAIN_START, chain_link
from cloister.keyservice.storage.port import SealedEntry
from cloister.log.merkle import HASH_LENGTH
from cloister.wire import cbor
from cloister.wire.calls import LogHead
from cloister.wire.cbor import Fields
from cloister.wire.log_keys import LogKeys

FORMAT: Final = "cloister-backup-1"
_WHAT: Final = "the backup"
_MAX_SEALED: Final = MAX_ENTRY + 1024  # a record of the store: an entry or a secret with its salt and tag


@dataclass(frozen=True, slots=True)
class Header:
    """Whose backup, and what was known when it was begun.

    :param log_keys: every log key that it had by then.
    :param made_at: Unix seconds by the KeyService's time.
    :param entries: how many there were then; more may follow.
    :param head: the newest that was confirmed then; ``None`` where nothing confirms, or nothing was yet.
    :param root: the sealed root secret, as it lies on the disk; empty where the TEE has no sealing key.
    """

    log_keys: LogKeys
    made_at: int
    entries: int
    head: LogHead | None = None
    root: bytes = b""

    @property
    def keyservice(self) -> bytes:
        """Its id."""
        return self.log_keys.keyservice

    def fields(self) -> dict[str, object]:
        """For CBOR."""
        return {
            "format": FORMAT,
            "ks": self.keyservice,
            "made_at": self.made_at,
            "entries": self.entries,
            "root": self.root,
            **self.log_keys.fields(),
            **({} if self.head is None else {"head": self.head.fields()}),
        }

    @staticmethod
    def read(value: object) -> Header:
        """:raises InvalidInput: ``backup-malformed``, ``keyservice-id``, ``log-keys-malformed`` and the codes of CBOR.

        :raises Tampered: ``signature-invalid``, ``log-keys-broken``: of its log keys.
        """
        fields = Fields(value, _WHAT)
        if not fields.has("format") or fields.text("format", limit=32) != FORMAT:
            raise _malformed("is of a format unknown to this version")
        header = Header(
            LogKeys.take(fields, fields.blob("ks", exactly=32)),
            fields.integer("made_at"),
            fields.integer("entries"),
            LogHead.read(fields.mapping("head")) if fields.has("head") else None,
            fields.blob("root", limit=MAX_SEALED_ROOT),
        )
        fields.done()
        return header


@dataclass(frozen=True, slots=True)
class Page:
    """Entries from ``first`` on as they lie in the store, and their leaf hashes one after the other."""

    first: int
    rows: tuple[SealedEntry, ...]
    leaves: bytes

    def fields(self) -> dict[str, object]:
        """For CBOR."""
        return {
            "first": self.first,
            "rows": [row.record for row in self.rows],
            "secrets": [row.secret for row in self.rows],
            "leaves": self.leaves,
        }

    @staticmethod
    def read(fields: Fields) -> Page:
        """:raises InvalidInput: ``backup-malformed`` and the codes of CBOR."""
        first = fields.integer("first")
        records, secrets = fields.items("rows", limit=MAX_BACKUP_ROWS), fields.items("secrets", limit=MAX_BACKUP_ROWS)
        leaves = fields.blob("leaves", exactly=len(records) * HASH_LENGTH)
        fields.done()
        if not records or len(records) != len(secrets):
            raise _malformed("has a page without entries, or with fewer places for secrets than entries")
        for item in (*records, *secrets):
            if type(item) is not bytes or len(item) > _MAX_SEALED:
                raise _malformed("has a record that is too long, or no bytes")
        return Page(first, tuple(map(SealedEntry, records, secrets)), leaves)


@dataclass(frozen=True, slots=True)
class Kept:
    """The records of the store's table ``head``: how long the log is, and what is kept beside it."""

    rows: tuple[tuple[int, bytes], ...]

    def fields(self) -> dict[str, object]:
        """For CBOR."""
        return {"kept": [[index, record] for index, record in self.rows]}

    @staticmethod
    def read(fields: Fields) -> Kept:
        """:raises InvalidInput: ``backup-malformed`` and the codes of CBOR."""
        rows: list[tuple[int, bytes]] = []
        for item in fields.items("kept", limit=MAX_BACKUP_KEPT):
            match item:
                case [int(index), bytes(record)] if (
                    type(index) is int and len(record) <= _MAX_SEALED and (index > rows[-1][0] if rows else index == 0)
                ):
                    rows.append((index, record))
                case _:
                    raise _malformed("has kept records that are not in order, or not as they are written")
        fields.done()
        if not rows:
            raise _malformed("has no head record")
        return Kept(tuple(rows))


@dataclass(frozen=True, slots=True)
class End:
    """How much there was.

    :param link: what the records of all entries hash to in the store (13.5).
    :param digest: SHA-256 over every byte of the file before this record.
    """

    size: int
    secrets: int
    link: bytes
    digest: bytes

    def fields(self) -> dict[str, object]:
        """For CBOR."""
        return {"size": self.size, "secrets": self.secrets, "link": self.link, "digest": self.digest}

    @staticmethod
    def read(fields: Fields) -> End:
        """:raises InvalidInput: the codes of CBOR."""
        end = End(
            fields.integer("size"),
            fields.integer("secrets"),
            fields.blob("link", exactly=32),
            fields.blob("digest", exactly=32),
        )
        fields.done()
        return end


class _Tally:
    """What the pages so far add up to."""

    def __init__(self) -> None:
        self.size = 0
        self.secrets = 0
        self.link = CHAIN_START

    def take(self, page: Page) -> None:
        for row in page.rows:
            self.link = chain_link(self.link, row.record)
            self.secrets += bool(row.secret)
        self.size += len(page.rows)


@final
class BackupWriter:
    """The file's pieces, in order: :meth:`header`, any number of :meth:`page`, then :meth:`finish`."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()
        self._tally = _Tally()

    def header(self, header: Header) -> bytes:
        """The first piece."""
        return self._counted(header.fields())

    def page(self, page: Page) -> bytes:
        """Entries that continue those so far."""
        self._tally.take(page)
        return self._counted(page.fields())

    def finish(self, kept: Kept) -> tuple[bytes, End]:
        """The last piece, and what its end says."""
        before, tally = self._counted(kept.fields()), self._tally
        end = End(tally.size, tally.secrets, tally.link, self._sum.digest())
        return before + _record(end.fields()), end

    def _counted(self, fields: dict[str, object]) -> bytes:
        data = _record(fields)
        self._sum.update(data)
        return data


def read_backup(read: Callable[[int], bytes]) -> Iterator[Header | Page | Kept | End]:
    """The records of a whole file, in their order, each as soon as it was read; the end only if everything fits it.

    :param read: the next so many bytes, fewer only at the file's end.
    :raises InvalidInput: ``backup-malformed`` and the codes of CBOR.
    :raises Tampered: ``backup-truncated``; ``backup-changed``: records were left out, repeated, moved or changed.
    """
    total, tally = hashlib.sha256(), _Tally()
    first = _next(read)
    if first is None:
        raise _malformed("is empty")
    total.update(first)
    yield Header.read(_decode(first))
    kept = False
    while (data := _next(read)) is not None:
        fields = Fields(_decode(data), _WHAT)
        if fields.has("digest"):
            end = End.read(fields)
            if not kept or (end.size, end.secrets) != (tally.size, tally.secrets):
                raise _changed(f"says {end.size} entries with {end.secrets} secrets, and holds others")
            if not (same(end.link, tally.link) and same(end.digest, total.digest())):
                raise _changed("does not have the digest that it says")
            if read(1):
                raise _malformed("goes on after its end")
            yield end
            return
        total.update(data)
        if kept:
            raise _malformed("has records between its head and its end")
        if fields.has("kept"):
            kept = True
            yield Kept.read(fields)
            continue
        page = Page.read(fields)
        if page.first != tally.size:
            raise _changed(f"has entry {page.first} where entry {tally.size} belongs")
        tally.take(page)
        yield page
    raise _truncated()


def _next(read: Callable[[int], bytes]) -> bytes | None:
    """One record with its length, or ``None`` at the end."""
    head = read(4)
    if not head:
        return None
    if len(head) < 4:
        raise _truncated()
    length = int.from_bytes(head, "big")
    if not 0 < length <= MAX_BACKUP_RECORD:
        raise _malformed(f"has a record of {length} bytes")
    body = read(length)
    if len(body) < length:
        raise _truncated()
    return head + body


def _decode(record: bytes) -> object:
    return cbor.decode(record[4:], limit=MAX_BACKUP_RECORD, what=_WHAT)


def _record(value: dict[str, object]) -> bytes:
    data = cbor.encode(value)
    return len(data).to_bytes(4, "big") + data


def _malformed(what: str) -> InvalidInput:
    return InvalidInput("backup-malformed", f"{_WHAT} {what}")


def _changed(what: str) -> Tampered:
    return Tampered(
        "backup-changed", f"{_WHAT} {what}: somebody or something changed it", hint="Take another copy of the file."
    )


def _truncated() -> Tampered:
    return Tampered(
        "backup-truncated",
        f"{_WHAT} is cut short",
        hint="It was not written to its end, or not copied whole. Nothing was restored.",
    )
