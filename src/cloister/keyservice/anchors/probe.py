"""What the witnesses know, asked without showing them anything (spec/protocol.md, 13.8.1 and 13.20.1).

So a replica finds out before it leads whether its log continues what they co-signed. What it holds beyond may never
have been confirmed, and a head that it signed and that loses would look like a fork to them.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from cloister.adapters.witness import WitnessPort
from cloister.base.errors import CloisterError
from cloister.crypto.digest import same
from cloister.keyservice.ledger import Ledger
from cloister.wire.calls import LogHead
from cloister.wire.checkpoint import Cosignature, SignedNote, parse_cosigned_note
from cloister.wire.log_keys import LogKeys

_PATIENCE_S: Final = 10.0  # above the deadline of one exchange
_STRAGGLERS_S: Final = 0.2  # for those that are a little slower, once enough have answered


class _Word(Enum):
    AGREES = auto()
    AHEAD = auto()
    OTHER = auto()
    AWAY = auto()


@dataclass(frozen=True, slots=True)
class _Answer:
    word: _Word
    head: LogHead | None = None
    cosignature: Cosignature | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found.

    :param agree: witnesses whose head our log continues; :param ahead: that have more entries than it;
        :param other: that have another history, and will not sign ours.
    :param head: the newest head that ``threshold`` of them co-signed, and that our log continues.
    """

    agree: int
    ahead: int
    other: int
    head: LogHead | None


def probe(
    witnesses: Sequence[WitnessPort],
    ledger: Ledger,
    *,
    keys: Sequence[bytes],
    threshold: int,
    keyservice: bytes,
    log_keys: LogKeys,
) -> Probe:
    """Ask all at once; returns when enough agree, or all have answered."""
    results: queue.SimpleQueue[_Answer] = queue.SimpleQueue()

    def ask(port: WitnessPort) -> None:
        try:
            results.put(_ask(port, ledger, keys=keys, keyservice=keyservice, log_keys=log_keys))
        except CloisterError:
            results.put(_Answer(_Word.AWAY))

    for port in witnesses:
        threading.Thread(target=ask, args=(port,), name="probe", daemon=True).start()
    words: Counter[_Word] = Counter()
    signed: dict[LogHead, dict[bytes, Cosignature]] = {}
    for _ in witnesses:
        try:
            answer = results.get(timeout=_STRAGGLERS_S if words[_Word.AGREES] >= threshold else _PATIENCE_S)
        except queue.Empty:
            break
        words[answer.word] += 1
        if answer.head is not None and answer.cosignature is not None:
            head = replace(answer.head, time=0)
            signed.setdefault(head, {})[answer.cosignature.key] = answer.cosignature
    proven = [
        replace(head, time=max(item.time for item in by_key.values()), cosignatures=_ordered(by_key))
        for head, by_key in signed.items()
        if len(by_key) >= threshold
    ]
    newest = max(proven, key=lambda head: head.size, default=None)
    return Probe(words[_Word.AGREES], words[_Word.AHEAD], words[_Word.OTHER], newest)


def _ordered(by_key: dict[bytes, Cosignature]) -> tuple[Cosignature, ...]:
    return tuple(by_key[key] for key in sorted(by_key))


def _ask(port: WitnessPort, ledger: Ledger, *, keys: Sequence[bytes], keyservice: bytes, log_keys: LogKeys) -> _Answer:
    told = port.newest(keyservice)
    if not told:  # it knows nothing yet; or it does not tell, and is asked for its co-signature later
        return _Answer(_Word.AGREES)
    log_key = log_keys.signer(SignedNote.parse(told).checkpoint.size)  # perhaps nothing was co-signed since a rotation
    found = parse_cosigned_note(told, log_key, keys)
    if found is None or found[0].keyservice != keyservice:
        return _Answer(_Word.AWAY)  # no witness of ours
    checkpoint, cosignature = found
    if checkpoint.size > ledger.position()[0]:
        return _Answer(_Word.AHEAD)
    head = ledger.head_at(checkpoint.size)
    return _Answer(_Word.AGREES, head, cosignature) if same(head.root, checkpoint.root) else _Answer(_Word.OTHER)
