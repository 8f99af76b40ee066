"""The PCK certificate's extension: any bytes give a platform or ``pck-extension``; one encoding, one platform."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.dcap.pck import platform_of
from cloister.base.errors import InvalidInput
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import Platform, der_element, named

OID = "1.2.840.113741.1.13.1"
GOOD = Platform().extension()


def read(content: bytes) -> object:
    intel = SyntheticIntel.tdx(4)
    intel.pck.extensions[OID] = lambda: content
    return platform_of(intel.pck.certificate())


def test_the_extension_is_read_as_it_was_written() -> None:
    platform = Platform(configuration=(True, False, True), instance_id=None, sgx_type=2, pce_svn=0x1234)
    intel = SyntheticIntel.tdx(4)
    intel.platform = platform
    found = platform_of(intel.pck.certificate())
    assert (found.ppid, found.cpu_svn, found.pce_svn, found.fmspc) == (
        platform.ppid,
        platform.cpu_svn,
        0x1234,
        platform.fmspc,
    )
    assert (found.dynamic_platform, found.cached_keys, found.smt) == (True, False, True)
    assert (found.instance_id, found.sgx_type) == (None, "ScalableWithIntegrity")


@given(st.binary(max_size=700))
def test_any_bytes_are_no_platform(data: bytes) -> None:
    for content in (data, der_element(0x30, data)):
        with pytest.raises(InvalidInput, match="pck-extension"):
            read(content)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_the_platform(position: int, value: int) -> None:
    changed = GOOD[:position] + bytes([value]) + GOOD[position + 1 :]
    with suppress(InvalidInput):
        assert (read(changed) == read(GOOD)) == (changed == GOOD)


def _replaced(old: bytes, new: bytes) -> bytes:
    assert GOOD.count(old) == 1
    body = GOOD[4:].replace(old, new)
    return der_element(0x30, body)


PPID = named([1], 0x04, Platform().ppid)
CASES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "an empty sequence": lambda: der_element(0x30, b""),
    "two sequences": lambda: GOOD + GOOD,
    "a byte more": lambda: GOOD + b"\0",
    "a set": lambda: b"\x31" + GOOD[1:],
    "PPID absent": lambda: _replaced(PPID, b""),
    "PPID twice": lambda: _replaced(PPID, PPID + PPID),
    "PPID too short": lambda: _replaced(PPID, named([1], 0x04, bytes(15))),
    "PPID of another type": lambda: _replaced(PPID, named([1], 0x02, Platform().ppid)),
    "a name without a value": lambda: _replaced(PPID, der_element(0x30, PPID[2:14])),
    "a long tag": lambda: _replaced(PPID, b"\x3f\x81\x00\x00"),
    "an indefinite length": lambda: _replaced(PPID, b"\x30\x80" + PPID[2:] + b"\0\0"),
    "a length that is not the shortest": lambda: _replaced(PPID, b"\x30\x81" + PPID[1:]),
    "a length beyond the end": lambda: _replaced(PPID, b"\x30\x7f" + PPID[2:]),
    "PCESVN negative": lambda: _replaced(named([2, 17], 0x02, b"\x0d"), named([2, 17], 0x02, b"\x8d")),
    "SMT neither true nor false": lambda: _replaced(named([7, 3], 0x01, b"\xff"), named([7, 3], 0x01, b"\x01")),
    "type of two bytes": lambda: _replaced(named([5], 0x0A, b"\x01"), named([5], 0x0A, b"\x00\x01")),
}


@pytest.mark.parametrize("case", CASES)
def test_an_extension_that_is_not_as_the_profile_says_is_refused(case: str) -> None:
    with pytest.raises(InvalidInput, match="pck-extension"):
        read(CASES[case]())
