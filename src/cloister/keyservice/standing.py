"""How a KeyService stands, for its operator (spec/protocol.md, 13.25.3): numbers, addresses and words, and no secret.

Nobody else hears it, and nobody believes it: callers attest the KeyService, and verify what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from cloister.attest.types import TeeType
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError
from cloister.keyservice.anchors.majority import MajorityAnchor
from cloister.keyservice.settings import NO_ROLLBACK_PROTECTION, Settings
from cloister.keyservice.storage.port import Rows

if TYPE_CHECKING:
    from cloister.keyservice.app import Assembled
    from cloister.keyservice.opening import Tee

SINGLE: Final = "single"


@final
@dataclass(frozen=True, slots=True)
class Standing:
    """What is asked when the operator asks.

    :param witnesses: their addresses, in the order in which the anchor numbers them.
    :param address: where callers reach it, once it listens.
    """

    assembled: Assembled
    rows: Rows
    settings: Settings
    tee: Tee
    clock: Clock
    address: Callable[[], str]
    witnesses: Sequence[str] = ()

    def fields(self) -> Mapping[str, object]:
        """For JSON."""
        ledger, root = self.assembled.ledger, self.assembled.root
        size, _ = ledger.position()
        try:
            shown = ledger.shown_head()
        except CloisterError:  # of replicas, none that may be shown (13.21.1)
            shown = None
        return {
            "keyservice": root.id.hex(),
            "log_key": root.log_key.public_key.hex(),
            "log_keys": [key.hex() for key in root.log_keys.all],
            "generation": root.generation,
            "address": self.address(),
            "tee": self.tee.attester.tee.value,
            "simulated": self.tee.attester.tee is TeeType.SIMULATION,
            "measurement": self.tee.measurement.hex(),
            "configuration": self.settings.measured().digest.hex(),
            "time": int(ledger.now()),
            "entries": size,
            "head": None if shown is None else {"size": shown.size, "root": shown.root.hex()},
            "rollback_protection": self.settings.rollback_protection,
            "releases": self._releases(),
            "trouble": ledger.trouble if ledger.condemned is None else ledger.condemned.code,
            **self._replica(),
            **self._confirmed(),
            "store": self.rows.facts().fields(),
            "snapshot": self._snapshot(),
            "custody": self._custody(),
            "sessions": len(self.assembled.releases.sessions),
        }

    def _releases(self) -> bool:
        """Whether keys are released: heads are being confirmed, where anything confirms them."""
        return self.settings.rollback_protection == NO_ROLLBACK_PROTECTION or self.assembled.anchor.state().open

    def _snapshot(self) -> dict[str, object]:
        """What the next start reads, and how far the scrub of what this one did not read is (13.23)."""
        keeper = self.assembled.keeper
        return {"entries": keeper.saved, "scrubbed": keeper.scrubbed, "unscrubbed": keeper.unscrubbed}

    def _custody(self) -> dict[str, object] | None:
        """Who can bring it back, since which entry, and whether the store has what that takes (13.24.5)."""
        standing, record, shown = self.assembled.ledger.custody()
        if standing is None or not standing.made.custodians:
            return None
        return {
            "threshold": standing.made.threshold,
            "custodians": [custodian.hex() for custodian in standing.made.custodians],
            "entry": standing.entry,
            "recoverable": bool(record) and record == shown,
        }

    def _replica(self) -> dict[str, object]:
        replica = self.assembled.replica
        if replica is None:
            return {"role": SINGLE}
        anchor = self.assembled.anchor
        heard = anchor.heard() if isinstance(anchor, MajorityAnchor) else 0
        return {
            "role": replica.role,
            "replica": {
                "name": replica.identity.hex(),
                "of": self.settings.replicas,
                "leader": replica.leader,
                "behind": replica.behind,
                "heard": heard,
            },
        }

    def _confirmed(self) -> dict[str, object]:
        if not self.assembled.anchor.protects:
            return {}
        state = self.assembled.anchor.state()
        outcomes = [
            {"address": address, "outcome": state.outcomes.get(number, "not-asked")}
            for number, address in enumerate(self.witnesses)
        ]
        return {
            "confirmed": {
                "entries": state.size,
                "age_s": None if state.age_s is None else round(state.age_s, 1),
                "needed": self.settings.witness_threshold,
                "witnesses": outcomes,
            }
        }
