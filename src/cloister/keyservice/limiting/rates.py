"""Token buckets in bounded memory, and what they are set to (spec/protocol.md, 5.7). No clock of its own, no locks.

A bucket is one number: when it is full again. One that is full is worth nothing to remember, so forgetting it changes
nothing; a table that overflows although all its buckets are in use forgets those that are nearest to full, which gives
their owners back the least, and takes nothing from anybody.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, final

from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import KIB, MAX_RATE_KEYS

K = TypeVar("K")

_ROUNDING: Final = 1e-6  # of a token: whoever waits as long as he was told to is served, whatever floats do
_MAX_FILE: Final = 16 * KIB
_MAX_PER_S: Final = 1e6
_MAX_BURST: Final = 10**9


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second for ever, and ``burst`` at once after a pause; 0 a second: none at all."""

    per_s: float
    burst: int

    def missing(self, full_at: float, now: float) -> float:
        """Tokens that a bucket lacks which is full at ``full_at``."""
        return max(0.0, full_at - now) * self.per_s

    def wait(self, full_at: float, now: float, reserve: float = 0.0) -> float:
        """Seconds until one can be taken from it, 0 if now.

        :param reserve: share of the bucket that must stay in it.
        """
        if not self.per_s:
            return float("inf")
        excess = self.missing(full_at, now) + 1.0 - self.burst * (1.0 - reserve)
        return excess / self.per_s if excess > _ROUNDING else 0.0

    def taken(self, full_at: float, now: float) -> float:
        """When it is full again after one more was taken."""
        return max(full_at, now) + 1.0 / self.per_s


@dataclass(frozen=True, slots=True)
class Rates:
    """What one KeyService lets through. Not measured: whoever runs it can starve whom he likes anyway (ADR 20).

    :param statements: of one issuer, of those that say something new.
    :param withdrawals: of one issuer, beside them: rotations, and takings-back of what is not there.
    :param recoveries: of one identity, by its recovery key, beside both.
    :param queries: of one identity.
    :param registrations: of strangers, altogether; a rate of 0 leaves those whom an owner granted something.
    :param attestations: of one platform, 600 s each.
    :param releases: of one session; renewals of 1,500 pairs are 50 a second.
    :param platform_releases: of all sessions of one platform: a fifth of what a KeyService can do.
    :param growth: of the log, by what all people say: the last brake, 1.7 million entries a day. Registrations and
        newcomers end first, then other statements, then withdrawals; taking back what is there is always written.
    :param keys: entries of released keys and of service keys, altogether: what two cores write.
    """

    statements: Rate = Rate(1.0, 1_000)
    withdrawals: Rate = Rate(0.2, 200)
    recoveries: Rate = Rate(1 / 60, 16)
    queries: Rate = Rate(10.0, 500)
    registrations: Rate = Rate(1.0, 600)
    attestations: Rate = Rate(2.0, 300)
    releases: Rate = Rate(50.0, 2_000)
    platform_releases: Rate = Rate(100.0, 20_000)
    growth: Rate = Rate(20.0, 50_000)
    keys: Rate = Rate(500.0, 200_000)

    @staticmethod
    def read(values: Mapping[str, Any]) -> Rates:
        """From TOML tables of ``per_s`` and ``burst``; what is not named keeps its default.

        :raises InvalidInput: ``rates-malformed``.
        """
        known = {item.name for item in fields(Rates)}
        given: dict[str, Rate] = {}
        for name, table in values.items():
            if name not in known:
                raise _malformed(name[:64], "is no limit of the KeyService")
            if not isinstance(table, dict) or set(table) != {"per_s", "burst"}:
                raise _malformed(name, "has per_s and burst, and nothing else")
            per_s, burst = table["per_s"], table["burst"]
            if type(per_s) not in (int, float) or not 0 <= per_s <= _MAX_PER_S:
                raise _malformed(name, "has a per_s that is no number of events a second")
            if type(burst) is not int or not 1 <= burst <= _MAX_BURST:
                raise _malformed(name, "has a burst that is no positive number of events")
            if not per_s and name != "registrations":
                raise _malformed(name, "has a per_s of 0: it would stop for ever")
            given[name] = Rate(float(per_s), burst)
        return Rates(**given)


def read_rates(path: Path | None) -> Rates:
    """The limits in a file, or the defaults.

    :raises InvalidInput: ``rates-malformed``. :raises Unavailable: ``rates-unreadable``.
    """
    if path is None:
        return Rates()
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise Unavailable("rates-unreadable", f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise _malformed(str(path), "is too long")
    try:
        return Rates.read(tomllib.loads(data.decode("utf-8")))
    except ValueError as error:
        raise _malformed(str(path), "is no TOML") from error


@final
class Buckets(Generic[K]):
    """One bucket for each key, all of the same rate.

    :param limit: of keys that are remembered: with a rate of 1 a second, 65,536 are in use at once only while more
        calls than that are answered each second.
    """

    def __init__(self, rate: Rate, limit: int = MAX_RATE_KEYS) -> None:
        self.rate = rate
        self._limit = limit
        self._full_at: dict[K, float] = {}

    def wait(self, key: K, now: float, reserve: float = 0.0) -> float:
        """Seconds until ``key`` may take one, 0 if now; nothing is taken."""
        return self.rate.wait(self._full_at.get(key, now), now, reserve)

    def take(self, key: K, now: float) -> None:
        """Take one, whether it is there or not."""
        if key not in self._full_at and len(self._full_at) >= self._limit:
            self._make_room(now)
        self._full_at[key] = self.rate.taken(self._full_at.get(key, now), now)

    def room(self, key: K, now: float) -> float:
        """How full the bucket is, 0 to 1."""
        return max(0.0, 1.0 - self.rate.missing(self._full_at.get(key, now), now) / self.rate.burst)

    def __len__(self) -> int:
        return len(self._full_at)

    def _make_room(self, now: float) -> None:
        """Forget the full ones, and if that is not enough the fullest; an eighth at a time, so that it is seldom."""
        self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        most = self._limit - max(1, self._limit // 8)
        if len(self._full_at) > most:
            emptiest = sorted(self._full_at.items(), key=lambda item: item[1], reverse=True)
            self._full_at = dict(emptiest[:most])


def _malformed(name: str, what: str) -> InvalidInput:
    return InvalidInput("rates-malformed", f"the KeyService's limits: {name} {what}")
