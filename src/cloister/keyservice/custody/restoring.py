"""A KeyService is brought back on another machine: its store is there, its root comes from custodians (13.24.8)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import final

from cloister.adapters.logs import EventLog
from cloister.attest.bundle import TrustBundle
from cloister.attest.types import CollateralSource
from cloister.base.clock import Clock
from cloister.base.errors import Refused, Unavailable
from cloister.crypto import sharing
from cloister.crypto.digest import same
from cloister.keyservice.custody.recovery import Asking
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.offline import ROOT_FILE
from cloister.keyservice.opening import Tee
from cloister.keyservice.proposals import Proposal
from cloister.keyservice.root import Root, keep_root
from cloister.keyservice.rotation import require_root, stored
from cloister.keyservice.settings import Settings
from cloister.keyservice.storage.port import Rows, recovery_record
from cloister.log.entry import RECOVERY
from cloister.wire.custody import CustodyRecord


@final
class Restoring:
    """One attempt to bring back what is in ``rows``, which is held meanwhile.

    :param expected: id of the only KeyService to bring back; ``None``: whichever it is.
    :raises Refused: ``state-exists``; ``keyservice-other``.
    :raises Unavailable: ``state-unwritable``, ``recovery-record-missing``, ``custodians-extra-missing``.
    :raises CloisterError: as :class:`Asking`; a malformed record.
    """

    def __init__(
        self,
        state: Path,
        rows: Rows,
        tee: Tee,
        settings: Settings,
        *,
        bundle: TrustBundle,
        collateral: CollateralSource,
        clock: Clock,
        events: EventLog,
        expected: bytes | None = None,
    ) -> None:
        self._path = state / ROOT_FILE
        self._rows = rows
        self._tee = tee
        self._clock = clock
        self._bundle = bundle
        if self._path.exists():
            raise Refused("state-exists", f"{self._path} exists already", hint="Run it: this machine has a root.")
        try:  # before anybody is called
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable("state-unwritable", f"{state} cannot be made: {error.strerror}") from error
        if not os.access(state, os.W_OK | os.X_OK):
            raise Unavailable("state-unwritable", f"{state} cannot be written: the root is to be kept there")
        sharing.require()
        data = recovery_record(rows)
        if not data:
            raise Unavailable(
                "recovery-record-missing",
                "the store holds nothing that custodians could open",
                hint="Restore a store of a KeyService whose configuration names custodians.",
            )
        record = CustodyRecord.decode(data)
        if expected is not None and not same(record.keyservice, expected):
            raise Refused("keyservice-other", "the store is of another KeyService than the one that was named")
        self.asking = Asking(
            record,
            attester=tee.attester,
            configuration=settings.measured(),
            bundle=bundle,
            collateral=collateral,
            clock=clock,
            events=events,
        )

    def finish(self) -> tuple[Root, int]:
        """With enough shares: the root, sealed for this platform where it can, and the number of entries.

        The whole store was opened and replayed with it, and has one entry more, which says who did this.

        :raises Refused: ``recovery-superseded``: the record is not the newest set's; ``bundle-rollback``: the log knows
            a newer trust bundle than the one by which custodians judged.
        :raises Tampered: ``recovery-record``, ``recovery-other``; the store's codes.
        :raises Unavailable: ``store-unavailable``, ``state-unwritable``.
        """
        root = self.asking.root()
        ledger = Ledger(stored(self._rows, root), self._clock)
        require_root(ledger, root)
        standing, _, _ = ledger.custody()
        if standing is None or standing.made.record != self.asking.record.digest:
            raise Refused(
                "recovery-superseded",
                "by the store's own log others than these custodians, or with other shares, bring the KeyService back",
                hint="Its recovery record is older than the rest of it: restore it whole.",
            )
        with ledger.read() as (found, _):
            recorded = found.bundle
        if recorded is not None and recorded.version > self._bundle.version:
            raise Refused(
                "bundle-rollback",
                f"the log names trust bundle {recorded.version}; custodians judged by the older {self._bundle.version}",
                hint="Ask them again, under the newest bundle.",
            )
        entry = self.asking.entry().encode()
        written = ledger.write(lambda _state, _vault, _now: Proposal(RECOVERY, entry))
        if written is None:
            raise AssertionError
        if self._tee.sealer is not None:
            keep_root(self._path, root, self._tee.sealer)
        return root, written.index + 1
