"""Whether a backup is of now, as far as others know (spec/protocol.md, 13.25.4). Pure.

An old backup is a genuine file: nothing in it can tell that it is old. What can is a head of the log that somebody
outside the store kept: who holds a receipt, an export, another backup, or the witnesses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.adapters.witness import WitnessPort
from cloister.base.errors import CloisterError, InvalidInput, Tampered, Unavailable
from cloister.base.limits import MAX_RECEIPT, MAX_SEALED_ROOT
from cloister.crypto.digest import same
from cloister.keyservice.backup.format import FORMAT, Header
from cloister.log.export import FORMAT as EXPORT_FORMAT
from cloister.log.export import MAX_HEADER_RECORD, ExportHeader
from cloister.log.merkle import EMPTY_ROOT
from cloister.log.receipt import verify_receipt
from cloister.wire import cbor
from cloister.wire.checkpoint import SignedNote

_TEXT: Final = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Known:
    """A head of the log that somebody outside the store knows.

    :param where: who, for messages.
    """

    where: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Told:
    """What one witness said when it was asked: a head, nothing yet (neither), or a code for why it said nothing."""

    address: str
    known: Known | None = None
    trouble: str = ""


def require_known(known: Known, size: int, roots: Mapping[int, bytes]) -> None:
    """A log of ``size`` entries continues a head that is known from elsewhere.

    :param roots: its roots by size, of every known size up to its own.
    :raises Tampered: ``log-rollback``: it is behind; ``log-fork``: it is another history.
    """
    if known.size > size:
        raise Tampered(
            "log-rollback",
            f"the backup's log has {size} entries, and {known.where} knows it with {known.size}",
            hint="There is a newer backup, or there was. With witnesses a KeyService on this one releases nothing.",
            details={"behind": str(known.size - size)},
        )
    if not same(roots[known.size] if known.size else EMPTY_ROOT, known.root):
        raise Tampered(
            "log-fork",
            f"the first {known.size} entries of the backup's log are not those that {known.where} knows",
            hint="It is of another history of this KeyService. Keep both, and tell the auditor.",
        )


def known_from_text(text: str) -> Known:
    """``SIZE:ROOT``, as ``cloister keyservice status`` prints it; whoever says it answers for it.

    :raises InvalidInput: ``head-malformed``.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise InvalidInput(
            "head-malformed",
            f"not a head of a log: {text[:100]!r}",
            hint="Write SIZE:ROOT, the root in hexadecimal, or name a receipt, an exported log or another backup.",
        )
    return Known("whoever gave the head", int(match[1]), bytes.fromhex(match[2]))


def known_from_file(name: str, head: bytes, header: Header) -> Known:
    """From a receipt or an exported log, by the first bytes of its file.

    Both are signed; they must be of the KeyService that the backup is of.

    :param head: at most ``MAX_HEAD`` bytes.
    :raises InvalidInput: anything malformed; ``backup-other``, ``receipt-other``.
    :raises Tampered: ``signature-invalid``, ``log-head``, ``log-inclusion``, ``log-key-retired``.
    """
    first = _first_record(head)
    if first is not None:
        export = ExportHeader.read(first)
        _require_same(export.keyservice, header, name)
        return Known(name, export.head.size, export.head.root)
    receipt = verify_receipt(head, header.log_keys)
    return Known(name, receipt.head.size, receipt.head.root)


MAX_HEAD: Final = 4 + max(MAX_HEADER_RECORD + MAX_SEALED_ROOT, MAX_RECEIPT)  # the first record of any of them


def is_backup(head: bytes) -> bool:
    """Whether a file that begins like this is a backup."""
    return FORMAT.encode() in head[: 4 + int.from_bytes(head[:4], "big")]


def _first_record(head: bytes) -> object | None:
    """The header of an exported log, if it is one."""
    length = int.from_bytes(head[:4], "big")
    if EXPORT_FORMAT.encode() not in head[: 4 + length] or not 0 < length <= len(head) - 4:
        return None
    found: object = cbor.decode(head[4 : 4 + length], limit=MAX_HEADER_RECORD, what="the exported log")
    return found


def _require_same(keyservice: bytes, header: Header, name: str) -> None:
    if keyservice != header.keyservice:
        raise InvalidInput("backup-other", f"{name} is of another KeyService than the backup")


def ask_witnesses(witnesses: Sequence[tuple[str, WitnessPort]], header: Header) -> list[Told]:
    """What witnesses co-signed last (13.8.1), as far as the log key signed it: that is what nobody else can make.

    :param witnesses: each with its address.
    :raises Unavailable: ``witness-away`` when none of them says anything.
    """
    told = [_ask(address, port, header) for address, port in witnesses]
    if told and all(item.trouble for item in told):
        raise Unavailable(
            "witness-away",
            f"none of the witnesses says what it knows of this KeyService: {', '.join(i.trouble for i in told)}",
            hint="Without their word nobody knows whether this backup is the newest.",
        )
    return told


def _ask(address: str, port: WitnessPort, header: Header) -> Told:
    try:
        note = port.newest(header.keyservice)
        if note is None:
            return Told(address, trouble="witness-silent")
        if not note:
            return Told(address)
        parsed = SignedNote.parse(note)
        if parsed.checkpoint.keyservice != header.keyservice:
            return Told(address, trouble="witness-other")
        checkpoint = parsed.verify(header.log_keys.signer(parsed.checkpoint.size))
    except CloisterError as error:
        return Told(address, trouble=error.code)
    return Told(address, Known(f"the witness at {address}", checkpoint.size, checkpoint.root))
