"""Keeps a set of shares for the custodians whom the configuration names (spec/protocol.md, 13.24.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, final

from cloister.adapters.logs import EventLog
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput
from cloister.base.secret import SecretBytes
from cloister.crypto import sharing
from cloister.keyservice.anchors.port import Anchor, Unanchored
from cloister.keyservice.custody.sets import entry_of, make_record, nobody
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.proposals import Proposal
from cloister.keyservice.root import Root
from cloister.keyservice.rotation import stored
from cloister.keyservice.settings import Settings
from cloister.keyservice.state.state import CustodyState, State
from cloister.keyservice.storage.port import Rows
from cloister.keyservice.vault import Vault
from cloister.log.entry import CUSTODY
from cloister.wire.custody import Code, CustodyRecord

_NOBODY: Final[tuple[tuple[bytes, ...], int]] = ((), 0)


@dataclass(frozen=True, slots=True)
class Custodians:
    """What an operator gives for them.

    :param keys: public keys by id. :param renew: make a new set though none is due, once.
    """

    keys: Mapping[bytes, bytes] = field(default_factory=dict)
    renew: bool = False

    def check(self, settings: Settings) -> None:
        """Whether the settings can be followed.

        :raises InvalidInput: ``custodian-keys`` unless there is a key for each custodian, and no other.
        :raises Unavailable: ``custodians-extra-missing``.
        """
        if settings.custodians:
            sharing.require()
        missing = sorted(set(settings.custodians) - self.keys.keys())
        if missing:
            raise InvalidInput(
                "custodian-keys",
                f"the configuration names custodian {missing[0].hex()}, whose public key was not given",
                hint="Say --custodian FILE for each; `cloister custodian keygen` writes it.",
            )
        if self.keys.keys() - set(settings.custodians):
            raise InvalidInput("custodian-keys", "a public key is of no custodian whom the configuration names")


NO_CUSTODIANS: Final = Custodians()


@final
class Custody:
    """Custodians of one KeyService.

    :param code: what this KeyService is.
    :raises InvalidInput: ``custodian-keys``. :raises Unavailable: ``custodians-extra-missing``.
    """

    def __init__(
        self,
        ledger: Ledger,
        anchor: Anchor,
        custodians: Custodians,
        *,
        root: Root,
        settings: Settings,
        code: Code,
        events: EventLog | None = None,
    ) -> None:
        custodians.check(settings)
        self._ledger = ledger
        self._anchor = anchor
        self._root = root
        self._settings = settings
        self._code = code
        self._keys = {each: custodians.keys[each] for each in settings.custodians}
        self._events = events
        self._renew = custodians.renew

    def upkeep(self) -> None:
        """Make a set if one is due and this one leads; bring the record in the clear up to date.

        :raises CloisterError: as writing an entry does; the next call tries again.
        """
        if not self._ledger.following:
            standing, record, _ = self._ledger.custody()
            reason = self._due(standing, record)
            if reason:
                self._make(standing, reason)
        self._show()

    def _due(self, standing: CustodyState | None, record: bytes) -> str:
        """Why a new set is due; empty for none."""
        wanted = tuple(sorted(self._settings.custodians)), self._settings.custodian_threshold
        has = _NOBODY if standing is None else (standing.made.custodians, standing.made.threshold)
        if wanted != has:
            return "configuration"
        if standing is None or wanted == _NOBODY:
            return ""
        if self._renew:
            return "asked"
        if standing.used:
            return "recovered"
        if not record:
            return "record-lost"
        known = CustodyRecord.decode(record)
        if known.generation != self._root.generation:
            return "root"
        return "" if known.code == self._code else "code"

    def _make(self, standing: CustodyState | None, reason: str) -> None:
        if self._keys:
            record = make_record(
                self._root, self._code, custodians=self._keys, threshold=self._settings.custodian_threshold
            )
            body, beside = entry_of(record), SecretBytes(record.encoded)
        else:
            body, beside = nobody(), None

        def propose(state: State, _vault: Vault, _now: float) -> Proposal | None:
            return Proposal(CUSTODY, body.encode(), beside) if state.custody == standing else None

        try:
            if self._ledger.commit(propose) is None:
                return
        except CloisterError as error:
            if error.details.get("written") != "yes":
                raise
        self._renew = False
        if self._events is not None:
            self._events.event("custody", count=len(body.custodians), reason=reason)

    def _show(self) -> None:
        """In the clear lies the newest set's record; it was written with its entry, unless somebody changed it."""
        standing, record, shown = self._ledger.custody()
        if standing is None:
            return
        wanted = record if standing.made.custodians else b""
        if shown != wanted and (wanted or not standing.made.custodians):
            self._ledger.keep_recovery(wanted)


def renew_now(rows: Rows, root: Root, custodians: Custodians, *, settings: Settings, code: Code, clock: Clock) -> None:
    """A set that is due for a KeyService that does not run: nobody was told of the end of its log yet.

    :param rows: closed after it. :raises CloisterError: the store's codes.
    """
    try:
        ledger = Ledger(stored(rows, root), clock)
        Custody(ledger, Unanchored(), custodians, root=root, settings=settings, code=code).upkeep()
    finally:
        rows.close()
