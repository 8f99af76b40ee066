"""SGX evidence under Gramine: the pseudo-files of ``/dev/attestation`` (spec/attestation.md, clause 11.2).

Source: Gramine documentation, "Attestation and Secret Provisioning", low-level interface. Report data is written to
``user_report_data``, then ``quote`` is read; both are state of the whole process.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final, final

from cloister.adapters.tee.bound import check_bound, check_report_data
from cloister.adapters.tee.files import DeviceFiles, OsDeviceFiles, read_text
from cloister.attest.types import Evidence, TeeType
from cloister.base.errors import Unavailable

FOLDER: Final = Path("/dev/attestation")
TYPE_FILE: Final = "attestation_type"
_DCAP: Final = "dcap"


@final
class GramineAttester:
    """``cloister.attest.types.Attester`` inside a Gramine enclave."""

    def __init__(self, files: DeviceFiles | None = None) -> None:
        """:raises Unavailable: ``evidence-unavailable`` unless Gramine offers DCAP attestation."""
        self._files = OsDeviceFiles(FOLDER) if files is None else files
        self._lock = threading.Lock()
        kind = read_text(self._files, TYPE_FILE)
        if kind != _DCAP:
            raise Unavailable(
                "evidence-unavailable",
                f"Gramine's attestation type is {kind!r}, not {_DCAP!r}",
                hint='Set `sgx.remote_attestation = "dcap"` in the manifest, and run with gramine-sgx.',
            )

    @property
    def tee(self) -> TeeType:
        """``sgx``."""
        return TeeType.SGX

    def evidence(self, report_data: bytes) -> Evidence:
        """A quote over exactly these 64 bytes.

        :raises InvalidInput: ``report-data-length``.
        :raises Unavailable: ``evidence-unavailable``.
        :raises Tampered: ``evidence-device-lied``.
        """
        check_report_data(report_data)
        with self._lock:
            self._files.write("user_report_data", report_data)
            body = self._files.read("quote")
        evidence = Evidence(TeeType.SGX, body)
        check_bound(evidence, report_data)
        return evidence
