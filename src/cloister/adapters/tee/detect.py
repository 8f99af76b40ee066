"""Which TEE is this? Asked of the machine's device files; never answered with simulation (attestation.md, 11.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.adapters.tee.configfs_tsm import ConfigfsTsmAttester
from cloister.adapters.tee.files import OsDeviceFiles
from cloister.adapters.tee.gramine import TYPE_FILE, GramineAttester
from cloister.adapters.tee.nitro import NitroAttester
from cloister.attest.types import Attester, TeeType
from cloister.base.errors import Refused, Unavailable

GRAMINE: Final = "dev/attestation"
NITRO: Final = "dev/nsm"
CONFIGFS_TSM: Final = "sys/kernel/config/tsm/report"


@dataclass(frozen=True, slots=True)
class Found:
    """What the machine has, by the paths above."""

    gramine: bool
    nitro: bool
    configfs_tsm: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The devices' names."""
        pairs = (("Gramine", self.gramine), ("Nitro", self.nitro), ("configfs-tsm", self.configfs_tsm))
        return tuple(name for name, there in pairs if there)


def look(root: Path = Path("/")) -> Found:
    """Which devices are there; nothing is opened."""
    return Found(
        gramine=(root / GRAMINE / TYPE_FILE).exists(),
        nitro=(root / NITRO).exists(),
        configfs_tsm=(root / CONFIGFS_TSM).is_dir(),
    )


def detect(*, root: Path = Path("/"), expected: TeeType | None = None, privilege_level: int | None = None) -> Attester:
    """The attester of this machine's TEE.

    :param root: where the machine's file system is; another one only to try this out.
    :param expected: which TEE the configuration says this is; another one is refused.
    :param privilege_level: the VMPL to attest (SEV-SNP).
    :raises Unavailable: ``evidence-unavailable`` when there is no TEE, or it does not answer.
    :raises Refused: ``tee-ambiguous`` for more than one, ``tee-unexpected`` for another than expected.
    """
    found = look(root)
    if len(found.names) > 1:
        raise Refused(
            "tee-ambiguous",
            f"this machine claims to be several TEEs: {', '.join(found.names)}",
            hint="A guest has one. Somebody has put device files where they do not belong.",
        )
    attester: Attester
    if found.gramine:
        attester = GramineAttester(OsDeviceFiles(root / GRAMINE))
    elif found.nitro:
        attester = NitroAttester(root / NITRO)
    elif found.configfs_tsm:
        attester = ConfigfsTsmAttester(OsDeviceFiles(root / CONFIGFS_TSM), privilege_level=privilege_level)
    else:
        raise Unavailable(
            "evidence-unavailable",
            "no TEE was found here: neither Gramine, nor configfs-tsm, nor Nitro",
            hint="See docs/how-to/tee-*.md. Without a TEE, configure insecure-simulation by that name.",
        )
    if expected is not None and attester.tee is not expected:
        raise Refused(
            "tee-unexpected", f"the configuration says {expected.value}, this machine is {attester.tee.value}"
        )
    return attester
