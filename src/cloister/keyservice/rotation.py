"""Another root for the same KeyService: log key, store key and replication key anew (spec/protocol.md, 13.27).

Three writes, each durable before the next: the new root, sealed, beside the old one; one transaction of the store, from
which on only the new root opens its head; and the new root in the place of the old one. Whoever opens the KeyService
after a crash keeps the root that opens the head, so it is rotated or it is not.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cloister.adapters.witness import WitnessPort
from cloister.attest.types import Sealer
from cloister.base.clock import Clock
from cloister.base.errors import Tampered, Unavailable
from cloister.base.limits import BLOCK_ENTRIES
from cloister.crypto.digest import same
from cloister.keyservice.anchors.probe import probe
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.root import Root, keep_root, open_root, remove_root, replace_root
from cloister.keyservice.settings import NO_ROLLBACK_PROTECTION, Settings
from cloister.keyservice.storage.port import Rows
from cloister.keyservice.storage.sealed import SealedStore
from cloister.log.entry import ROTATION, SALT_LENGTH, Entry

_NEW: Final = ".new"  # after the name of the root's file: one that may or may not have taken its place


def newer(path: Path) -> Path:
    """Where a root lies until the store is under it."""
    return path.with_name(path.name + _NEW)


def settled_root(path: Path, sealer: Sealer, rows: Callable[[], Rows]) -> Root:
    """The root, after a rotation that was cut short is finished or forgotten.

    :param rows: opens the store; called only when a rotation was begun, and what it gives is closed again.
    :raises Tampered: ``store-generation``: neither of the two roots opens the store's head; as ``open_root``.
    :raises Unavailable: as ``open_root``; ``state-unwritable``; ``store-locked``, ``store-unavailable``.
    """
    if not newer(path).exists():
        return open_root(path, sealer)
    opened = rows()
    try:
        present = open_root(path, sealer)
        if stored(opened, present).belongs():
            remove_root(newer(path))
            return present
        following = open_root(newer(path), sealer)
        if stored(opened, following).belongs() and following.log_keys.continues(present.log_keys):
            replace_root(path, newer(path))
            return following
    finally:
        opened.close()
    raise Tampered(
        "store-generation",
        "a rotation of the root was begun, and neither the old nor the new root opens the store",
        hint="Somebody changed the state directory. Restore it whole.",
    )


def stored(rows: Rows, root: Root, block_entries: int = BLOCK_ENTRIES) -> SealedStore:
    """The store of this root."""
    return SealedStore(rows, root.store_key, root.id, root.entry_keys, block_entries=block_entries)


def require_root(ledger: Ledger, root: Root, *, catching_up: bool = False) -> None:
    """The log must be of the KeyService and the generation whose root this is (13.27.2).

    :param catching_up: it may end before the newest rotations, for a replica gets the rest from others.
    :raises Tampered: as ``Ledger.require_genesis``; ``store-generation``; ``log-fork``; ``store-before-hand-over``.
    """
    ledger.require_genesis(root.id)
    found, size = ledger.log_keys(), ledger.head().size
    if found is None or not root.log_keys.continues(found):
        raise _other_generation()
    if found != root.log_keys and not (catching_up and size <= root.log_keys.certificates[found.generation].size):
        raise _other_generation()
    for certificate in found.certificates:
        if not same(ledger.head_at(certificate.size).root, certificate.root):
            raise Tampered("log-fork", "a log key was retired at another history than the one in the store")
    if root.since is not None and not ledger.contains(*root.since) and not (catching_up and size < root.since[0]):
        raise Tampered(
            "store-before-hand-over",
            f"the store does not hold the {root.since[0]} entries that the log had when the root secret came here",
            hint="Stop the old build first, then carry its store over whole.",
        )


def rotate_root(
    path: Path,
    sealer: Sealer,
    settings: Settings,
    rows: Callable[[], Rows],
    *,
    clock: Clock,
    witnesses: Sequence[WitnessPort] = (),
) -> Root:
    """Rotate the root of a KeyService that does not run (13.27.6). After an error it was rotated or it was not, and
    :func:`settled_root` tells; only after it returned may the new root be believed to be the one.

    :param path: of the sealed root. :param witnesses: how to reach those of the settings.
    :raises Unavailable: ``keyservice-unconfirmed``, ``keyservice-superseded``: this store is not, or not known to be,
        what witnesses confirmed; ``store-locked`` while it runs; ``store-unavailable``, ``state-unwritable``.
    :raises Tampered: as ``Ledger``, :func:`require_root` and ``open_root``. :raises Refused: ``limit-reached``.
    """
    present = settled_root(path, sealer, rows)
    opened = rows()
    try:
        ledger = Ledger(stored(opened, present), clock)
        require_root(ledger, present)
        if settings.rollback_protection != NO_ROLLBACK_PROTECTION:
            _require_newest(ledger, present, settings, witnesses)
        ledger.sweep()
        head = ledger.head()
        following = present.rotated(head.size, head.root, head.time)
        remove_root(newer(path))
        keep_root(newer(path), following, sealer)
        certificate = following.log_keys.encoded[-1]
        salt = secrets.token_bytes(SALT_LENGTH)
        ledger.rotate(Entry(ROTATION, head.time, salt, certificate), following.store_key)
        replace_root(path, newer(path))
    finally:
        opened.close()
    return following


def _require_newest(ledger: Ledger, root: Root, settings: Settings, witnesses: Sequence[WitnessPort]) -> None:
    """A store that lacks what was confirmed would be left behind with its new root, and the old root be gone."""
    found = probe(
        witnesses,
        ledger,
        keys=settings.witnesses,
        threshold=settings.witness_threshold,
        keyservice=root.id,
        log_keys=root.log_keys,
    )
    if found.agree >= settings.witness_threshold:  # then it holds all that was confirmed (13.20.1)
        return
    if found.ahead or found.other:
        raise Unavailable(
            "keyservice-superseded",
            "witnesses know a later or another history of this KeyService's log than the one in this store",
            hint="Of several replicas, rotate the one with the longest log, while none runs.",
        )
    raise Unavailable(
        "keyservice-unconfirmed",
        f"{found.agree} witnesses say that this store holds what they confirmed, and {settings.witness_threshold} must",
        hint="Say --witness URL for each witness of the configuration.",
    )


def _other_generation() -> Tampered:
    return Tampered(
        "store-generation",
        "the log in the store names other log keys than the KeyService's root has",
        hint="Root and store are of different times. Restore both together.",
    )
