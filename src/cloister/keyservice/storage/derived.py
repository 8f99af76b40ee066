"""What is kept only so that a start need not read every entry: blocks and a snapshot (spec/protocol.md, 13.23).

All of it can be made anew from the entries, and is believed only as far as it opens under the store's key at its place
and the chain goes on from it. Records are opened before they are parsed, so what they hold was written here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, final

import cbor2

from cloister.base.errors import CloisterError, Tampered
from cloister.base.limits import MAX_SNAPSHOT_PARTS
from cloister.keyservice.storage.chain import CHAIN_START, LINK
from cloister.keyservice.storage.port import BLOCKS, SNAPSHOTS, Block, Row, Rows, Saved
from cloister.wire import cbor
from cloister.wire.cbor import Fields

_NAME: Final = 32
_MANIFEST: Final = 0
_MAX_MANIFEST: Final = 512

Seal = Callable[[str, int, bytes, bytes], bytes]
"""Table, index, what goes before, and a record or what it holds."""
Write = Callable[[Sequence[Row], Sequence[tuple[str, int]]], None]


@final
class Derived:
    """Blocks, and the newest snapshot: a manifest at index 0, and its parts in one of two slots behind it.

    :param entries: of a block. :param seal: to a record's place; :param opened: the way back, which raises Tampered.
    :param write: all or nothing, and durable; after an error it may have happened or not, which does no harm here.
    """

    def __init__(self, rows: Rows, entries: int, *, seal: Seal, opened: Seal, write: Write) -> None:
        self._rows = rows
        self._entries = entries
        self._seal = seal
        self._opened = opened
        self._write = write

    # --- blocks ---

    def block(self, number: int, end: bytes) -> Block:
        """One block.

        :param end: what all records to its end hash to.
        :raises Tampered: ``store-missing``, ``store-record``. :raises Unavailable: ``store-unavailable``.
        """
        record = self._rows.get(BLOCKS, number)
        if record is None:
            raise Tampered("store-missing", f"the store lacks block {number}")
        try:
            return Block(*cbor2.loads(self._opened(BLOCKS, number, end, record)))
        except CloisterError:
            raise
        except Exception as error:  # authentic, and yet of another form
            raise Tampered(
                "store-record", f"block {number} in the store is of another form than this code's"
            ) from error

    def put_block(self, number: int, end: bytes, block: Block) -> None:
        """Write one; raises as the store's append."""
        data = cbor2.dumps((block.links, block.nodes, {**block.concerned}))
        self._write([Row(BLOCKS, number, self._seal(BLOCKS, number, end, data))], [])

    # --- the snapshot ---

    def saved(self) -> Saved | None:
        """What the newest complete snapshot says of itself; raises as :meth:`block`."""
        record = self._rows.get(SNAPSHOTS, _MANIFEST)
        if record is None:
            return None
        what = "the snapshot's manifest"
        data = self._opened(SNAPSHOTS, _MANIFEST, CHAIN_START, record)
        try:
            fields = Fields(cbor.decode(data, limit=_MAX_MANIFEST, what=what), what)
            saved = Saved(
                version=fields.blob("version", exactly=32),
                name=fields.blob("name", exactly=_NAME),
                size=fields.integer("size", low=1),
                link=fields.blob("link", exactly=LINK),
                root=fields.blob("root", exactly=32),
                slot=fields.integer("slot", high=1),
                parts=fields.integer("parts", high=MAX_SNAPSHOT_PARTS),
            )
            fields.done()
        except CloisterError as error:
            raise Tampered("store-record", f"{what} is of another form than this code's") from error
        return saved

    def parts(self, saved: Saved) -> Iterator[bytes]:
        """What its parts hold, in their order; raises as :meth:`block`."""
        for number in range(saved.parts):
            index = _index(saved.slot, number)
            record = self._rows.get(SNAPSHOTS, index)
            if record is None:
                raise Tampered("store-missing", f"the store lacks part {number} of its snapshot")
            yield self._opened(SNAPSHOTS, index, saved.name, record)

    def begin(self, version: bytes, size: int, link: bytes, root: bytes) -> Saved:
        """A snapshot to be written in place of the present one, which stands until :meth:`finish`."""
        try:
            present = self.saved()
        except Tampered:
            present = None
            self.discard()
        slot = 1 - present.slot if present else 0
        if left := self._there(slot):  # of one that was never finished
            self._write([], left)
        return Saved(version, secrets.token_bytes(_NAME), size, link, root, slot, 0)

    def put_part(self, saved: Saved, data: bytes) -> Saved:
        """Write its next part; raises as the store's append."""
        index = _index(saved.slot, saved.parts)
        self._write([Row(SNAPSHOTS, index, self._seal(SNAPSHOTS, index, saved.name, data))], [])
        return replace(saved, parts=saved.parts + 1)

    def finish(self, saved: Saved) -> None:
        """From now on it is the newest, and the one before it is gone; raises as the store's append."""
        content = {
            "version": saved.version,
            "name": saved.name,
            "size": saved.size,
            "link": saved.link,
            "root": saved.root,
            "slot": saved.slot,
            "parts": saved.parts,
        }
        record = self._seal(SNAPSHOTS, _MANIFEST, CHAIN_START, cbor.encode(content))
        try:
            before = self.saved()
            drop = [(SNAPSHOTS, _index(before.slot, part)) for part in range(before.parts)] if before else []
        except Tampered:  # changed since it was begun; it is replaced now
            drop = self._there(1 - saved.slot)
        self._write([Row(SNAPSHOTS, _MANIFEST, record)], drop)

    def discard(self) -> None:
        """Drop the snapshot: the next start reads every entry. Raises as the store's append."""
        self._write([], [(SNAPSHOTS, _MANIFEST), *self._there(0), *self._there(1)])

    def beyond(self, size: int, end: int) -> list[tuple[str, int]]:
        """What does not outlive a cut to ``size`` entries, of ``end``: blocks that reach beyond, and the snapshot."""
        drop = [(BLOCKS, number) for number in range(size // self._entries, -(-end // self._entries))]
        try:
            saved = self.saved()
        except Tampered:
            saved = None
        if saved is None or saved.size > size:
            drop.append((SNAPSHOTS, _MANIFEST))
        return drop

    def _there(self, slot: int) -> list[tuple[str, int]]:
        """The parts that lie in one slot without a gap."""
        found: list[tuple[str, int]] = []
        while self._rows.get(SNAPSHOTS, index := _index(slot, len(found))) is not None:
            found.append((SNAPSHOTS, index))
        return found


def _index(slot: int, part: int) -> int:
    return 1 + slot * MAX_SNAPSHOT_PARTS + part
