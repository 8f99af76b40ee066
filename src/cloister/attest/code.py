"""What tells the code of one KeyService from another's, for each kind of TEE (spec/attestation.md, 10.9).

Other registers differ from machine to machine (Nitro's PCR3 and PCR4, a processor's identity) and say nothing of the
code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

from cloister.attest.types import Claims, TeeType
from cloister.base.errors import InvalidInput

_CODE: Final = {
    TeeType.SGX: re.compile("mrenclave|mrsigner"),
    TeeType.TDX: re.compile("mrtd|rtmr[0-3]"),
    TeeType.SEV_SNP: re.compile("measurement"),
    TeeType.NITRO: re.compile("pcr[0-2]"),
    TeeType.SIMULATION: re.compile("measurement"),
}
_NAMING: Final = {
    TeeType.SGX: "mrenclave",
    TeeType.SEV_SNP: "measurement",
    TeeType.NITRO: "pcr0",
    TeeType.SIMULATION: "measurement",
}


def code_measurements(claims: Claims) -> Mapping[str, bytes]:
    """The measurements of the code, by name."""
    return {name: value for name, value in claims.measurements.items() if _CODE[claims.tee].fullmatch(name)}


def same_code(one: Claims, other: Claims) -> bool:
    """Whether both are the same code in the same kind of TEE, and neither in debug mode."""
    mine = code_measurements(one)
    return one.tee is other.tee and bool(mine) and mine == code_measurements(other) and not one.debug | other.debug


def code_name(tee: TeeType, measurements: Mapping[str, bytes]) -> bytes:
    """By what a trust bundle names this code as a successor: 32 bytes (MRENCLAVE) or 48.

    :param measurements: by name, as in ``Claims``.
    :raises InvalidInput: ``code-unnamed`` when the evidence lacks a measurement.
    """
    try:
        if tee is TeeType.TDX:
            return tdx_code(measurements["mrtd"], [measurements[f"rtmr{index}"] for index in range(4)])
        return measurements[_NAMING[tee]]
    except KeyError as error:
        raise InvalidInput("code-unnamed", f"the evidence lacks {error.args[0]}, which names the code") from error


def tdx_code(mrtd: bytes, rtmr: Sequence[bytes]) -> bytes:
    """One name for all of a TD's code: MRTD holds the firmware, the four RTMRs what it started."""
    return hashlib.sha384(b"".join((mrtd, *rtmr))).digest()
