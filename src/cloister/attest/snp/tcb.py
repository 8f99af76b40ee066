"""TCB versions and product lines: what the same eight bytes mean on which processor (spec/attestation.md, 4.6, 4.9).

Source: AMD, SEV-SNP Firmware ABI (56860), TCB_VERSION; Versioned Chip Endorsement Key (VCEK) Certificate and KDS
Interface Specification (57230), OIDs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cloister.attest.claim_names import TCB_PARTS
from cloister.base.errors import Refused

TCB_SIZE: Final = 8


@dataclass(frozen=True, slots=True)
class Product:
    """One product line of the key distribution service.

    :param layout: name of a level (as in ``claim_names.TCB_PARTS``) to its byte in a TCB version.
    :param hwid_size: bytes of a chip id that count; the rest of CHIP_ID is zero.
    :param cpus: family to ranges of models.
    """

    name: str
    layout: Mapping[str, int]
    hwid_size: int
    cpus: Mapping[int, tuple[range, ...]]

    def has_cpu(self, family: int, model: int) -> bool:
        """Clause 4.9."""
        return any(model in models for models in self.cpus.get(family, ()))

    def tcb(self, version: bytes) -> Mapping[str, int]:
        """The levels in the eight bytes of a TCB version, by name."""
        return MappingProxyType({part: version[at] for part, at in self.layout.items()})

    def has_only_its_levels(self, version: bytes) -> bool:
        """Whether the bytes outside of the layout are zero."""
        used = set(self.layout.values())
        return not any(byte for at, byte in enumerate(version) if at not in used)


_ZEN3_ZEN4: Final = MappingProxyType({"boot_loader": 0, "tee": 1, "snp": 6, "microcode": 7})
_ZEN5: Final = MappingProxyType({"fmc": 0, "boot_loader": 1, "tee": 2, "snp": 3, "microcode": 7})

PRODUCTS: Final[Mapping[str, Product]] = MappingProxyType(
    {
        product.name: product
        for product in (
            Product("Milan", _ZEN3_ZEN4, 64, {0x19: (range(0x10),)}),
            Product("Genoa", _ZEN3_ZEN4, 64, {0x19: (range(0x10, 0x20), range(0xA0, 0xB0))}),
            Product("Turin", _ZEN5, 8, {0x1A: (range(0x20),)}),
        )
    }
)

LEVEL_OIDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "boot_loader": "1.3.6.1.4.1.3704.1.3.1",
        "tee": "1.3.6.1.4.1.3704.1.3.2",
        "snp": "1.3.6.1.4.1.3704.1.3.3",
        "microcode": "1.3.6.1.4.1.3704.1.3.8",
        "fmc": "1.3.6.1.4.1.3704.1.3.9",
    }
)
RESERVED_LEVEL_OIDS: Final = tuple(f"1.3.6.1.4.1.3704.1.3.{n}" for n in (4, 5, 6, 7))


def require_at_most(lower: Mapping[str, int], upper: Mapping[str, int], names: tuple[str, str]) -> None:
    """Clause 4.11.

    :raises Refused: ``snp-tcb-order``.
    """
    for part in TCB_PARTS:
        if lower.get(part, 0) > upper.get(part, 0):
            raise Refused(
                "snp-tcb-order",
                f"{names[0]} exceeds {names[1]} in {part}: {lower[part]} > {upper.get(part, 0)}",
            )
