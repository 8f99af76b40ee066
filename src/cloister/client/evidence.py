"""Where a client finds collateral for a KeyService's evidence: what the KeyService sent along, or the profile's source.

Collateral is signed by the vendor and checked for its dates, so whoever carries it is irrelevant (attestation.md, 1.2).
Its numbers are remembered in the client's folder: an older revocation list than was seen is not used (clause 8.3).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final, final

from cloister.attest.anchors import TrustAnchors, production_anchors
from cloister.attest.types import Collateral, CollateralSource, Evidence, TeeType
from cloister.base.clock import Clock

CACHE: Final = "collateral"  # folder in the client's
_NEEDS_NONE: Final = frozenset({TeeType.NITRO, TeeType.SIMULATION})


@final
class ProfileCollateral:
    """``CollateralSource`` as the profile names it; opened when the first evidence needs it.

    :param source: as ``adapters.collateral.configured`` has it; empty for what the KeyService sends along.
    :param home: the client's folder; a relative path in ``source`` counts from there.
    """

    def __init__(self, source: str, home: Path, clock: Clock, anchors: TrustAnchors | None = None) -> None:
        self._source = source
        self._home = home
        self._clock = clock
        self._anchors = production_anchors() if anchors is None else anchors
        self._lock = threading.Lock()
        self._opened: CollateralSource | None = None

    def collateral(self, evidence: Evidence) -> Collateral:
        """See the port; ``collateral-source`` for a source that is none."""
        if evidence.tee in _NEEDS_NONE:
            return Collateral()
        with self._lock:
            if self._opened is None:
                from cloister.adapters.collateral.configured import open_collateral

                path = self._home / self._source
                named = str(path) if self._source and path.exists() else self._source or None
                self._opened = open_collateral(named, self._anchors, self._clock, cache=self._home / CACHE)
            opened = self._opened
        return opened.collateral(evidence)
