"""What the adaptive packer keeps between decisions: accounts of avoidable delay, and what each instance has earned."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf

from cloister.control.table import Table


@dataclass(frozen=True, slots=True)
class Account:
    """Seconds of avoidable delay, leaking; beside it, what came by chance in the crowd now and in the largest one.

    A crowd is requests that met by chance. What comes within a cold start of its first belongs to it: an instance
    started at the first would be too late for it.
    """

    value: float = 0.0
    at: float = 0.0
    crowd: float = 0.0
    crowd_at: float = -inf
    largest: float = 0.0

    def plus(self, amount: float, now: float, tau: float, *, chance: bool, cold: float) -> Account:
        """With ``amount`` more, after leaking since the last time."""
        left = exp(-(now - self.at) / tau)
        value, crowd, largest, since = self.value * left + amount, self.crowd * left, self.largest * left, self.crowd_at
        if chance and amount > 0.0:
            if now - since > cold:
                crowd, largest, since = 0.0, max(largest, crowd), now
            crowd += amount
        return Account(value, now, crowd, since, largest)

    @property
    def recurring(self) -> float:
        """The value without its largest crowd: one crowd says nothing of how often they come."""
        return self.value - max(self.crowd, self.largest)


@dataclass(frozen=True, slots=True)
class Rent:
    """Of one instance: seconds of rent in hand; the delay that it spared, and its requests, both leaking."""

    balance: float
    at: float
    spared: float
    uses: float


@dataclass(frozen=True, slots=True)
class AdaptiveState:
    """The fleet's account, each model's, each instance's rent, and instances emptied for a model that cannot get in."""

    fleet: Account
    models: Table[Account]
    rents: Table[Rent]
    reserved: Table[str]
    promise: float = 0.0  # delay per request that the instance started last was to spare
    share: float = 1.0  # its part of what one instance is worth: the n-th shortens a crowd's queue by one n-th
