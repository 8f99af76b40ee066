"""Records that are encrypted, and authenticated to their place (spec/protocol.md, clause 13.5).

Each record is sealed under a key of its own (root secret, table, fresh salt) and bound to the store, its table, its
index and the hash chain over everything before it. A record that was moved, copied, swapped, cut out or brought from
another store does not open. The head record says how many entries there are, and is written with them.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, final

from cloister.base.errors import CloisterError, InvalidInput, Tampered, Unavailable
from cloister.base.limits import BLOCK_ENTRIES, BLOCKS_KEPT, MAX_BLOCK, MAX_ENTRY
from cloister.base.secret import SecretBytes
from cloister.crypto.box import open_once, seal_once
from cloister.crypto.digest import Context, derive, digest, same
from cloister.keyservice.storage.chain import CHAIN_START, LINK, Chain, chain_link
from cloister.keyservice.storage.derived import Derived
from cloister.keyservice.storage.port import (
    BLOCKS,
    ENTRIES,
    HEAD,
    RECOVERY_ROW,
    SECRETS,
    SNAPSHOTS,
    TABLES,
    Block,
    NewEntry,
    Row,
    Rows,
    SealedEntry,
    Snapshots,
    Start,
    recovery_record,
)
from cloister.wire import cbor
from cloister.wire.cbor import Fields

_SALT: Final = 32
_LASTING: Final = (ENTRIES, SECRETS, HEAD)  # what other tables hold can be made anew from these


@final
class SealedStore:
    """``KeyStore`` over any ``Rows``.

    :param key: derived from the root secret; 32 bytes.
    :param store_id: whose store this is (the KeyService's id), so that another's records do not open.
    :param earlier: of roots that were rotated (13.27.2), oldest first: entries below this index are under that key.
        They open no other table: secrets, head, blocks and snapshots are under the present key always.
    :param block_entries: entries of a block, a power of two.
    """

    def __init__(
        self,
        rows: Rows,
        key: SecretBytes,
        store_id: bytes,
        earlier: Sequence[tuple[int, SecretBytes]] = (),
        *,
        block_entries: int = BLOCK_ENTRIES,
    ) -> None:
        self._rows = rows
        self._key = key
        self._earlier = tuple(earlier)
        self._id = store_id
        self._block_entries = block_entries
        self._derived = Derived(rows, block_entries, seal=self._seal, opened=self._open, write=self._write_derived)
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._chain = Chain(block_entries, self._links)
        self._doubtful: int | None = None
        self._unsettled = False
        self._cut_short = False

    # --- reading ---

    def load(self, start: Start | None = None) -> Iterator[bytes]:
        """Every entry in order; see the port."""
        self._blocks.clear()
        ends, links = (start.ends, start.links) if start else (b"", b"")
        self._chain = Chain(self._block_entries, self._links, ends, links)
        if self._cut_short:
            self._rows.reopen()
            self._cut_short = False
        head = self._read_head()
        for index, record in self._rows.scan(ENTRIES, self._size or None):
            if index != self._size:
                raise Tampered("store-missing", f"the store lacks log entry {self._size}; entry {index} comes next")
            previous = self._at(index)
            data = self._open(ENTRIES, index, previous, record)
            self._chain.extend(chain_link(previous, record))
            yield data
        if head is None:
            if self._size:
                raise Tampered("store-head", "the store's head record is gone")
            return
        size, chain = head
        if self._size < size:
            raise Tampered("store-truncated", f"the store ends after {self._size} log entries; it had {size}")
        if self._size > size or not same(self._at(size), chain):
            raise Tampered("store-head", f"the store's head is of {size} log entries; there are {self._size}")

    def secrets(self) -> Mapping[int, SecretBytes]:
        """All secrets by entry; see the port."""
        found = {}
        for index, record in self._rows.scan(SECRETS):
            if not 0 <= index < self._size:
                raise Tampered("store-record", f"the store holds a secret of log entry {index}, which it has not")
            found[index] = SecretBytes(self._open(SECRETS, index, self._at(index + 1), record))
        return found

    def read(self, index: int) -> bytes:
        """One entry; see the port."""
        if not 0 <= index < self._size:
            raise InvalidInput("log-index", f"there is no entry {index} in a log of {self._size}")
        record = self._rows.get(ENTRIES, index)
        if record is None:
            raise Tampered("store-missing", f"the store lacks log entry {index}")
        previous = self._at(index)
        data = self._open(ENTRIES, index, previous, record)
        if not same(chain_link(previous, record), self._at(index + 1)):
            raise Tampered("store-record", f"log entry {index} in the store is of another history than those after it")
        return data

    # --- for replicas ---

    def link(self, size: int) -> bytes:
        """The chain's hash over the first ``size`` records; see the port."""
        if not 0 <= size <= self._size:
            raise InvalidInput("log-size", f"the store holds {self._size} entries, not {size}")
        return self._at(size)

    def sealed(self, first: int, count: int) -> list[SealedEntry]:
        """Records as they lie there; see the port."""
        found = []
        for index in range(first, min(self._size, first + count)):
            record = self._rows.get(ENTRIES, index)
            if record is None or not same(chain_link(self._at(index), record), self._at(index + 1)):
                raise Tampered("store-missing", f"the store does not hold log entry {index} as it was written")
            found.append(SealedEntry(record, self._rows.get(SECRETS, index) or b""))
        return found

    def open_next(self, entries: Sequence[SealedEntry]) -> list[NewEntry]:
        """Authenticate records that continue these; see the port."""
        chain, found = self._at(self._size), []
        for index, entry in enumerate(entries, self._size):
            data = self._open(ENTRIES, index, chain, entry.record)
            chain = chain_link(chain, entry.record)
            secret = SecretBytes(self._open(SECRETS, index, chain, entry.secret)) if entry.secret else None
            found.append(NewEntry(data, secret))
        return found

    def proof(self) -> bytes:
        """What was kept as proof; see the port."""
        record = self._rows.get(HEAD, 1)
        return b"" if record is None else self._open(HEAD, 1, CHAIN_START, record)

    def kept(self) -> list[tuple[int, bytes]]:
        """Records of the table ``head`` as they lie there; see the port."""
        self._settle()
        head = self._read_head()
        if head != (self._size, self._at(self._size)):
            raise Tampered("store-head", f"the store's head is not of the {self._size} log entries that are there")
        return list(self._rows.scan(HEAD))

    # --- what need not be read at a start (clause 13.23) ---

    @property
    def block_entries(self) -> int:
        """See the port."""
        return self._block_entries

    @property
    def snapshots(self) -> Snapshots:
        """See the port."""
        return self._derived

    def block(self, number: int) -> Block:
        """One that was given up; see the port."""
        found = self._blocks.get(number)
        if found is None:
            found = self._derived.block(number, self._at((number + 1) * self._block_entries))
            self._blocks[number] = found
            if len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(number)
        return found

    def _links(self, number: int) -> bytes:
        return self.block(number).links

    def give_up(self, number: int, nodes: bytes, concerned: Mapping[bytes, bytes]) -> None:
        """Write the next complete block down; see the port."""
        block = Block(self._chain.links(number), nodes, concerned)
        self._derived.put_block(number, self._at((number + 1) * self._block_entries), block)
        self._chain.give_up(number)

    def start(self, size: int) -> Start:
        """Where one would go on from; see the port."""
        return Start(*self._chain.parts(size))

    def _write_derived(self, put: Sequence[Row], drop: Sequence[tuple[str, int]]) -> None:
        self._settle()
        self._unsettled = True
        self._rows.write(put, drop)
        self._unsettled = False

    # --- writing ---

    def append(
        self,
        entries: Sequence[NewEntry],
        dropped: Sequence[int] = (),
        proof: bytes = b"",
        *,
        recovery: bytes | None = None,
    ) -> None:
        """Add entries and destroy secrets; see the port."""
        self._settle()
        size, chain = self._size, self._at(self._size)
        put: list[Row] = []
        links = bytearray()
        for offset, entry in enumerate(entries):
            index = size + offset
            record = self._seal(ENTRIES, index, chain, entry.data)
            put.append(Row(ENTRIES, index, record))
            chain = chain_link(chain, record)
            links += chain
            if entry.secret is not None:
                put.append(Row(SECRETS, index, self._seal(SECRETS, index, chain, entry.secret.reveal())))
        drop = [(SECRETS, index) for index in dropped]
        self._show(recovery, put, drop)
        self._write(put, links, proof, drop)

    def append_sealed(self, entries: Sequence[SealedEntry], proof: bytes, *, recovery: bytes | None = None) -> None:
        """Add records as another replica wrote them; see the port."""
        self._settle()
        size, chain = self._size, self._at(self._size)
        put: list[Row] = []
        links = bytearray()
        for index, entry in enumerate(entries, size):
            put.append(Row(ENTRIES, index, entry.record))
            chain = chain_link(chain, entry.record)
            links += chain
            if entry.secret:
                put.append(Row(SECRETS, index, entry.secret))
        drop: list[tuple[str, int]] = []
        self._show(recovery, put, drop)
        self._write(put, links, proof, drop)

    def cut(self, size: int, proof: bytes) -> None:
        """Drop the entries from ``size`` on; see the port."""
        self._settle()
        drop = [(table, index) for index in range(size, self._size) for table in (ENTRIES, SECRETS)]
        drop += self._derived.beyond(size, self._size)
        old, self._chain = self._chain, self._chain.first(size)
        put = [self._head_row(size, self._at(size))] if size else []
        if not size:
            drop.append((HEAD, 0))
        if proof:
            put.append(self._proof_row(proof))
        try:
            self._rows.write(put, drop)
        except CloisterError:
            self._chain = old
            self._cut_short = True  # whether it happened is known after the store was opened anew
            raise

    def _write(self, put: list[Row], links: bytearray, proof: bytes, drop: list[tuple[str, int]]) -> None:
        size = self._size + len(links) // LINK
        if links:
            put.append(self._head_row(size, bytes(links[-LINK:])))
        if proof:
            put.append(self._proof_row(proof))
        if not put and not drop:
            return
        self._doubtful = size
        self._rows.write(put, drop)
        self._doubtful = None
        self._chain.extend(links)

    def rekey(self, key: SecretBytes, entry: NewEntry) -> None:
        """Add an entry that begins under another key, and bring everything but the entries before it there; see the
        port.
        """
        self._settle()
        size, chain = self._size, self._at(self._size)
        proof = self.proof()
        found = [(at, self._at(at + 1), secret) for at, secret in self.secrets().items()]
        drop = [(table, index) for table in TABLES if table not in _LASTING for index, _ in self._rows.scan(table)]
        self._earlier, self._key = (*self._earlier, (size, self._key)), key
        self._cut_short = True  # whatever comes of it: this object serves nobody any more
        record = self._seal(ENTRIES, size, chain, entry.data)
        put = [Row(ENTRIES, size, record), self._head_row(size + 1, chain_link(chain, record))]
        put += [Row(SECRETS, at, self._seal(SECRETS, at, previous, secret.reveal())) for at, previous, secret in found]
        if proof:
            put.append(self._proof_row(proof))
        self._rows.write(put, drop)

    def belongs(self) -> bool | None:
        """Whether the head is under the present key; ``None`` where there is none, as in an empty store.

        :raises Unavailable: ``store-unavailable``. :raises Tampered: ``store-corrupt``.
        """
        record = self._rows.get(HEAD, 0)
        return None if record is None else self._opens_head(self._key, record)

    # --- for custodians, in the clear ---

    def recovery(self) -> bytes:
        """The recovery record; see the port."""
        return recovery_record(self._rows)

    def _show(self, recovery: bytes | None, put: list[Row], drop: list[tuple[str, int]]) -> None:
        if recovery:
            put.append(Row(HEAD, RECOVERY_ROW, recovery))
        elif recovery is not None:
            drop.append((HEAD, RECOVERY_ROW))

    def close(self) -> None:
        """Give up the storage and its lock."""
        self._rows.close()

    def _settle(self) -> None:
        """After a failed write, find out whether it happened after all, and take it back if so.

        It was acknowledged to nobody, so both outcomes are right; but what is on the disk must be what we believe.
        """
        if self._cut_short:
            raise unavailable("must be opened anew", "dropping entries failed, and may have happened")
        attempted = self._doubtful
        if attempted is None:
            if self._unsettled:  # nothing hangs on whether it happened, but it must not be half done
                self._rows.reopen()
                self._unsettled = False
            return
        self._rows.reopen()
        head = self._read_head()
        size = self._size
        if head is not None and head[0] == attempted != size:
            drop = [(table, index) for index in range(size, attempted) for table in (ENTRIES, SECRETS)]
            if size:
                self._rows.write([self._head_row(size, self._at(size))], drop)
            else:
                self._rows.write([], [*drop, (HEAD, 0)])
        elif (head or (0, CHAIN_START)) != (size, self._at(size)):
            raise Tampered("store-head", "the store's head is neither the one before the failed write nor after it")
        self._doubtful = None

    # --- sealing ---

    @property
    def _size(self) -> int:
        return self._chain.size

    def _at(self, size: int) -> bytes:
        """The hash over the first ``size`` records."""
        return self._chain.at(size)

    def _head_row(self, size: int, chain: bytes) -> Row:
        return Row(HEAD, 0, self._seal(HEAD, 0, CHAIN_START, cbor.encode({"size": size, "chain": chain})))

    def _proof_row(self, proof: bytes) -> Row:
        return Row(HEAD, 1, self._seal(HEAD, 1, CHAIN_START, proof))

    def _read_head(self) -> tuple[int, bytes] | None:
        record = self._rows.get(HEAD, 0)
        if record is None:
            return None
        if any(self._opens_head(key, record) for _, key in self._earlier):
            raise Tampered(
                "store-generation",
                "the store is of the time before the KeyService's root was rotated",
                hint="Somebody put an older store back. Restore the one that belongs to this root.",
            )
        what = "the store's head"
        fields = Fields(cbor.decode(self._open(HEAD, 0, CHAIN_START, record), limit=256, what=what), what)
        head = fields.integer("size"), fields.blob("chain", exactly=LINK)
        fields.done()
        return head

    def _opens_head(self, key: SecretBytes, record: bytes) -> bool:
        try:
            SealedStore(self._rows, key, self._id)._open(HEAD, 0, CHAIN_START, record)
        except Tampered:
            return False
        return True

    def _seal(self, table: str, index: int, previous: bytes, plaintext: bytes) -> bytes:
        salt = secrets.token_bytes(_SALT)
        key = derive(Context.STORE_RECORD, self._key_of(table, index).reveal(), table.encode(), salt)
        return salt + seal_once(key, plaintext, self._place(table, index, previous))

    def _open(self, table: str, index: int, previous: bytes, record: bytes) -> bytes:
        where = f"record {index} of table {table!r} in the store"
        limit = MAX_BLOCK if table in (BLOCKS, SNAPSHOTS) else MAX_ENTRY
        if not _SALT < len(record) <= limit + 1024:
            raise Tampered("store-record", f"{where} is of a length that was never written")
        key = derive(Context.STORE_RECORD, self._key_of(table, index).reveal(), table.encode(), record[:_SALT])
        try:
            return open_once(key, record[_SALT:], self._place(table, index, previous), what=where)
        except Tampered as error:
            raise Tampered(
                "store-record",
                f"{where} was changed, moved, swapped, or is of another store or time",
                hint="Somebody changed the state directory. Restore it whole, or start a new KeyService.",
            ) from error

    def _key_of(self, table: str, index: int) -> SecretBytes:
        if table == ENTRIES:
            for end, key in self._earlier:
                if index < end:
                    return key
        return self._key

    def _place(self, table: str, index: int, previous: bytes) -> bytes:
        return digest(Context.STORE_RECORD, self._id, table.encode(), index.to_bytes(8, "big"), previous)


def unavailable(what: str, cause: str) -> Unavailable:
    """The store cannot be used now; nothing was half-applied."""
    return Unavailable(
        "store-unavailable",
        f"the store {what}: {cause}",
        retry_after=1.0,
        hint="Check the disk that holds the state directory; the service resumes by itself.",
    )
