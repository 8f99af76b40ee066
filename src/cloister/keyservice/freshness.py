"""Single use: challenges, query nonces, a session's sequence numbers. Bounded: full means "busy", never "yes"."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import threading
from collections import Counter, OrderedDict, deque
from typing import Final, final

from cloister.base import limits
from cloister.base.errors import InvalidInput, Refused, Unavailable
from cloister.crypto.digest import Context, same

_NONCE: Final = 16
_MAC: Final = 32
CHALLENGE_LENGTH: Final = _NONCE + 8 + _MAC
_NAME: Final = 20  # bytes under which a nonce is remembered
_SLOT_S: Final = 15.0  # nonces are forgotten so much later at most


@final
class Challenges:
    """Stateless challenges, nonce || u64 milliseconds || MAC, redeemed once (clause 7.1).

    The MAC key lives as long as the process: a challenge of an earlier process, whose redemption nobody remembers,
    is refused. Only challenges whose evidence verified are remembered, so that filling the memory costs attestations.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._redeemed: OrderedDict[bytes, float] = OrderedDict()  # in the order in which they end
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
            while self._redeemed and next(iter(self._redeemed.values())) <= now:
                self._redeemed.popitem(last=False)
            if len(self._redeemed) >= limits.MAX_CHALLENGES_REDEEMED:
                raise Unavailable("keyservice-busy", "too many attestations of late", retry_after=10.0)
            self._redeemed[challenge] = now + limits.CHALLENGE_LIFETIME_S + 1

    def _mac(self, head: bytes) -> bytes:
        return hmac.digest(self._key, Context.CHALLENGE.encode() + b"\x00" + head, hashlib.sha256)


@final
class QueryNonces:
    """Each nonce once per identity while its query lives (clause 6.6).

    Calls are sealed to an epoch's key that dies with the process, so nothing needs to be remembered over a restart.
    No nonce is forgotten before its time. So that a few who ask all the time leave room for everybody else, nobody
    holds more than a share of what is still free: however many fill the table, it never is full for whoever is new.
    """

    def __init__(self) -> None:
        self._seen: dict[bytes, bytes] = {}  # to who asked
        self._counts: Counter[bytes] = Counter()
        self._ends: dict[int, deque[bytes]] = {}  # by slots of time, so that forgetting is no search
        self._lock = threading.Lock()

    def use(self, issuer: bytes, nonce: bytes, until: float, now: float) -> None:
        """Use up a nonce.

        :raises Refused: ``query-replayed``. :raises Unavailable: ``keyservice-busy``.
        """
        key = hashlib.sha256(issuer + nonce).digest()[:_NAME]
        with self._lock:
            self._forget(now)
            if key in self._seen:
                raise Refused("query-replayed", "a query with this nonce was answered before")
            free = limits.MAX_QUERY_NONCES - len(self._seen)
            share = min(limits.MAX_QUERY_NONCES_PER_IDENTITY, free / limits.QUERY_NONCE_SHARE)
            if self._counts[issuer] >= share or free <= 0:
                raise Unavailable("keyservice-busy", "this identity asks too much", retry_after=_SLOT_S)
            self._seen[key] = issuer
            self._counts[issuer] += 1
            self._ends.setdefault(_slot(until), deque()).append(key)

    def __len__(self) -> int:
        return len(self._seen)

    def _forget(self, now: float) -> None:
        for slot in [slot for slot in self._ends if slot * _SLOT_S <= now]:
            for key in self._ends.pop(slot):
                issuer = self._seen.pop(key)
                self._counts[issuer] -= 1
                if not self._counts[issuer]:
                    del self._counts[issuer]


def _slot(until: float) -> int:
    """The slot of time at whose beginning it is over."""
    return math.ceil(until / _SLOT_S)


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
