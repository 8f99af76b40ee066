"""A collateral source in memory, which can be away."""

from __future__ import annotations

from cloister.adapters.collateral.subject import subject_of
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.base.errors import Unavailable


class MemoryCollateral:
    """``CollateralSource`` for tests: what was put in, by platform.

    :ivar away: raises ``Unavailable`` while it is true.
    :ivar asked: how often it was asked.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Collateral] = {}
        self.away = False
        self.asked = 0

    def put(self, evidence: Evidence, collateral: Collateral) -> None:
        """This is the collateral of the platform of this evidence."""
        subject = subject_of(evidence)
        if subject is not None:
            self._kept[subject.key] = collateral

    def collateral(self, evidence: Evidence) -> Collateral:
        """What was put in.

        :raises Unavailable: ``collateral-unavailable``.
        """
        self.asked += 1
        subject = subject_of(evidence)
        if subject is None:
            return Collateral()
        if self.away or subject.key not in self._kept:
            raise Unavailable("collateral-unavailable", f"there is nothing for {subject.key}")
        return self._kept[subject.key]


class NoCollateral:
    """``CollateralSource`` for Nitro and the simulation."""

    def collateral(self, evidence: Evidence) -> Collateral:
        """Nothing.

        :raises Unavailable: ``collateral-unavailable`` for TEEs that need some.
        """
        if evidence.tee not in (TeeType.NITRO, TeeType.SIMULATION):
            raise Unavailable(
                "collateral-unavailable",
                f"no collateral is configured, which {evidence.tee.value} evidence needs",
                hint="Start the service with --collateral.",
            )
        return Collateral()
