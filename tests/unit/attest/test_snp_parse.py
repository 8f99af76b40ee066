"""Each field of an SEV-SNP report stands where AMD's table puts it."""

from __future__ import annotations

import pytest

from cloister.attest.snp import parse
from cloister.attest.snp.parse import FirmwareVersion
from cloister.attest.snp.tcb import PRODUCTS
from cloister.base.errors import InvalidInput

# From the ATTESTATION_REPORT table of AMD's document 56860, rev. 1.58: offset, size, name.
BYTES = {
    "family_id": (0x010, 16),
    "image_id": (0x020, 16),
    "current_tcb": (0x038, 8),
    "report_data": (0x050, 64),
    "measurement": (0x090, 48),
    "host_data": (0x0C0, 32),
    "id_key_digest": (0x0E0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32),
    "reported_tcb": (0x180, 8),
    "chip_id": (0x1A0, 64),
    "committed_tcb": (0x1E0, 8),
    "launch_tcb": (0x1F0, 8),
}
INTEGERS = {
    "guest_svn": (0x004, 4),
    "policy": (0x008, 8),
    "platform_info": (0x040, 8),
    "launch_mit_vector": (0x1F8, 8),
    "current_mit_vector": (0x200, 8),
    "cpuid_family": (0x188, 1),
    "cpuid_model": (0x189, 1),
    "cpuid_stepping": (0x18A, 1),
    "r": (0x2A0, 48),
    "s": (0x2E8, 48),
}


def with_at(at: int, value: bytes, version: int = 5) -> bytes:
    body = bytearray(1184)
    body[0], body[0x34] = version, 1
    body[at : at + len(value)] = value
    return bytes(body)


@pytest.mark.parametrize("name", BYTES)
def test_bytes(name: str) -> None:
    at, size = BYTES[name]
    value = bytes(range(1, size + 1))
    assert getattr(parse(with_at(at, value)), name) == value


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_little_endian(name: str) -> None:
    at, size = INTEGERS[name]
    value = bytes(range(1, size + 1))
    assert getattr(parse(with_at(at, value)), name) == int.from_bytes(value, "little")


def test_flags_and_versions() -> None:
    report = parse(with_at(0x48, bytes([0b10101])))
    assert (report.author_key_en, report.mask_chip_key, report.signing_key) == (True, False, 5)
    report = parse(with_at(0x48, bytes([0b00110])))
    assert (report.author_key_en, report.mask_chip_key, report.signing_key) == (False, True, 1)
    assert parse(with_at(0x1E8, b"\x01\x02\x03")).current_version == FirmwareVersion(build=1, minor=2, major=3)
    assert str(parse(with_at(0x1EC, b"\x01\x02\x03")).committed_version) == "3.2.1"


@pytest.mark.parametrize("version", [2, 3, 4])
def test_what_a_version_does_not_have_is_none(version: int) -> None:
    report = parse(with_at(0x04, b"\x07", version))
    assert report.launch_mit_vector is report.current_mit_vector is None
    assert (report.cpuid_family is None) is (version == 2)


@pytest.mark.parametrize("vmpl", [4, 5, 0xFFFFFFFE, 1 << 31])
def test_a_vmpl_that_is_none(vmpl: int) -> None:
    with pytest.raises(InvalidInput, match="snp-vmpl-range"):
        parse(with_at(0x30, vmpl.to_bytes(4, "little")))


def test_the_levels_of_each_product() -> None:
    version = bytes([10, 11, 12, 13, 14, 15, 16, 17])
    old = {"boot_loader": 10, "tee": 11, "snp": 16, "microcode": 17}
    assert dict(PRODUCTS["Milan"].tcb(version)) == dict(PRODUCTS["Genoa"].tcb(version)) == old
    turin = {"fmc": 10, "boot_loader": 11, "tee": 12, "snp": 13, "microcode": 17}
    assert dict(PRODUCTS["Turin"].tcb(version)) == turin


@pytest.mark.parametrize(
    ("product", "family", "model", "is_one"),
    [
        ("Milan", 0x19, 0x00, True),
        ("Milan", 0x19, 0x0F, True),
        ("Milan", 0x19, 0x10, False),
        ("Genoa", 0x19, 0x10, True),
        ("Genoa", 0x19, 0xA0, True),
        ("Genoa", 0x19, 0xAF, True),
        ("Genoa", 0x19, 0x20, False),
        ("Turin", 0x1A, 0x11, True),
        ("Turin", 0x1A, 0x50, False),
        ("Turin", 0x19, 0x11, False),
    ],
)
def test_processors_of_a_product(product: str, family: int, model: int, *, is_one: bool) -> None:
    assert PRODUCTS[product].has_cpu(family, model) is is_one
