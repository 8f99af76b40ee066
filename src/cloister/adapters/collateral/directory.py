"""Collateral from a directory that somebody filled, for one platform: the layout is that of ``Collateral.files``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloister.attest.dcap.collateral import FILE
from cloister.attest.snp.certificates import CHAIN_FILE, CRL_FILE, VEK_FILE
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import MAX_COLLATERAL

# what may be there, by TEE; the first of each must be
FILES: Final[Mapping[TeeType, tuple[str, ...]]] = {
    TeeType.SGX: (FILE,),
    TeeType.TDX: (FILE,),
    TeeType.SEV_SNP: (CHAIN_FILE, VEK_FILE, CRL_FILE),
    TeeType.NITRO: (),
    TeeType.SIMULATION: (),
}


class DirectoryCollateral:
    """``CollateralSource`` over one directory; whatever else lies there is not read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collateral(self, evidence: Evidence) -> Collateral:
        """The directory's files for this kind of evidence.

        :raises Unavailable: ``collateral-unavailable`` when the directory or what must be in it is missing.
        :raises InvalidInput: ``collateral-malformed`` when a file is oversized.
        """
        names = FILES[evidence.tee]
        files = {name: data for name in names if (data := self._read(name)) is not None}
        if names and names[0] not in files:
            raise Unavailable(
                "collateral-unavailable",
                f"{self._folder} has no {names[0]!r}, which {evidence.tee.value} evidence needs",
                hint="Make it with `cloister collateral bundle`, or fetch it from the vendor.",
            )
        return Collateral(files)

    def _read(self, name: str) -> bytes | None:
        path = self._folder / name
        try:
            with path.open("rb") as file:
                data = file.read(MAX_COLLATERAL + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable("collateral-unavailable", f"{path} cannot be read: {error.strerror}") from error
        if len(data) > MAX_COLLATERAL:
            raise InvalidInput("collateral-malformed", f"{path} has more than {MAX_COLLATERAL} bytes")
        return data
