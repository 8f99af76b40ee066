"""Sealing under hardware keys: only the same code, configuration and machine unseals, and nothing weaker serves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.adapters.tee.sealing import (
    SNP_GET_DERIVED_KEY,
    HardwareSealer,
    gramine_sealer,
    open_sealer,
    snp_sealer,
)
from cloister.attest.types import TeeType
from cloister.base.errors import Tampered, Unavailable
from cloister.base.secret import SecretBytes
from cloister.testing.devices import SNP_GET_DERIVED_KEY as KERNELS
from cloister.testing.devices import FakeGramine, FakeSevGuest

DIGEST = b"c" * 32


def gramine(key: bytes = b"k" * 16, digest: bytes = DIGEST) -> HardwareSealer:
    return gramine_sealer(digest, FakeGramine(lambda _data: b"", sealing_key=key))


def snp(guest: FakeSevGuest | None = None, digest: bytes = DIGEST, *, level: int = 0) -> HardwareSealer:
    return snp_sealer(digest, privilege_level=level, device=Path(os.devnull), ioctl=guest or FakeSevGuest())


SAME: dict[str, tuple[Callable[[], HardwareSealer], tuple[Callable[[], HardwareSealer], ...]]] = {
    "gramine": (gramine, (lambda: gramine(b"K" * 16), lambda: gramine(digest=b"d" * 32), snp)),
    "snp": (
        snp,
        (
            lambda: snp(FakeSevGuest(chip=b"other")),
            lambda: snp(FakeSevGuest(measurement=b"M" * 48)),
            lambda: snp(FakeSevGuest(policy=0xB0000)),
            lambda: snp(level=1),
            lambda: snp(digest=b"d" * 32),
            lambda: HardwareSealer(TeeType.SGX, SecretBytes(bytes(32)), DIGEST),
        ),
    ),
}


@pytest.mark.parametrize("kind", SAME)
def test_only_the_same_code_configuration_and_machine_unseals(kind: str) -> None:
    make, others = SAME[kind]
    sealed = make().seal(b"root secret")
    assert make().unseal(sealed) == b"root secret"
    for other in others:
        with pytest.raises(Tampered, match="unseal-failed"):
            other().unseal(sealed)


@pytest.mark.parametrize("kind", SAME)
def test_a_changed_byte_is_refused(kind: str) -> None:
    sealer = SAME[kind][0]()
    sealed = sealer.seal(b"root secret")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(Tampered, match="unseal-failed"):
            sealer.unseal(bytes(changed))


@pytest.mark.parametrize("key", [b"", b"short", bytes(16), b"k" * 17])
def test_a_key_that_gramine_does_not_have_is_unavailable(key: bytes) -> None:
    with pytest.raises(Unavailable, match="sealing-unavailable"):
        gramine(key)


def test_a_firmware_that_refuses_is_unavailable(tmp_path: Path) -> None:
    assert SNP_GET_DERIVED_KEY == KERNELS == 0xC0205301
    with pytest.raises(Unavailable, match="status 0x16"):
        snp(FakeSevGuest(status=0x16))
    with pytest.raises(Unavailable, match="sealing-unavailable"):
        snp(FakeSevGuest(privilege_level=2), level=1)
    with pytest.raises(Unavailable, match="sealing-unavailable"):
        snp_sealer(DIGEST, device=tmp_path / "absent")
    with pytest.raises(Unavailable, match="sealing-unavailable"):  # the real ioctl, on a file that is no device
        snp_sealer(DIGEST, device=Path(os.devnull))


@pytest.mark.parametrize("tee", [TeeType.TDX, TeeType.NITRO, TeeType.SIMULATION])
def test_where_the_hardware_has_no_key_sealing_is_unavailable(tee: TeeType) -> None:
    with pytest.raises(Unavailable, match="sealing-unavailable"):
        open_sealer(tee, DIGEST)


def test_on_a_machine_without_a_tee_there_is_no_sealer() -> None:
    for tee in (TeeType.SGX, TeeType.SEV_SNP):
        with pytest.raises(Unavailable, match="sealing-unavailable"):
            open_sealer(tee, DIGEST)
