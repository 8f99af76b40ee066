"""What is done to a KeyService that does not run: it is made, its root is opened, or replaced by another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloister.adapters.witness import WitnessPort
from cloister.attest.types import Sealer
from cloister.base.clock import Clock
from cloister.base.errors import Refused, Unavailable
from cloister.keyservice.anchors.port import Unanchored
from cloister.keyservice.custody.upkeep import NO_CUSTODIANS, Custodians, Custody, renew_now
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.opening import Tee
from cloister.keyservice.root import Root, make_root, new_root
from cloister.keyservice.rotation import rotate_root, settled_root, stored
from cloister.keyservice.settings import Settings
from cloister.keyservice.storage.place import StorePlace, store_place
from cloister.keyservice.storage.port import Rows
from cloister.log.entry import Genesis

ROOT_FILE: Final = "root.sealed"


def initialise(
    state: Path,
    tee: Tee,
    settings: Settings,
    clock: Clock,
    store: StorePlace | None = None,
    *,
    custodians: Custodians = NO_CUSTODIANS,
) -> Root:
    """Make a new KeyService in a directory: root secret, store, first log entry, shares for custodians.

    Without a sealing key the root secret is in what is returned only.

    :param store: where its records go; by default in the same directory.
    :param custodians: public keys of all that the settings name.
    :raises InvalidInput: ``custodian-keys``.
    :raises Refused: ``state-exists``.
    :raises Unavailable: ``state-unwritable``, ``store-...``, ``custodians-extra-missing``.
    """
    custodians.check(settings)
    store = store or store_place(state)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable("state-unwritable", f"{state} cannot be made: {error.strerror}") from error
    if store.exists():
        raise Refused("state-exists", f"{store.name} holds a KeyService already")
    if (state / ROOT_FILE).exists():
        raise Refused("state-exists", f"{state} holds a root secret already")
    rows, _ = store.open()  # before there is a secret: a database that is away leaves nothing behind
    try:
        root = new_root() if tee.sealer is None else make_root(state / ROOT_FILE, tee.sealer)
    except BaseException:
        rows.close()
        raise
    ledger = begin(rows, root, settings, clock)
    try:
        Custody(ledger, Unanchored(), custodians, root=root, settings=settings, code=tee.code(settings)).upkeep()
    finally:
        ledger.close()
    return root


def kept_root(state: Path, sealer: Sealer, store: StorePlace | None = None) -> Root:
    """The root of a KeyService that was made or joined in this directory.

    :param store: where its records are; by default in the same directory.
    :raises Unavailable: ``state-missing``, ``state-unreadable``. :raises Tampered: as :func:`settled_root`.
    """
    return settled_root(state / ROOT_FILE, sealer, (store or store_place(state)).rows)


def rotate(
    state: Path,
    tee: Tee,
    settings: Settings,
    *,
    clock: Clock,
    witnesses: Sequence[WitnessPort] = (),
    store: StorePlace | None = None,
    custodians: Custodians = NO_CUSTODIANS,
) -> Root:
    """Give the KeyService of this directory, which does not run, another root, and custodians shares of it.

    :raises InvalidInput: ``custodian-keys``. :raises CloisterError: as :func:`rotate_root`. After one, a set that is
        due is made by the KeyService when it runs.
    """
    custodians.check(settings)
    if tee.sealer is None:
        raise AssertionError
    rows = (store or store_place(state)).rows
    root = rotate_root(state / ROOT_FILE, tee.sealer, settings, rows, clock=clock, witnesses=witnesses)
    renew_now(rows(), root, custodians, settings=settings, code=tee.code(settings), clock=clock)
    return root


def begin(rows: Rows, root: Root, settings: Settings, clock: Clock) -> Ledger:
    """A new log in an empty store."""
    try:
        genesis = Genesis(root.id, root.log_key.public_key, settings.measured().encoded)
        return Ledger.begin(stored(rows, root), clock, genesis)
    except BaseException:
        rows.close()
        raise
