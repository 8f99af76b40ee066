"""TDX and SEV-SNP evidence by the kernel's configfs-tsm (Linux 6.7 and later; spec/attestation.md, clause 11.3).

Source: Documentation/ABI/testing/configfs-tsm-report. A report is a directory that the kernel fills with attributes.
``inblob`` takes the report data, ``outblob`` gives quote or report, ``auxblob`` what the host adds (SEV-SNP:
certificates). ``generation`` counts writes: if it moves between writing and having read, somebody else wrote too.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

from cloister.adapters.tee.bound import check_bound, check_report_data
from cloister.adapters.tee.files import DeviceFiles, OsDeviceFiles, read_number, read_text
from cloister.attest.snp.certificates import CERT_TABLE, cert_table
from cloister.attest.snp.parse import parse as parse_report
from cloister.attest.types import Evidence, TeeType
from cloister.base.errors import InvalidInput, Tampered, Unavailable

FOLDER: Final = Path("/sys/kernel/config/tsm/report")
PROVIDERS: Final[Mapping[str, TeeType]] = MappingProxyType({"tdx_guest": TeeType.TDX, "sev_guest": TeeType.SEV_SNP})
_FLOOR: Final = "privlevel_floor"
_MAX_PRIVILEGE_LEVEL: Final = 3


@final
class ConfigfsTsmAttester:
    """``cloister.attest.types.Attester`` in a TDX or SEV-SNP guest.

    :param privilege_level: SEV-SNP only: the VMPL to attest; by default the kernel's own, below which it may not ask.
    :param entry: a report directory that was made beforehand, for a process that may not make one; by default each
        evidence gets a directory of its own, which is removed afterwards.
    """

    def __init__(
        self,
        files: DeviceFiles | None = None,
        *,
        privilege_level: int | None = None,
        entry: str | None = None,
    ) -> None:
        """Asks the kernel which TEE this is.

        :raises Unavailable: ``evidence-unavailable`` when there is no provider, or one that is unknown.
        :raises Tampered: ``evidence-device-lied`` when the kernel names no level that there is.
        :raises InvalidInput: ``privilege-level`` when it is out of range, or this is not SEV-SNP.
        """
        self._files = OsDeviceFiles(FOLDER) if files is None else files
        self._entry = entry
        self._lock = threading.Lock()
        with _Report(self._files, entry) as report:
            provider = report.text("provider")
            floor = report.number(_FLOOR) if report.has(_FLOOR) else 0
        if provider not in PROVIDERS:
            raise Unavailable("evidence-unavailable", f"configfs-tsm's provider {provider[:64]!r} is not understood")
        self._provider = provider
        if privilege_level is not None and (
            self.tee is not TeeType.SEV_SNP or not 0 <= privilege_level <= _MAX_PRIVILEGE_LEVEL
        ):
            raise InvalidInput("privilege-level", "a privilege level is 0 to 3, and for SEV-SNP only")
        if floor > _MAX_PRIVILEGE_LEVEL:
            raise Tampered("evidence-device-lied", f"the kernel says that it runs at privilege level {floor}")
        self._privilege_level = privilege_level
        if privilege_level is None and floor > 0:  # unless told, the kernel asks for 0, which the firmware then refuses
            self._privilege_level = floor

    @property
    def privilege_level(self) -> int:
        """The VMPL that reports are of; 0 in a TDX guest, which has none."""
        return self._privilege_level or 0

    @property
    def tee(self) -> TeeType:
        """``tdx`` or ``sev-snp``, as the kernel's provider says."""
        return PROVIDERS[self._provider]

    def evidence(self, report_data: bytes) -> Evidence:
        """A quote or report over exactly these 64 bytes.

        :raises InvalidInput: ``report-data-length``.
        :raises Unavailable: ``evidence-unavailable``.
        :raises Tampered: ``evidence-device-lied``.
        """
        check_report_data(report_data)
        with self._lock, _Report(self._files, self._entry) as report:
            expected = report.number("generation")
            if self._privilege_level is not None:
                report.write("privlevel", str(self._privilege_level).encode())
                expected += 1
            report.write("inblob", report_data)
            expected += 1
            body = report.read("outblob")
            table = report.read("auxblob") if self.tee is TeeType.SEV_SNP and report.has("auxblob") else b""
            provider = report.text("provider")
            generation = report.number("generation")
        if provider != self._provider:
            raise Tampered("evidence-device-lied", f"the provider changed from {self._provider} to {provider[:64]!r}")
        if generation != expected:
            raise Tampered(
                "evidence-device-lied",
                f"the report's generation is {generation}, not {expected}: somebody else wrote to it",
            )
        evidence = Evidence(self.tee, body, MappingProxyType(_endorsements(table)))
        check_bound(evidence, report_data)
        if self._privilege_level is not None and parse_report(body).vmpl != self._privilege_level:
            raise Tampered("evidence-device-lied", "the report is of another privilege level than was asked for")
        return evidence


def _endorsements(table: bytes) -> dict[str, bytes]:
    """The host's certificate table, if it is one: what it lacks, collateral provides."""
    try:
        return {CERT_TABLE: table} if table and cert_table(table) else {}
    except InvalidInput:
        return {}


class _Report:
    """One report directory, for as long as the block lasts."""

    def __init__(self, files: DeviceFiles, entry: str | None) -> None:
        self._files = files
        self._own = entry is None
        self._name = f"cloister-{secrets.token_hex(8)}" if entry is None else entry

    def __enter__(self) -> _Report:
        if self._own:
            self._files.make_directory(self._name)
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._files.remove_directory(self._name)

    def has(self, attribute: str) -> bool:
        return self._files.exists(f"{self._name}/{attribute}")

    def text(self, attribute: str) -> str:
        return read_text(self._files, f"{self._name}/{attribute}")

    def number(self, attribute: str) -> int:
        return read_number(self._files, f"{self._name}/{attribute}")

    def read(self, attribute: str) -> bytes:
        return self._files.read(f"{self._name}/{attribute}")

    def write(self, attribute: str, data: bytes) -> None:
        self._files.write(f"{self._name}/{attribute}", data)
