"""The collateral source that a configuration names."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from cloister.adapters.collateral.bounded import BoundedCollateral
from cloister.adapters.collateral.bundle import BundleCollateral
from cloister.adapters.collateral.cached import CachedCollateral, DirectoryStore, MemoryStore
from cloister.adapters.collateral.directory import FILES, DirectoryCollateral
from cloister.adapters.collateral.subject import AmdSubject, certificate_der, subject_of
from cloister.attest.anchors import TrustAnchors
from cloister.attest.snp.certificates import CERT_TABLE, CHAIN_FILE, CRL_FILE, VEK_FILE, cert_table
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
        if CERT_TABLE in evidence.endorsements:
            files = _of_table(evidence) | files
        if names and names[0] not in files:
            raise Unavailable(
                "collateral-unavailable",
                f"no collateral came with the {evidence.tee.value} evidence, and no source is configured",
                hint=f"Configure one: a folder, a bundle file, or {VENDORS!r}.",
            )
        return Collateral(files)


def _of_table(evidence: Evidence) -> dict[str, bytes]:
    """What the host's certificate table holds of an SEV-SNP report's chain (clause 4.12), as files."""
    table, subject = cert_table(evidence.endorsements[CERT_TABLE]), subject_of(evidence)
    signer = subject.signer.label if isinstance(subject, AmdSubject) else ""
    found = {VEK_FILE: table.get(signer), CRL_FILE: table.get("crl")}
    files = {name: certificate_der(data) for name, data in found.items() if data is not None}
    if "ask" in table and "ark" in table:
        files[CHAIN_FILE] = "".join(
            ssl.DER_cert_to_PEM_cert(certificate_der(table[name])) for name in ("ask", "ark")
        ).encode()
    return files


def open_collateral(
    source: str | None, anchors: TrustAnchors, clock: Clock, *, cache: Path | None = None
) -> CollateralSource:
    """A source by its name.

    :param source: a folder, a bundle file, ``vendors`` for Intel's and AMD's services, the address of a PCCS to ask
        instead of Intel's; ``None`` for what travels with the evidence, remembered so that it never goes back
        (clause 8.3).
    :param cache: a folder to remember in; by default memory.
    :raises InvalidInput: ``collateral-source``, or the bundle is malformed.
    :raises Unavailable: ``collateral-unavailable``, ``collateral-unwritable``.
    """
    online = source == VENDORS or (source is not None and source.startswith(("http://", "https://")))
    if source is not None and not online:
        path = Path(source)
        if path.is_dir():
            return DirectoryCollateral(path)
        if path.is_file():
            return BundleCollateral.open(path)
        raise InvalidInput(
            "collateral-source",
            f"{source!r} is neither a folder, nor a bundle file, nor the address of a PCCS, nor {VENDORS!r}",
        )
    store = MemoryStore() if cache is None else DirectoryStore(cache)
    if source is None:
        return CachedCollateral(CarriedCollateral(), store, anchors, clock, refresh=0)
    try:
        from cloister.adapters.collateral.amd_kds import AmdKds
        from cloister.adapters.collateral.fetch import Fetcher
        from cloister.adapters.collateral.intel_pcs import IntelPcs
        from cloister.adapters.collateral.vendors import VendorCollateral
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise Unavailable(
            "collateral-unavailable",
            "this installation asks no vendors: it has no httpx, as images have none",
            hint="Give a folder or a bundle file, which `cloister collateral` makes elsewhere.",
        ) from error

    fetcher = Fetcher()
    intel = IntelPcs(fetcher) if source == VENDORS else IntelPcs(fetcher, base=source)
    vendors = BoundedCollateral(VendorCollateral(intel=intel, amd=AmdKds(fetcher)))
    return CachedCollateral(vendors, store, anchors, clock)
