"""Who may do how much here (spec/protocol.md, 5.7): one bucket for each who is known, on the monotonic clock.

Refusals are ``rate-limited`` and say after how many seconds the same is let through. They are made after
authentication and after every check against replay, so that nobody spends what belongs to somebody else; what is before
that is bounded by workers, queues and connections.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Final, final

from cloister.attest import claim_names
from cloister.attest.types import Claims
from cloister.base.clock import Clock
from cloister.base.errors import Unavailable
from cloister.base.limits import NEWCOMER_S
from cloister.keyservice.limiting.charges import Charge, charge_of
from cloister.keyservice.limiting.rates import Buckets, Rate, Rates
from cloister.keyservice.state.state import State
from cloister.wire.statements import Statement

_ALL: Final = "all"
# Share of the log's growth that is left to those after it.
_RESERVES: Final = {Charge.REGISTRATION: 0.5, Charge.STATEMENT: 0.25, Charge.WITHDRAWAL: 0.0}
_NEWCOMERS: Final = 0.5  # likewise, whatever they say: identities are free, and a flood of them is seen within a day
_INVITE: Final = "An identity that an owner granted a model to is taken at once: a grant may come before it."


def _ignore(_kind: str) -> None:
    """Nobody counts."""


class SessionBucket:
    """What one session may still ask for; it lives and ends with the session."""

    __slots__ = ("full_at",)

    def __init__(self) -> None:
        self.full_at = 0.0


@final
class Limiter:
    """All buckets of one KeyService; thread-safe.

    :param refused: told of each refusal, by kind and without a name.
    """

    def __init__(self, rates: Rates, clock: Clock, refused: Callable[[str], None] = _ignore) -> None:
        self._clock = clock
        self._told = refused
        self._lock = threading.Lock()
        self._by_charge: dict[Charge, Buckets[bytes]] = {
            Charge.STATEMENT: Buckets(rates.statements),
            Charge.WITHDRAWAL: Buckets(rates.withdrawals),
            Charge.RECOVERY: Buckets(rates.recoveries),
        }
        self._registrations: Buckets[str] = Buckets(rates.registrations)
        self._growth: Buckets[str] = Buckets(rates.growth)
        self._keys: Buckets[str] = Buckets(rates.keys)
        self._queries: Buckets[bytes] = Buckets(rates.queries)
        self._attestations: Buckets[str] = Buckets(rates.attestations)
        self._platforms: Buckets[str] = Buckets(rates.platform_releases)
        self._session: Rate = rates.releases

    def statement(self, state: State, statement: Statement, now: float, *, by_recovery_key: bool) -> None:
        """A statement that was checked is about to become an entry.

        :param now: the KeyService's time, for what the statement says; buckets run on the monotonic clock.
        :raises Unavailable: ``rate-limited``.
        """
        charge = charge_of(state, statement, now, by_recovery_key=by_recovery_key)
        if charge is Charge.NONE:
            return
        at = self._clock.monotonic()
        with self._lock:
            if charge is Charge.REGISTRATION:
                wait = self._registrations.wait(_ALL, at)
            else:
                wait = self._by_charge[charge].wait(statement.issuer, at)
            if wait:
                raise self._over_limit(charge.value, wait, _INVITE if charge is Charge.REGISTRATION else None)
            if charge is not Charge.RECOVERY:
                reserve = _NEWCOMERS if _is_new(state, statement, now) else _RESERVES[charge]
                self._grow(self._growth, at, reserve)
            if charge is Charge.REGISTRATION:
                self._registrations.take(_ALL, at)
            else:
                self._by_charge[charge].take(statement.issuer, at)

    def query(self, identity: bytes) -> None:
        """A query that was not asked before. :raises Unavailable: ``rate-limited``."""
        at = self._clock.monotonic()
        with self._lock:
            self._charge(self._queries, identity, at, "query")

    def attestation(self, platform: str) -> None:
        """Evidence that verified, over a challenge that is redeemed now. :raises Unavailable: ``rate-limited``."""
        at = self._clock.monotonic()
        with self._lock:
            self._charge(self._attestations, platform, at, "attestation")

    def release(self, session: SessionBucket, platform: str) -> None:
        """A session asks for keys. :raises Unavailable: ``rate-limited``."""
        at = self._clock.monotonic()
        with self._lock:
            wait = max(self._session.wait(session.full_at, at), self._platforms.wait(platform, at))
            if wait:
                raise self._over_limit("release", wait)
            session.full_at = self._session.taken(session.full_at, at)
            self._platforms.take(platform, at)

    def entry(self) -> None:
        """A release or a service key is about to become an entry. :raises Unavailable: ``rate-limited``."""
        at = self._clock.monotonic()
        with self._lock:
            self._grow(self._keys, at, 0.0)

    def room(self) -> float:
        """How much of the log's growth by what people say is left, 0 to 1."""
        at = self._clock.monotonic()
        with self._lock:
            return self._growth.room(_ALL, at)

    def _grow(self, growth: Buckets[str], at: float, reserve: float) -> None:
        wait = growth.wait(_ALL, at, reserve)
        if wait:
            raise self._over_limit("growth" if growth is self._growth else "keys", wait)
        growth.take(_ALL, at)

    def _charge(self, buckets: Buckets[bytes] | Buckets[str], key: bytes | str, at: float, kind: str) -> None:
        table: Buckets[bytes | str] = buckets  # type: ignore[assignment]
        wait = table.wait(key, at)
        if wait:
            raise self._over_limit(kind, wait)
        table.take(key, at)

    def _over_limit(self, kind: str, wait: float, hint: str | None = None) -> Unavailable:
        self._told(kind)
        return Unavailable(
            "rate-limited",
            f"more than this KeyService takes of one kind: {kind}",
            retry_after=None if math.isinf(wait) else wait,
            hint=hint,
            details={"kind": kind},
        )


def _is_new(state: State, statement: Statement, now: float) -> bool:
    identity = state.identities.get(statement.issuer)
    return identity is None or now < identity.registered_at + NEWCOMER_S


def platform_of(claims: Claims) -> str:
    """Whose machine evidence comes from, as far as it says: what its runtimes use is counted together.

    Chip or PPID; of Nitro the instance. A TEE that names none is one platform with all others of its kind that do not.
    """
    if claims.platform_id:
        return f"{claims.tee.value}:{claims.platform_id.hex()}"
    module = claims.specific.get(claim_names.NITRO_MODULE_ID)
    return f"{claims.tee.value}:{module.partition('-enc')[0] if isinstance(module, str) else ''}"
