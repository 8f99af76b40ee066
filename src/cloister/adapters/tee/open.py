"""Everything that a service needs of its TEE, from the machine it runs on: evidence, sealing, its own measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cloister.adapters.tee.configfs_tsm import ConfigfsTsmAttester
from cloister.adapters.tee.detect import detect
from cloister.adapters.tee.measurement import own_measurement
from cloister.adapters.tee.sealing import WITHOUT_SEALING, open_sealer
from cloister.attest.types import Attester, Sealer, TeeType


@dataclass(frozen=True, slots=True)
class HardwareTee:
    """A TEE that answers.

    :param sealer: ``None`` where the TEE has no sealing key and none was needed.
    :param measurement: MRENCLAVE, MRTD, MEASUREMENT or PCR0, as the TEE's own evidence says.
    """

    attester: Attester
    sealer: Sealer | None
    measurement: bytes


def open_tee(
    configuration_digest: bytes,
    *,
    expected: TeeType | None = None,
    privilege_level: int | None = None,
    sealing_needed: bool = True,
    root: Path = Path("/"),
) -> HardwareTee:
    """Find the TEE, ask it for evidence once, and open its sealer.

    :param configuration_digest: what is sealed is bound to it.
    :param sealing_needed: whether a TEE without a sealing key will not do.
    :raises Unavailable: ``evidence-unavailable``, ``sealing-unavailable``.
    :raises Refused: ``tee-ambiguous``, ``tee-unexpected``.
    :raises Tampered: ``evidence-device-lied``.
    """
    attester = detect(root=root, expected=expected, privilege_level=privilege_level)
    measurement = own_measurement(attester)
    sealer = None
    if sealing_needed or attester.tee not in WITHOUT_SEALING:
        sealer = open_sealer(attester.tee, configuration_digest, privilege_level=_level(attester), root=root)
    return HardwareTee(attester, sealer, measurement)


def _level(attester: Attester) -> int:
    """The VMPL that keys are derived for: the one that evidence is of."""
    return attester.privilege_level if isinstance(attester, ConfigfsTsmAttester) else 0
