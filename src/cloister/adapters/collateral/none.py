"""No collateral: enough for TEEs whose evidence carries everything, and a clear error for the others."""

from __future__ import annotations

from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.base.errors import Unavailable


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
