"""Where a client finds collateral for a KeyService's evidence: what the KeyService sent along.

Collateral is signed by the vendor and checked for its dates, so whoever carries it is irrelevant (attestation.md, 1.2).
"""

from __future__ import annotations

from cloister.attest.types import Collateral, CollateralSource, Evidence


class _Carried:
    def collateral(self, evidence: Evidence) -> Collateral:
        """The endorsements that travelled with the evidence."""
        return Collateral(evidence.endorsements)


def carried_collateral() -> CollateralSource:
    """Use what the KeyService sent."""
    return _Carried()
