"""How a KeyService comes to its root secret: from its own disk, or from one that runs (protocol.md, 13.15, 13.26)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.adapters.keyservice import Transport
from cloister.adapters.logs import EventLog
from cloister.attest.bundle import TrustBundle
from cloister.attest.types import CollateralSource
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import JOIN_PATIENCE_S, JOIN_RETRY_S
from cloister.keyservice.custody.upkeep import NO_CUSTODIANS, Custodians
from cloister.keyservice.offline import ROOT_FILE, initialise, kept_root
from cloister.keyservice.opening import Tee
from cloister.keyservice.replication.handover import Joiner
from cloister.keyservice.root import Root, keep_root
from cloister.keyservice.settings import Settings
from cloister.keyservice.storage.place import StorePlace, store_place

ASIDE: Final = ".before"  # ends the name of what an earlier build sealed


@dataclass(frozen=True, slots=True)
class Joining:
    """How one may join.

    :param givers: running KeyServices, asked in this order.
    :param expected: id of the only KeyService to join; ``None``: whichever they are.
    """

    givers: Sequence[Transport]
    bundle: Callable[[], TrustBundle]
    collateral: CollateralSource
    expected: bytes | None = None


def join(state: Path, tee: Tee, settings: Settings, joining: Joining, clock: Clock, *, again: bool = False) -> Root:
    """Get the root secret from the first giver that hands it over, and keep it sealed where the TEE can.

    :param again: one that another build sealed here is put aside.
    :raises Refused: ``state-exists``: a root secret is there already.
    :raises CloisterError: what the last giver said, or what was wrong with it.
    """
    path = state / ROOT_FILE
    if path.exists() and not again:
        raise Refused("state-exists", f"{path} exists already", hint="Run it; it has joined before.")
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable("state-unwritable", f"{state} cannot be made: {error.strerror}") from error
    last: CloisterError = InvalidInput("argument", "no running KeyService was named to join")
    for giver in joining.givers:
        try:
            asking = Joiner(
                tee.attester, settings.measured(), joining.bundle(), joining.collateral, clock, joining.expected
            )
            root = asking.receive(giver)
        except CloisterError as error:
            if isinstance(last, InvalidInput) or not isinstance(error, Unavailable):
                last = error  # who does not answer tells less than who refuses
            continue
        if tee.sealer is not None:
            if path.exists():
                path.replace(path.with_suffix(ASIDE))
            keep_root(path, root, tee.sealer)
        return root
    raise last


def find_root(
    state: Path,
    tee: Tee,
    settings: Settings,
    joining: Joining | None,
    *,
    clock: Clock,
    events: EventLog,
    new: bool = False,
    store: StorePlace | None = None,
    custodians: Custodians = NO_CUSTODIANS,
    sleep: Callable[[float], None] = time.sleep,
    patience_s: float = JOIN_PATIENCE_S,
) -> Root:
    """The root secret, from the disk, or else from a replica that runs; waits for one.

    What is sealed on the disk and does not open is of another build, or was changed: then, too, a replica is asked.

    :param new: make a new KeyService where there is nothing and no replica answers; only without a sealing key.
    :param store: where its records are; by default in the state directory.
    :param custodians: of a new one, as :func:`~cloister.keyservice.offline.initialise`.
    :raises InvalidInput: ``argument``: a new one where ``init`` makes one that lasts.
    :raises Unavailable: ``state-missing``, ``state-unreadable``; no replica handed it over in time.
    :raises Tampered: as :func:`~cloister.keyservice.root.open_root`. :raises CloisterError: as :func:`join`.
    """
    sealed: Tampered | None = None
    if new and tee.sealer is not None:
        raise InvalidInput("argument", "--new is for TEEs without a sealing key; `cloister keyservice init` makes one")
    if joining is None or (state / ROOT_FILE).exists():
        if tee.sealer is None:
            raise Unavailable(
                "sealing-unavailable",
                f"{tee.attester.tee.value} has no key that survives a restart",
                hint="Name replicas that run with --peer: one of them hands the root secret over.",
            )
        try:
            return kept_root(state, tee.sealer, store)
        except Tampered as error:
            if joining is None or error.code != "unseal-failed":
                raise
            events.event("root-sealed-otherwise", level="warning", code=error.code)
            sealed = error  # by the build before this one, perhaps: its records are those of the same root
    until = clock.monotonic() + patience_s
    while True:
        try:
            root = join(state, tee, settings, joining, clock, again=sealed is not None)
        except Unavailable as error:
            if new and not (store or store_place(state)).exists():
                return initialise(state, tee, settings, clock, store, custodians=custodians)
            if clock.monotonic() >= until:
                raise sealed or error from None
            events.event("join-failed", level="warning", code=error.code)
            sleep(JOIN_RETRY_S)
        else:
            events.event("joined", tee=tee.attester.tee.value)
            return root
