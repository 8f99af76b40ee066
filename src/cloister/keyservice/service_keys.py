"""Service keys by epoch: pending, active, stale (spec/protocol.md, clause 7.8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cloister.access.records import ConsentRecord, ServiceKey
from cloister.base.errors import Refused, Unavailable
from cloister.base.limits import CLOCK_SKEW_S, MAX_SERVICE_KEYS, REQUEST_FRESHNESS_S
from cloister.crypto.digest import Context, digest
from cloister.crypto.hpke import HpkePrivateKey
from cloister.crypto.sign import SigningKey
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.proposals import Proposal, Written
from cloister.keyservice.state.state import State
from cloister.keyservice.vault import Vault
from cloister.log.entry import SERVICE_KEY_EPOCH, Entry, ServiceKeyEpoch
from cloister.wire.provisioning import ServiceKeyEndorsement

PENDING: Final = "pending"
ACTIVE: Final = "active"
STALE: Final = "stale"


def phase(key: ServiceKey, now: float) -> str | None:
    """``pending``: published, not to be used yet; ``active``; ``stale``: opens what was sealed before; or over."""
    if now < key.not_before:
        return PENDING
    if now < key.not_after:
        return ACTIVE
    return STALE if now < key.not_after + REQUEST_FRESHNESS_S else None


def next_epoch(keys: tuple[ServiceKey, ...], now: float, length: int) -> tuple[int, int, int] | None:
    """Number, start and end of the epoch to make now, if one is due.

    Without an active key one starts now; in the last quarter of the newest one the next is made, to start when it
    has run for ``length``. An epoch ends ``CLOCK_SKEW_S`` after the next has begun, so that clocks need not agree.
    """
    newest = keys[-1] if keys else None
    number = newest.epoch + 1 if newest else 1
    if newest is None or now >= newest.not_after:
        start = int(now)
    elif phase(newest, now) == ACTIVE and now >= newest.not_before + 3 * length / 4:
        start = newest.not_before + length
    else:
        return None
    return number, start, start + length + CLOCK_SKEW_S


def endorsed_keys(
    ledger: Ledger,
    consent: ConsentRecord,
    *,
    keyservice: bytes,
    log_key: SigningKey,
    length: int,
    entry: Callable[[], None],
) -> list[dict[str, object]]:
    """The keys for what was consented to, with their endorsements; those due are made first.

    :param entry: called before one is made; it may refuse.
    :raises Refused: ``limit-reached``. :raises Unavailable: ``store-unavailable``, ``rate-limited``.
    """
    name = (consent.model, consent.manifest_digest, consent.policy_digest)

    def make(state: State, _vault: Vault, now: float) -> Proposal | None:
        keys = state.service_keys.get(name) or ()
        due = next_epoch(keys, now, length)
        if due is None:
            return None
        if not keys and len(state.service_keys) >= MAX_SERVICE_KEYS:
            raise Refused("limit-reached", f"at most {MAX_SERVICE_KEYS} service keys")
        entry()
        private = HpkePrivateKey.generate()
        epoch = ServiceKeyEpoch(*name, due[0], private.public_key, due[1], due[2])
        return Proposal(SERVICE_KEY_EPOCH, epoch.encode(), private.secret())

    while ledger.commit(make) is not None:
        pass
    with ledger.read() as (state, now):
        alive = [(key, word) for key in state.service_keys.get(name) or () if (word := phase(key, now))]
    stored = ledger.entries([key.key_entry for key, _ in alive])
    found: list[dict[str, object]] = []
    for (key, word), (index, data, _) in zip(alive, stored, strict=True):
        stands = Entry.decode(data)
        ledger.confirm(Written(index, stands))
        epoch = ServiceKeyEpoch.decode(stands.body)
        if digest(Context.SERVICE_KEY, epoch.public_key) != key.key_id:
            raise Unavailable("keyservice-unconfirmed", "the log was replaced meanwhile", retry_after=1.0)
        endorsement = ServiceKeyEndorsement(
            keyservice=keyservice,
            model=key.model,
            manifest_digest=key.manifest_digest,
            policy_digest=key.policy_digest,
            epoch=key.epoch,
            public_key=epoch.public_key,
            not_before=key.not_before,
            not_after=key.not_after,
        )
        found.append({"phase": word, "key": key.key_id, "endorsement": endorsement.sign(log_key)})
    return found
