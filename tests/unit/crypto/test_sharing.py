"""Shares of a secret: any k give it back, fewer say nothing, and the library computes in the field that we say."""

from __future__ import annotations

import itertools
import sys
from collections import Counter

import pytest

from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.secret import SecretBytes
from cloister.crypto.sharing import combine, split

SECRET = SecretBytes(bytes(range(32)))
_POLYNOMIAL = (1 << 128) | 0x87  # x^128 + x^7 + x^2 + x + 1


def times(a: int, b: int) -> int:
    """In the field, the slow way."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a >> 128:
            a ^= _POLYNOMIAL
        b >>= 1
    return product


@pytest.mark.parametrize(("threshold", "count"), [(1, 1), (2, 2), (2, 3), (3, 5), (5, 5), (16, 16)])
def test_exactly_k_of_them_give_it_back(threshold: int, count: int) -> None:
    shares = dict(enumerate(split(SECRET, threshold, count), 1))
    assert len(shares) == count
    for chosen in itertools.islice(itertools.combinations(shares, threshold), 40):
        assert combine({number: shares[number] for number in chosen}) == SECRET
    for chosen in itertools.islice(itertools.combinations(shares, threshold - 1), 40):
        assert not chosen or combine({number: shares[number] for number in chosen}) != SECRET


def test_the_shares_are_points_of_a_line_through_the_secret_in_the_specified_field() -> None:
    for at in (0, 16):
        first, second, third = (int.from_bytes(s.reveal()[at : at + 16], "big") for s in split(SECRET, 2, 3))
        secret = int.from_bytes(SECRET.reveal()[at : at + 16], "big")
        slope = first ^ secret  # p(x) = secret + slope * x, and at 1
        assert second == secret ^ times(slope, 2)
        assert third == secret ^ times(slope, 3)


def test_both_halves_have_polynomials_of_their_own_and_each_time_new_ones() -> None:
    twice = SecretBytes(bytes(range(16)) * 2)
    halves = [share.reveal()[at : at + 16] for _ in range(8) for share in split(twice, 2, 3) for at in (0, 16)]
    assert max(Counter(halves).values()) == 1


def test_a_wrong_share_gives_another_secret_and_says_nothing() -> None:
    shares = dict(enumerate(split(SECRET, 2, 3), 1))
    shares[2] = SecretBytes(bytes(32))
    assert combine({1: shares[1], 2: shares[2]}) != SECRET  # why each share is committed to


@pytest.mark.parametrize(("threshold", "count"), [(0, 1), (3, 2), (1, 256), (-1, 5)])
def test_what_cannot_be_shared_is_refused(threshold: int, count: int) -> None:
    with pytest.raises(InvalidInput, match="sharing-bounds"):
        split(SECRET, threshold, count)


def test_what_cannot_be_combined_is_refused() -> None:
    for shares in ({}, {0: SECRET}, {256: SECRET}):
        with pytest.raises(InvalidInput, match="sharing-bounds"):
            combine(shares)
    for length in (0, 16, 31, 33):
        with pytest.raises(InvalidInput, match="key-length"):
            combine({1: SECRET, 2: SecretBytes(bytes(length))})
        with pytest.raises(InvalidInput, match="key-length"):
            split(SecretBytes(bytes(length)), 2, 3)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Crypto.Protocol.SecretSharing", None)
    with pytest.raises(Unavailable, match="custodians-extra-missing"):
        split(SECRET, 2, 3)
