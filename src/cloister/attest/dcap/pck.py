"""The PCK certificate's SGX extension: which platform, at which security versions (spec/attestation.md, clause 3.5).

Source: Intel, "SGX PCK Certificate and Certificate Revocation List Profile Specification", section 1.3.5. The extension
is a SEQUENCE of SEQUENCE { OBJECT IDENTIFIER, value }, nested under 1.2.840.113741.1.13.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from cloister.base.errors import InvalidInput

SGX_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
# DER content of the OID 1.2.840.113741.1.13.1; what is below it appends one octet or two
_ARC: Final = bytes.fromhex("2a864886f84d010d01")
_PPID, _TCB, _PCE_ID, _FMSPC, _TYPE, _INSTANCE, _CONFIGURATION = (bytes([*_ARC, n]) for n in range(1, 8))
_COMPONENTS: Final = 16
_PCE_SVN: Final = 17
_CPU_SVN: Final = 18

_BOOLEAN, _INTEGER, _OCTETS, _OID, _ENUMERATED, _SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30
SGX_TYPES: Final = ("Standard", "Scalable", "ScalableWithIntegrity")


@dataclass(frozen=True, slots=True)
class PckPlatform:
    """What Intel certified about the platform.

    :param ppid: 16 bytes, the platform's provisioning id.
    :param cpu_svn: 16 component SVNs.
    :param fmspc: 6 bytes; ``pce_id`` 2 bytes.
    :param instance_id: 16 bytes, multi-package platforms only.
    :param dynamic_platform: configuration flags; ``None`` where the certificate says nothing (single package).
    """

    ppid: bytes
    cpu_svn: bytes
    pce_svn: int
    pce_id: bytes
    fmspc: bytes
    sgx_type: str
    instance_id: bytes | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt: bool | None


def platform_of(leaf: x509.Certificate) -> PckPlatform:
    """Read the SGX extension of a PCK certificate.

    :raises InvalidInput: ``pck-extension`` when it is missing, incomplete or not DER as the profile defines it.
    """
    try:
        extension = leaf.extensions.get_extension_for_oid(SGX_EXTENSION).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise InvalidInput("pck-extension", "the PCK certificate has no readable SGX extension") from error
    if not isinstance(extension, x509.UnrecognizedExtension):  # cryptography learned to read it: look again here
        raise InvalidInput("pck-extension", "the PCK certificate's SGX extension is of an unexpected kind")
    fields = _named(_only(extension.value, _SEQUENCE))
    tcb = _named(_value(fields, _TCB, _SEQUENCE))
    components = tuple(_small(tcb, bytes([*_TCB, n]), 0xFF) for n in range(1, _COMPONENTS + 1))
    cpu_svn = _fixed(tcb, bytes([*_TCB, _CPU_SVN]), 16)
    if bytes(components) != cpu_svn:
        raise InvalidInput("pck-extension", "the PCK certificate's components contradict its CPUSVN")
    sgx_type = _value(fields, _TYPE, _ENUMERATED)
    if len(sgx_type) != 1 or sgx_type[0] >= len(SGX_TYPES):
        raise InvalidInput("pck-extension", f"the PCK certificate's SGX type {sgx_type.hex()} is unknown")
    settings: dict[bytes, tuple[int, bytes]] = {}
    if _CONFIGURATION in fields:
        settings = _named(_value(fields, _CONFIGURATION, _SEQUENCE))
    return PckPlatform(
        ppid=_fixed(fields, _PPID, 16),
        cpu_svn=cpu_svn,
        pce_svn=_small(tcb, bytes([*_TCB, _PCE_SVN]), 0xFFFF),
        pce_id=_fixed(fields, _PCE_ID, 2),
        fmspc=_fixed(fields, _FMSPC, 6),
        sgx_type=SGX_TYPES[sgx_type[0]],
        instance_id=_fixed(fields, _INSTANCE, 16) if _INSTANCE in fields else None,
        dynamic_platform=_flag(settings, bytes([*_CONFIGURATION, 1])),
        cached_keys=_flag(settings, bytes([*_CONFIGURATION, 2])),
        smt=_flag(settings, bytes([*_CONFIGURATION, 3])),
    )


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The DER elements that fill ``data`` exactly: definite, shortest lengths, single-octet tags."""
    position = 0
    while position < len(data):
        head = data[position : position + 2]
        if len(head) < 2 or head[0] & 0x1F == 0x1F:
            raise InvalidInput("pck-extension", "the SGX extension is cut short or has a tag out of range")
        tag, length = head
        position += 2
        if length >= 0x80:
            count = length - 0x80
            octets = data[position : position + count]
            length = int.from_bytes(octets, "big")
            if count not in (1, 2) or len(octets) != count or length < (0x80 if count == 1 else 0x100):
                raise InvalidInput("pck-extension", "the SGX extension has a length that is not DER")
            position += count
        if position + length > len(data):
            raise InvalidInput("pck-extension", "the SGX extension is cut short")
        yield tag, data[position : position + length]
        position += length


def _only(data: bytes, tag: int) -> bytes:
    elements = list(_elements(data))
    if len(elements) != 1 or elements[0][0] != tag:
        raise InvalidInput("pck-extension", "the SGX extension is not one SEQUENCE")
    return elements[0][1]


def _named(data: bytes) -> dict[bytes, tuple[int, bytes]]:
    """SEQUENCE { OID, value } pairs: OID content to (tag, content); a repeated OID is refused."""
    fields: dict[bytes, tuple[int, bytes]] = {}
    for tag, content in _elements(data):
        pair = list(_elements(content)) if tag == _SEQUENCE else []
        if len(pair) != 2 or pair[0][0] != _OID or pair[0][1] in fields:
            raise InvalidInput("pck-extension", "the SGX extension holds something other than distinct named values")
        fields[pair[0][1]] = pair[1]
    return fields


def _value(fields: dict[bytes, tuple[int, bytes]], oid: bytes, tag: int) -> bytes:
    found = fields.get(oid)
    if found is None or found[0] != tag:
        raise InvalidInput("pck-extension", f"the SGX extension lacks element {list(oid[len(_ARC) :])}, or mistypes it")
    return found[1]


def _fixed(fields: dict[bytes, tuple[int, bytes]], oid: bytes, length: int) -> bytes:
    value = _value(fields, oid, _OCTETS)
    if len(value) != length:
        raise InvalidInput("pck-extension", f"element {list(oid[len(_ARC) :])} has {len(value)} bytes, not {length}")
    return value


def _small(fields: dict[bytes, tuple[int, bytes]], oid: bytes, high: int) -> int:
    value = _value(fields, oid, _INTEGER)
    number = int.from_bytes(value, "big", signed=True)
    if not 1 <= len(value) <= 3 or not 0 <= number <= high:
        raise InvalidInput("pck-extension", f"element {list(oid[len(_ARC) :])} is not within 0..{high}")
    return number


def _flag(fields: dict[bytes, tuple[int, bytes]], oid: bytes) -> bool | None:
    if oid not in fields:
        return None
    value = _value(fields, oid, _BOOLEAN)
    if value not in (b"\x00", b"\xff"):
        raise InvalidInput("pck-extension", f"element {list(oid[len(_ARC) :])} is not a DER boolean")
    return value == b"\xff"
