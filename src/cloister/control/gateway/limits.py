"""What one user may ask for: a rate, and requests at a time. Time is handed in.

The user id is what the request's clear header says. Nobody has checked it yet, so these limits keep a busy user from
crowding out others; against somebody who lies about who he is they are no protection, and nothing here could be.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from cloister.base.errors import Unavailable


@dataclass(slots=True)
class _Account:
    tokens: float
    at: float
    running: int = 0


class UserLimits:
    """A bounded table of users.

    :param rate: requests a second, 0 for no limit; ``burst`` of them may come at once.
    :param concurrency: requests at a time, 0 for no limit.
    :param users: in the table at most; whoever has nothing under way for longest is forgotten first.
    """

    def __init__(self, *, rate: float, burst: int, concurrency: int, users: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._concurrency = concurrency
        self._users = users
        self._accounts: OrderedDict[bytes, _Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def reconfigure(self, *, rate: float, burst: int, concurrency: int, users: int) -> None:
        """Other limits, for requests from now on."""
        self._rate, self._burst, self._concurrency, self._users = rate, float(burst), concurrency, users

    def enter(self, user: bytes, now: float) -> None:
        """A request comes in; :meth:`leave` follows.

        :raises Unavailable: ``rate-limited``, ``user-concurrency``, ``too-many-users``.
        """
        account = self._accounts.get(user)
        if account is None:
            account = self._add(user, now)
        else:
            self._accounts.move_to_end(user)
        if self._concurrency and account.running >= self._concurrency:
            raise Unavailable(
                "user-concurrency",
                f"this user has {account.running} requests under way",
                retry_after=1.0,
                hint="Wait for answers before asking more.",
            )
        if self._rate:
            account.tokens = min(self._burst, account.tokens + (now - account.at) * self._rate)
            account.at = now
            if account.tokens < 1.0:
                raise Unavailable(
                    "rate-limited",
                    f"this user asks more than {self._rate:g} times a second",
                    retry_after=(1.0 - account.tokens) / self._rate,
                )
            account.tokens -= 1.0
        account.running += 1

    def leave(self, user: bytes) -> None:
        """It is over."""
        self._accounts[user].running -= 1

    def _add(self, user: bytes, now: float) -> _Account:
        while len(self._accounts) >= self._users:
            oldest = next((name for name, account in self._accounts.items() if not account.running), None)
            if oldest is None:
                raise Unavailable("too-many-users", "too many users at once", retry_after=1.0)
            del self._accounts[oldest]
        account = self._accounts[user] = _Account(self._burst, now)
        return account
