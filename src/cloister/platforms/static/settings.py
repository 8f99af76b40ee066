"""Where the instances are that somebody else starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_ADDRESSES: Final = 1024  # of all names: whoever answers for a name must not make a gateway ask without end


@dataclass(frozen=True, slots=True)
class StaticSettings:
    """Of one gateway; no other gateway may have the same instances.

    :param addresses: origins. An ``http`` name may resolve to several addresses, and each of them is an instance.
    :param poll_s: how often names are resolved and instances asked.
    :param failures: so many questions in a row that get no answer at all make an instance gone.
    :param scaled: somebody starts as many runtimes as are wanted, so one that is wanted is waited for.
    """

    addresses: tuple[str, ...]
    poll_s: float = 1.0
    failures: int = 3
    scaled: bool = False
