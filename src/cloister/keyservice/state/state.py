"""The KeyService's state: what replaying its log gives (spec/protocol.md, section 6 and clause 13.1). No I/O.

``rules.check`` says whether a statement may be applied now; ``transitions.apply`` applies an entry that is in the log.
Secrets are not here: the state knows only beside which entry each arrived, its commitment and until when it lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.access.records import ConsentRecord, Facts, GrantRecord, Identity, Model, ServiceKey
from cloister.base.ids import ModelId
from cloister.base.limits import BLOCK_ENTRIES
from cloister.keyservice.state.events import Events
from cloister.keyservice.state.persons import Waiting
from cloister.keyservice.state.tables import Index, Journal, Table
from cloister.log.custody import CustodySet
from cloister.log.entry import BundleRecord, Genesis
from cloister.wire.log_keys import LogKeys

EVERYBODY: Final = b""  # in ``events``: entries about the KeyService itself, which concern whoever rests on it
KEPT_UNTIL_REPLACED: Final = 2**62  # a secret without which the service can go on, if the store should lose it
ServiceKeyName = tuple[ModelId, bytes | None, bytes]


@dataclass(frozen=True, slots=True)
class SecretPlace:
    """One secret that the state still needs.

    :param commitment: of a model or request key; the public key's id of a service key.
    :param until: Unix seconds at which it must be destroyed; ``None`` while it is in use.
    """

    commitment: bytes
    until: int | None = None


@dataclass(frozen=True, slots=True)
class CustodyState:
    """Who can bring the KeyService back (clause 13.24.5).

    :param entry: in which it says so, and beside which the recovery record is.
    :param used: whether the set was used since, so that another is due.
    """

    entry: int
    made: CustodySet
    used: bool = False


class State:
    """Everything the log says, by key. Read by rules, queries and decisions; changed by ``transitions`` only.

    A new table has a line in ``state.encoding`` too.

    :param block: entries that are written down together, when nothing but their number is kept (13.23.2).
    """

    def __init__(self, block: int = BLOCK_ENTRIES) -> None:
        self.journal = Journal()
        self.size = 0
        self.time = 0
        self.genesis: Genesis | None = None
        self.bundle: BundleRecord | None = None
        self.log_keys: LogKeys | None = None
        self.custody: CustodyState | None = None
        self.identities: Table[bytes, Identity] = Table(self.journal)
        self.policies: Table[bytes, bytes] = Table(self.journal)
        self.policies_of: Index[bytes, bytes] = Index(self.journal)
        self.models: Table[ModelId, Model] = Table(self.journal)
        self.models_of: Index[bytes, ModelId] = Index(self.journal)
        self.grants: Table[tuple[ModelId, bytes], GrantRecord] = Table(self.journal)
        self.grants_by: Index[bytes, tuple[ModelId, bytes]] = Index(self.journal)
        self.grants_to: Index[bytes, ModelId] = Index(self.journal)
        self.consents: Table[tuple[bytes, ModelId], ConsentRecord] = Table(self.journal)
        self.consents_by: Index[bytes, ModelId] = Index(self.journal)
        self.consents_to: Index[ModelId, bytes] = Index(self.journal)
        self.delegations: Table[tuple[bytes, bytes], int] = Table(self.journal)
        self.delegates_of: Index[bytes, bytes] = Index(self.journal)
        self.delegated_to: Index[bytes, bytes] = Index(self.journal)
        self.two_persons: Table[bytes, int] = Table(self.journal)  # since which entry one is not enough
        self.proposed: Table[int, Waiting] = Table(self.journal)  # all that ever waited for a second person
        self.waiting: Index[bytes, int] = Index(self.journal)  # of one identity, still
        self.service_keys: Table[ServiceKeyName, tuple[ServiceKey, ...]] = Table(self.journal)
        self.secrets: Table[int, SecretPlace] = Table(self.journal)
        self.dying: Table[int, int] = Table(self.journal)
        self.events = Events(self.journal, block)

    def now(self, clock: float) -> float:
        """The KeyService's time: the clock, but never behind the newest entry."""
        return max(clock, float(self.time))

    def facts(self, user: bytes, model: ModelId) -> Facts:
        """What the decision about one user and one model needs."""
        consent = self.consents.get((user, model))
        name = (model, consent.manifest_digest, consent.policy_digest) if consent else None
        return Facts(
            owner=self.identities.get(model.owner),
            user=self.identities.get(user),
            model=self.models.get(model),
            grant=self.grants.get((model, user)),
            consent=consent,
            service_keys=(self.service_keys.get(name) or ()) if name else (),
        )

    def may_speak_for(self, issuer: bytes, subject: bytes, now: float) -> bool:
        """Whether ``subject`` is the issuer, or delegated to it until later than now (clause 6.3)."""
        if issuer == subject:
            return True
        until = self.delegations.get((subject, issuer))
        return until is not None and now < until

    def dead_secrets(self, now: float) -> tuple[int, ...]:
        """Entries whose secrets must be destroyed by now."""
        return tuple(entry for entry, until in self.dying.items() if until <= now)

    def forget_secret(self, entry: int) -> None:
        """The secret beside this entry was destroyed."""
        self.secrets.drop(entry)
        self.dying.drop(entry)
