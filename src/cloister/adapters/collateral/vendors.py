"""One source for all TEEs: each vendor's evidence goes to the vendor's source."""

from __future__ import annotations

from cloister.attest.types import Collateral, CollateralSource, Evidence, TeeType


class VendorCollateral:
    """``CollateralSource`` over Intel's and AMD's; Nitro and simulation need none."""

    def __init__(self, *, intel: CollateralSource, amd: CollateralSource) -> None:
        self._sources = {TeeType.SGX: intel, TeeType.TDX: intel, TeeType.SEV_SNP: amd}

    def collateral(self, evidence: Evidence) -> Collateral:
        """What the vendor's source gives; see the port."""
        source = self._sources.get(evidence.tee)
        return Collateral() if source is None else source.collateral(evidence)
