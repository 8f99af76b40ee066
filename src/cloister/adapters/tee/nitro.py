"""Nitro evidence by the Nitro Secure Module, ``/dev/nsm`` (spec/attestation.md, clause 11.4).

Source: Linux, include/uapi/linux/nsm.h; AWS, aws-nitro-enclaves-nsm-api. One ioctl carries a CBOR request and takes a
CBOR answer. The 64 bytes of report data travel as ``user_data``.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, final

import cbor2

from cloister.adapters.tee.bound import check_bound, check_report_data
from cloister.attest.types import Evidence, TeeType
from cloister.base.errors import Tampered, Unavailable

DEVICE: Final = Path("/dev/nsm")
MAX_REQUEST: Final = 0x1000
MAX_RESPONSE: Final = 0x3000
_RAW: Final = struct.Struct("=QQQQ")  # struct nsm_raw: request and response, each an address and a length
IOCTL_RAW: Final = (3 << 30) | (_RAW.size << 16) | (0x0A << 8)  # _IOWR(0x0A, 0, struct nsm_raw)

Ioctl = Callable[[int, int, bytearray], int]


@final
class NitroAttester:
    """``cloister.attest.types.Attester`` in a Nitro enclave.

    :param device: the character device.
    :param ioctl: the system call; another one only to try this out on a machine without the device.
    """

    def __init__(self, device: Path = DEVICE, *, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._device = device
        self._ioctl = ioctl

    @property
    def tee(self) -> TeeType:
        """``nitro``."""
        return TeeType.NITRO

    def evidence(self, report_data: bytes) -> Evidence:
        """A document whose ``user_data`` is exactly these 64 bytes.

        :raises InvalidInput: ``report-data-length``.
        :raises Unavailable: ``evidence-unavailable``.
        :raises Tampered: ``evidence-device-lied``.
        """
        check_report_data(report_data)
        request = {"Attestation": {"user_data": report_data, "nonce": None, "public_key": None}}
        document = _document(self._ask(cbor2.dumps(request)))
        evidence = Evidence(TeeType.NITRO, document)
        check_bound(evidence, report_data)
        return evidence

    def _ask(self, request: bytes) -> bytes:
        question = ctypes.create_string_buffer(request, len(request))
        answer = ctypes.create_string_buffer(MAX_RESPONSE)
        raw = bytearray(
            _RAW.pack(ctypes.addressof(question), len(request), ctypes.addressof(answer), ctypes.sizeof(answer))
        )
        try:
            descriptor = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._ioctl(descriptor, IOCTL_RAW, raw)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Unavailable("evidence-unavailable", f"{self._device} does not answer: {error.strerror}") from error
        length = _RAW.unpack(raw)[3]
        if not 0 < length <= MAX_RESPONSE:
            raise Tampered("evidence-device-lied", f"{self._device} says that its answer has {length} bytes")
        return answer.raw[:length]


def _document(answer: bytes) -> bytes:
    """``{"Attestation": {"document": bytes}}``, or ``{"Error": name}``."""
    try:
        value = cbor2.loads(answer)  # at most 12 KiB; the document inside has its own, strict parser
    except Exception as error:  # any failure of the library is the device's
        raise Tampered("evidence-device-lied", "the NSM answers with what is no CBOR") from error
    if isinstance(value, dict) and isinstance(value.get("Error"), str):
        raise Unavailable("evidence-unavailable", f"the NSM answers with the error {value['Error'][:64]!r}")
    found = value.get("Attestation") if isinstance(value, dict) else None
    document = found.get("document") if isinstance(found, dict) else None
    if type(document) is not bytes:
        raise Tampered("evidence-device-lied", "the NSM's answer holds no document")
    return document
