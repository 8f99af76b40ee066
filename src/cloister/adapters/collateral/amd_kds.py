"""Collateral from AMD's Key Distribution Service: VCEK, chain, revocation list.

Source: AMD, "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification" (57230). The service
limits how often it is asked (429): put a cache before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from cloister.adapters.collateral.fetch import Connection, Fetcher
from cloister.adapters.collateral.subject import AmdSubject, subject_of
from cloister.attest.snp.certificates import CHAIN_FILE, CRL_FILE, VEK_FILE, Signer
from cloister.attest.snp.tcb import PRODUCTS, Product
from cloister.attest.types import Collateral, Evidence
from cloister.base.errors import InvalidInput, Unavailable

AMD: Final = "https://kdsintf.amd.com"
MAX_CERTIFICATE: Final = 8 * 1024  # a VCEK has 1.4 KiB, a chain of two RSA-4096 certificates 4.5 KiB
MAX_CRL: Final = 64 * 1024
# KDS names of the levels, in the order of the specification
_LEVELS: Final[Mapping[str, str]] = {
    "fmc": "fmcSPL",
    "boot_loader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
}


class AmdKds:
    """``CollateralSource`` for SEV-SNP.

    A VLEK is the provider's and travels with the evidence; the service has its chain and revocation list only.

    :param products: which to ask for when the report does not say (version 2), in order; by default all that had it.
    """

    def __init__(self, fetcher: Fetcher, *, base: str = AMD, products: tuple[str, ...] = ("Milan", "Genoa")) -> None:
        """:raises InvalidInput: ``collateral-service``."""
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname or not set(products) <= set(PRODUCTS):
            raise InvalidInput("collateral-service", f"{base!r} for {products} is not a collateral service")
        self._fetcher = fetcher
        self._base = base.rstrip("/")
        self._products = products

    def collateral(self, evidence: Evidence) -> Collateral:
        """Leaf certificate, chain and revocation list for the chip and firmware of this report.

        :raises Unavailable: ``collateral-unavailable``.
        :raises InvalidInput: ``collateral-malformed``, ``collateral-other-tee``, and the report's own codes.
        """
        subject = subject_of(evidence)
        if not isinstance(subject, AmdSubject):
            raise InvalidInput("collateral-other-tee", f"AMD has no collateral for {evidence.tee.value} evidence")
        names = (subject.product,) if subject.product else self._products
        with self._fetcher.session() as connection:
            if subject.vek is None:
                product, vek = self._vcek(connection, subject, names)
            else:
                product, vek = _product_of(subject.vek, names), subject.vek
            folder = f"{self._base}/{subject.signer.label}/v1/{product}"
            chain = connection.get(f"{folder}/cert_chain", limit=MAX_CERTIFICATE * 2).body
            crl = connection.get(f"{folder}/crl", limit=MAX_CRL).body
        return Collateral({VEK_FILE: vek, CHAIN_FILE: chain, CRL_FILE: crl})

    def _vcek(self, connection: Connection, subject: AmdSubject, names: tuple[str, ...]) -> tuple[str, bytes]:
        if subject.signer is Signer.VLEK:
            raise Unavailable(
                "collateral-unavailable",
                "the VLEK did not come with the evidence, and AMD does not hand it out",
                hint="Have the host provide it in the certificate table, or put it beside the report as vek.der.",
            )
        if not any(subject.chip_id):
            raise Unavailable("collateral-unavailable", "the report hides its chip, so its VCEK cannot be asked for")
        last: Unavailable | None = None
        for name in names:
            try:
                return name, connection.get(self.vcek_url(subject, PRODUCTS[name]), limit=MAX_CERTIFICATE).body
            except Unavailable as error:
                last = error
        raise last if last is not None else Unavailable("collateral-unavailable", "no product to ask for")

    def vcek_url(self, subject: AmdSubject, product: Product) -> str:
        """Where the VCEK of this chip at these levels is."""
        levels = product.tcb(subject.tcb)
        query = "&".join(f"{_LEVELS[part]}={levels[part]:02}" for part in _LEVELS if part in levels)
        return f"{self._base}/vcek/v1/{product.name}/{subject.chip_id[: product.hwid_size].hex()}?{query}"


def _product_of(vek: bytes, names: tuple[str, ...]) -> str:
    """The product that the certificate's own bytes name; verification checks it, here it only chooses an address."""
    if len(names) == 1:
        return names[0]
    for name in names:
        if f"SEV-{name}".encode() in vek or f"SEV-VLEK-{name}".encode() in vek:
            return name
    raise InvalidInput("collateral-malformed", "the certificate with the evidence names no known product")
