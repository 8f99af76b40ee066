"""Devices of TEEs that are none: they behave as the kernel's and Gramine's do, or lie in one respect.

Evidence comes from the synthetic vendors (``evidence_dcap``, ``evidence_snp``, ``evidence_nitro``).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import cbor2

from cloister.base.errors import Tampered, Unavailable

Produce = Callable[[bytes], bytes]


def _gone(path: str, number: int = errno.ENOENT) -> Unavailable:
    return Unavailable("evidence-unavailable", f"{path}: {errno.errorcode[number]}")


@dataclass
class FakeGramine:
    """``DeviceFiles`` as ``/dev/attestation``: report data stays what was written last.

    :param produce: report data (64 bytes) to a quote.
    :param attestation_type: ``dcap`` or ``none``.
    :param taken: how many bytes a write takes; ``None`` for all.
    """

    produce: Produce
    attestation_type: bytes = b"dcap"
    taken: int | None = None
    user_report_data: bytes = bytes(64)
    sealing_key: bytes = b"mrenclave's key!"

    def exists(self, path: str) -> bool:
        return path in ("attestation_type", "user_report_data", "quote", "keys/_sgx_mrenclave")

    def read(self, path: str, *, limit: int = 65536) -> bytes:
        if path == "attestation_type":
            return self.attestation_type
        if path == "keys/_sgx_mrenclave":
            return self.sealing_key
        if path != "quote":
            raise _gone(path)
        quote = self.produce(self.user_report_data)
        if len(quote) > limit:
            raise Tampered("evidence-device-lied", f"{path} has more than {limit} bytes")
        return quote

    def write(self, path: str, data: bytes) -> None:
        if path != "user_report_data":
            raise _gone(path, errno.EACCES)
        if self.taken is not None and self.taken < len(data):
            raise Tampered("evidence-device-lied", f"{path} took {self.taken} of {len(data)} bytes")
        self.user_report_data = data

    def make_directory(self, path: str) -> None:
        raise _gone(path, errno.EACCES)

    def remove_directory(self, path: str) -> None:
        raise _gone(path, errno.EACCES)


@dataclass
class _Entry:
    generation: int = 0
    inblob: bytes | None = None
    privilege_level: int = 0
    read_once: bool = False


@dataclass
class FakeConfigfsTsm:
    """``DeviceFiles`` as ``/sys/kernel/config/tsm/report``.

    :param provider: ``tdx_guest`` or ``sev_guest``; may be changed between two readings.
    :param produce: report data and privilege level to a quote or report.
    :param auxblob: the host's certificate table (SEV-SNP).
    :param floor: the VMPL that the kernel runs at; unless told, it asks for level 0 all the same, as Linux does.
    :param interference: called after each write to ``inblob``, as another process that gets in between.
    """

    produce: Callable[[bytes, int], bytes]
    provider: bytes = b"tdx_guest\n"
    auxblob: bytes | None = None
    taken: int | None = None
    floor: int = 0
    interference: Callable[[FakeConfigfsTsm, str], None] = lambda _device, _name: None
    entries: dict[str, _Entry] = field(default_factory=dict)
    made: int = 0

    def exists(self, path: str) -> bool:
        name, _, attribute = path.partition("/")
        known = {"provider", "generation", "inblob", "outblob"}
        if self.provider.strip() == b"sev_guest":
            known |= {"privlevel", "privlevel_floor"}
        return name in self.entries and (not attribute or attribute in known or self._has_auxblob(attribute))

    def _has_auxblob(self, attribute: str) -> bool:
        return attribute == "auxblob" and self.auxblob is not None

    def read(self, path: str, *, limit: int = 65536) -> bytes:
        if not self.exists(path):
            raise _gone(path)
        name, _, attribute = path.partition("/")
        entry = self.entries[name]
        if attribute == "outblob":
            if entry.inblob is None:
                raise _gone(path, errno.EINVAL)
            if entry.privilege_level < self.floor:  # the firmware, of a request above the kernel's own privilege
                raise _gone(path, errno.EIO)
            data = self.produce(entry.inblob, entry.privilege_level)
        elif attribute == "auxblob":
            data = self.auxblob or b""
        elif attribute == "generation":
            data = b"%d\n" % entry.generation
        elif attribute == "provider":
            data = self.provider
        elif attribute == "privlevel_floor":
            data = b"%d\n" % self.floor
        else:
            raise _gone(path, errno.EACCES)
        if len(data) > limit:
            raise Tampered("evidence-device-lied", f"{path} has more than {limit} bytes")
        return data

    def write(self, path: str, data: bytes) -> None:
        name, _, attribute = path.partition("/")
        if name not in self.entries:
            raise _gone(path)
        if self.taken is not None and self.taken < len(data):
            raise Tampered("evidence-device-lied", f"{path} took {self.taken} of {len(data)} bytes")
        entry = self.entries[name]
        if attribute == "privlevel":
            level = int(data)
            if level < self.floor or level > 3:
                raise _gone(path, errno.EINVAL)
            entry.privilege_level = level
        elif attribute == "inblob" and 0 < len(data) <= 64:
            entry.inblob = data
        else:
            raise _gone(path, errno.EINVAL)
        entry.generation += 1
        if attribute == "inblob":
            self.interference(self, name)

    def make_directory(self, path: str) -> None:
        if path in self.entries:
            raise _gone(path, errno.EEXIST)
        self.entries[path] = _Entry()
        self.made += 1

    def remove_directory(self, path: str) -> None:
        self.entries.pop(path, None)


_GUEST_REQUEST = struct.Struct("=B7xQQQ")
_DERIVE = struct.Struct("=IIQIIQ")
SNP_GET_DERIVED_KEY = 0xC0205301


@dataclass
class FakeSevGuest:
    """The kernel's and the firmware's side of ``SNP_GET_DERIVED_KEY`` on ``/dev/sev-guest``.

    :param chip: the chip's secret; ``measurement`` and ``policy`` are the guest's.
    :param status: of the firmware; other than 0 it gives no key.
    """

    chip: bytes = b"chip"
    measurement: bytes = b"m" * 48
    policy: int = 0x30000
    privilege_level: int = 0
    status: int = 0

    def __call__(self, _descriptor: int, request: int, argument: bytearray) -> int:
        if request != SNP_GET_DERIVED_KEY or len(argument) != _GUEST_REQUEST.size:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        version, question_at, answer_at, _ = _GUEST_REQUEST.unpack(argument)
        root, reserved, fields, level, svn, tcb = _DERIVE.unpack(ctypes.string_at(question_at, _DERIVE.size))
        if version != 1 or root or reserved or fields & ~0x3F or level < self.privilege_level:
            raise OSError(errno.EINVAL, "Invalid argument")
        parts = [self.chip, bytes([level]), fields.to_bytes(8, "little")]
        parts += [self.policy.to_bytes(8, "little")] if fields & 1 else []
        parts += [self.measurement] if fields & 8 else []
        parts += [svn.to_bytes(4, "little"), tcb.to_bytes(8, "little")]
        key = hashlib.sha256(b"".join(parts)).digest() if not self.status else bytes(32)
        ctypes.memmove(answer_at, self.status.to_bytes(4, "little") + bytes(28) + key, 64)
        return 0


_RAW = struct.Struct("=QQQQ")
NSM_REQUEST = 0xC0200A00


@dataclass
class FakeNsm:
    """The kernel's side of ``ioctl`` on ``/dev/nsm``: reads the request from memory, writes the answer there.

    :param produce: user data to a document.
    :param answer: instead of the answer that holds the document: bytes as they are.
    :param length: instead of the answer's true length.
    """

    produce: Produce
    answer: bytes | None = None
    length: int | None = None

    def __call__(self, _descriptor: int, request: int, argument: bytearray) -> int:
        if request != NSM_REQUEST or len(argument) != _RAW.size:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        question_at, question_length, answer_at, answer_length = _RAW.unpack(argument)
        if question_length > 0x1000:
            raise OSError(errno.EMSGSIZE, "Message too long")
        asked = cbor2.loads(ctypes.string_at(question_at, question_length))
        attestation = asked.get("Attestation") if isinstance(asked, dict) else None
        if attestation is None or set(attestation) != {"user_data", "nonce", "public_key"}:
            answer = cbor2.dumps({"Error": "InvalidArgument"})
        elif self.answer is not None:
            answer = self.answer
        else:
            answer = cbor2.dumps({"Attestation": {"document": self.produce(attestation["user_data"])}})
        if len(answer) > answer_length:
            raise OSError(errno.EMSGSIZE, "Message too long")
        ctypes.memmove(answer_at, answer, len(answer))
        stated = len(answer) if self.length is None else self.length
        argument[:] = _RAW.pack(question_at, question_length, answer_at, stated)
        return 0
