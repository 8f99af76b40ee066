"""A bound on questions to vendors: whoever sends invented evidence shall not tie up the service that asks for it."""

from __future__ import annotations

import threading
from typing import Final, final

from cloister.attest.types import Collateral, CollateralSource, Evidence, TeeType
from cloister.base.errors import Unavailable
from cloister.base.limits import COLLATERAL_QUESTIONS

_NEEDS_NONE: Final = frozenset({TeeType.NITRO, TeeType.SIMULATION})


@final
class BoundedCollateral:
    """``CollateralSource`` that asks another one, a few questions at a time; the next one is told to come back.

    Belongs behind a cache: what is known needs no question.
    """

    def __init__(self, source: CollateralSource, most: int = COLLATERAL_QUESTIONS) -> None:
        self._source = source
        self._room = threading.Semaphore(most)

    def collateral(self, evidence: Evidence) -> Collateral:
        """See the port.

        :raises Unavailable: ``collateral-busy`` besides.
        """
        if evidence.tee in _NEEDS_NONE:
            return Collateral()
        if not self._room.acquire(blocking=False):
            raise Unavailable("collateral-busy", "others are waiting for the vendor too", retry_after=1.0)
        try:
            return self._source.collateral(evidence)
        finally:
            self._room.release()
