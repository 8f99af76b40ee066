"""The collateral source that a configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cloister.adapters.collateral.bundle import BundleCollateral
from cloister.adapters.collateral.cached import CachedCollateral, DirectoryStore, MemoryStore
from cloister.adapters.collateral.directory import FILES, DirectoryCollateral
from cloister.attest.anchors import TrustAnchors
from cloister.attest.types import Collateral, CollateralSource, Evidence
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Unavailable

VENDORS: Final = "vendors"


class CarriedCollateral:
    """``CollateralSource``: what travelled with the evidence itself."""

    def collateral(self, evidence: Evidence) -> Collateral:
        """The endorsements that are collateral of this TEE.

        :raises Unavailable: ``collateral-unavailable`` when there is none.
        """
        names = FILES[evidence.tee]
        files = {name: evidence.endorsements[name] for name in names if name in evidence.endorsements}
        if names and names[0] not in files:
            raise Unavailable(
                "collateral-unavailable",
                f"no collateral came with the {evidence.tee.value} evidence, and no source is configured",
                hint=f"Configure one: a folder, a bundle file, or {VENDORS!r}.",
            )
        return Collateral(files)


def open_collateral(
    source: str | None, anchors: TrustAnchors, clock: Clock, *, cache: Path | None = None
) -> CollateralSource:
    """A source by its name.

    :param source: a folder, a bundle file, ``vendors`` for Intel's and AMD's services; ``None`` for what travels with
        the evidence, remembered so that it never goes back (clause 8.3).
    :param cache: a folder to remember in; by default memory.
    :raises InvalidInput: ``collateral-source``, or the bundle is malformed.
    :raises Unavailable: ``collateral-unavailable``, ``collateral-unwritable``.
    """
    if source is not None and source != VENDORS:
        path = Path(source)
        if path.is_dir():
            return DirectoryCollateral(path)
        if path.is_file():
            return BundleCollateral.open(path)
        raise InvalidInput("collateral-source", f"{source!r} is neither a folder, nor a bundle file, nor {VENDORS!r}")
    store = MemoryStore() if cache is None else DirectoryStore(cache)
    if source is None:
        return CachedCollateral(CarriedCollateral(), store, anchors, clock, refresh=0)
    from cloister.adapters.collateral.amd_kds import AmdKds
    from cloister.adapters.collateral.fetch import Fetcher
    from cloister.adapters.collateral.intel_pcs import IntelPcs
    from cloister.adapters.collateral.vendors import VendorCollateral

    fetcher = Fetcher()
    online = VendorCollateral(intel=IntelPcs(fetcher), amd=AmdKds(fetcher))
    return CachedCollateral(online, store, anchors, clock)
