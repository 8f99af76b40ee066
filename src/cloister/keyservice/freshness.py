"""Single use: challenges, query nonces, a session's sequence numbers. Bounded: full means "busy", never "yes"."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections import Counter
from typing import Final, final

from cloister.base import limits
from cloister.base.errors import InvalidInput, Refused, Unavailable
from cloister.crypto.digest import Context, same

_NONCE: Final = 16
_MAC: Final = 32
CHALLENGE_LENGTH: Final = _NONCE + 8 + _MAC


@final
class Challenges:
    """Stateless challenges, nonce || u64 milliseconds || MAC, redeemed once (clause 7.1).

    The MAC key lives as long as the process: a challenge of an earlier process, whose redemption nobody remembers,
    is refused. Only challenges whose evidence verified are remembered, so that filling the memory costs attestations.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._redeemed: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def issue(self, now: float) -> bytes:
        """A fresh challenge; costs no memory."""
        head = secrets.token_bytes(_NONCE) + int(now * 1000).to_bytes(8, "big")
        return head + self._mac(head)

    def check(self, challenge: bytes, now: float) -> None:
        """Ours, fresh, and not redeemed yet.

        :raises InvalidInput: ``challenge-malformed``. :raises Refused: ``challenge-expired``, ``challenge-redeemed``.
        """
        head, mac = challenge[:-_MAC], challenge[-_MAC:]
        if len(challenge) != CHALLENGE_LENGTH or not same(mac, self._mac(head)):
            raise InvalidInput("challenge-malformed", "this is no challenge of this KeyService")
        issued = int.from_bytes(head[_NONCE:], "big") / 1000
        if not issued - 1 <= now < issued + limits.CHALLENGE_LIFETIME_S:
            raise Refused("challenge-expired", "the challenge is too old", hint="Ask for a new one.")
        if challenge in self._redeemed:
            raise Refused("challenge-redeemed", "the challenge was redeemed before", hint="Ask for a new one.")

    def redeem(self, challenge: bytes, now: float) -> None:
        """Use it up, after the evidence over it verified; raises as :meth:`check`.

        :raises Unavailable: ``keyservice-busy`` when too many were redeemed lately.
        """
        with self._lock:
            self.check(challenge, now)
            _make_room(self._redeemed, now, limits.MAX_CHALLENGES_REDEEMED, "attestations")
            self._redeemed[challenge] = now + limits.CHALLENGE_LIFETIME_S + 1

    def _mac(self, head: bytes) -> bytes:
        return hmac.digest(self._key, Context.CHALLENGE.encode() + b"\x00" + head, hashlib.sha256)


@final
class QueryNonces:
    """Each nonce once per identity while its query lives (clause 6.6).

    Calls are sealed to an epoch's key that dies with the process, so nothing needs to be remembered over a restart.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[bytes, bytes], float] = {}
        self._counts: Counter[bytes] = Counter()
        self._lock = threading.Lock()

    def use(self, issuer: bytes, nonce: bytes, until: float, now: float) -> None:
        """Use up a nonce.

        :raises Refused: ``query-replayed``. :raises Unavailable: ``keyservice-busy``.
        """
        key = (issuer, nonce)
        with self._lock:
            if key in self._seen:
                raise Refused("query-replayed", "a query with this nonce was answered before")
            full = len(self._seen) >= limits.MAX_QUERY_NONCES
            if full or self._counts[issuer] >= limits.MAX_QUERY_NONCES_PER_IDENTITY:
                self._forget(now)
            if self._counts[issuer] >= limits.MAX_QUERY_NONCES_PER_IDENTITY:
                raise Unavailable("keyservice-busy", "this identity asks too much", retry_after=60.0)
            _make_room(self._seen, now, limits.MAX_QUERY_NONCES, "queries")
            self._seen[key] = until
            self._counts[issuer] += 1

    def _forget(self, now: float) -> None:
        for key in [key for key, until in self._seen.items() if until <= now]:
            del self._seen[key]
            self._counts[key[0]] -= 1
            if not self._counts[key[0]]:
                del self._counts[key[0]]


def _make_room(seen: dict[bytes, float] | dict[tuple[bytes, bytes], float], now: float, limit: int, what: str) -> None:
    if len(seen) < limit:
        return
    rows: dict[object, float] = seen  # type: ignore[assignment]
    for key in [key for key, until in rows.items() if until <= now]:
        del rows[key]
    if len(rows) >= limit:
        raise Unavailable("keyservice-busy", f"too many {what} of late", retry_after=10.0)


@final
class ReplayWindow:
    """Sequence numbers of one session, each accepted once, in any order within a window (clause 7.4)."""

    __slots__ = ("_bits", "_highest")

    def __init__(self) -> None:
        self._highest = 0
        self._bits = 0

    def accept(self, sequence: int) -> bool:
        """Whether it is new; and it is not any more."""
        ahead = sequence - self._highest
        if ahead > 0:
            mask = (1 << limits.SESSION_WINDOW) - 1
            self._bits = ((self._bits << ahead) | 1) & mask if ahead < limits.SESSION_WINDOW else 1
            self._highest = sequence
            return True
        bit = 1 << -ahead
        if -ahead >= limits.SESSION_WINDOW or self._bits & bit:
            return False
        self._bits |= bit
        return True
