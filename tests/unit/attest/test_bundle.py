"""A trust bundle is believed only as signed, in its time, and never in an older version."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest import claim_names as names
from cloister.attest.anchors import production_anchors
from cloister.attest.bundle import Successor, TrustBundle, open_bundle
from cloister.attest.policy import Policy, Rule
from cloister.attest.types import TeeType
from cloister.base.errors import InvalidInput, Refused, Tampered
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context
from cloister.crypto.sign import SigningKey
from cloister.wire import cbor, cose

NOW = 1_800_000_000
ROOT = SigningKey.from_seed(SecretBytes(b"\x01" * 32))
SIMULATION = Rule.of(
    "ks",
    TeeType.SIMULATION,
    {
        "measurement": [b"m" * 48],
        "minimum_security_version": 0,
        "maximum_age_s": "any-age",
        "configuration": [b"c" * 32],
        "isolation": "any-isolation",
    },
)
BUNDLE = TrustBundle(
    root=ROOT.public_key,
    version=7,
    name="laboratory",
    issued_at=NOW - 100,
    expires_at=NOW + 1000,
    keyservice=Policy((SIMULATION,)),
    accept_simulation=True,
    simulation_keys=(b"s" * 32, b"k" * 32),
    accept_rollback_unsafe=True,
    witnesses=(b"w" * 32, b"v" * 32),
    witness_threshold=1,
    successors=(Successor(b"n" * 48, b"d" * 32),),
)
DATA = BUNDLE.sign(ROOT)


def test_what_was_signed_is_read() -> None:
    bundle = open_bundle(DATA, ROOT.public_key, 7, NOW)
    assert bundle == BUNDLE
    assert bundle.digest == BUNDLE.digest
    assert bundle.anchors().simulation_keys == (b"k" * 32, b"s" * 32)
    assert not bundle.anchors().intel_root_der
    assert replace(BUNDLE, version=8).digest != BUNDLE.digest


def test_an_older_version_another_root_and_another_time_are_refused() -> None:
    with pytest.raises(Refused, match="bundle-rollback"):
        open_bundle(DATA, ROOT.public_key, 8, NOW)
    with pytest.raises(Refused, match="bundle-expired"):
        open_bundle(DATA, ROOT.public_key, 0, NOW + 1001)
    with pytest.raises(Refused, match="bundle-not-yet-valid"):
        open_bundle(DATA, ROOT.public_key, 0, NOW - 1000)
    stranger = SigningKey.generate()
    with pytest.raises(Tampered, match="signature-invalid"):
        open_bundle(DATA, stranger.public_key, 0, NOW)
    with pytest.raises(InvalidInput, match="bundle-malformed"):
        BUNDLE.sign(stranger)
    resigned = cose.sign1(stranger, Context.BUNDLE, BUNDLE.payload)
    with pytest.raises(InvalidInput, match="bundle-malformed"):
        open_bundle(resigned, stranger.public_key, 0, NOW)
    with pytest.raises(Tampered, match="signature-invalid"):
        open_bundle(cose.sign1(ROOT, Context.STATEMENT, BUNDLE.payload), ROOT.public_key, 0, NOW)


def test_every_flipped_bit_is_refused() -> None:
    for position in range(len(DATA)):
        changed = bytearray(DATA)
        changed[position] ^= 1 << (position % 8)
        with pytest.raises((InvalidInput, Tampered)):
            open_bundle(bytes(changed), ROOT.public_key, 0, NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"accept_simulation": False},
        {"simulation_keys": ()},
        {"simulation_keys": (b"s" * 31,)},
        {"simulation_keys": (b"s" * 32, b"s" * 32)},
        {"version": 0},
        {"name": ""},
        {"name": "a\nb"},
        {"expires_at": NOW - 100},
        {"witness_threshold": 0},
        {"witness_threshold": 3},
        {"witnesses": ()},
        {"successors": (Successor(b"n" * 47, b"d" * 32),)},
        {"minimum_tcb_evaluation_data_number": -1},
    ],
    ids=str,
)
def test_contradictions_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="bundle-malformed"):
        replace(BUNDLE, **change)


def test_production_accepts_no_simulation_and_simulation_nothing_else(case: Any) -> None:
    rule = case.policy().rules[0]
    production = {"accept_simulation": False, "simulation_keys": ()}
    if case.tee is TeeType.SIMULATION:
        with pytest.raises(InvalidInput, match="bundle-malformed"):
            replace(BUNDLE, **production)
        return
    bundle = replace(BUNDLE, keyservice=Policy((rule,)), **production)
    assert bundle.anchors() == production_anchors()
    with pytest.raises(InvalidInput, match="bundle-malformed"):
        replace(BUNDLE, keyservice=Policy((rule,)))
    with pytest.raises(InvalidInput, match="bundle-malformed"):
        replace(bundle, keyservice=Policy((rule, SIMULATION)))


def test_any_code_or_configuration_is_never_a_keyservice() -> None:
    plain = SIMULATION.plain()
    for field in ("measurement", "configuration"):
        open_rule = Rule.of("ks", TeeType.SIMULATION, plain | {field: f"any-{field}"})
        with pytest.raises(InvalidInput, match="bundle-malformed"):
            replace(BUNDLE, keyservice=Policy((open_rule,)))


def test_old_collateral_is_refused(case_of: Any) -> None:
    case = case_of(TeeType.TDX)
    bundle = replace(
        BUNDLE,
        keyservice=case.policy(),
        accept_simulation=False,
        simulation_keys=(),
        minimum_tcb_evaluation_data_number=18,
    )
    bundle.check_collateral(case.verified().claims)
    bundle.check_collateral(case_of(TeeType.SEV_SNP).verified().claims)
    for number in (17, None):
        case.specific[names.TCB_EVALUATION_DATA_NUMBER] = number
        with pytest.raises(Refused, match="collateral-too-old"):
            bundle.check_collateral(case.verified().claims)


def test_a_bundle_that_nobody_could_read_is_not_signed() -> None:
    rules = []
    for index in range(3):
        entries = [index.to_bytes(4, "big") + n.to_bytes(44, "big") for n in range(1, 200)]
        rules.append(Rule.of(f"ks{index}", TeeType.SIMULATION, SIMULATION.plain() | {"measurement": entries}))
    wide = replace(BUNDLE, keyservice=Policy(tuple(rules)))
    assert open_bundle(wide.sign(ROOT), ROOT.public_key, 7, NOW) == wide
    many = tuple(Successor(n.to_bytes(48, "big"), b"d" * 32) for n in range(65))
    with pytest.raises(InvalidInput, match="bundle-malformed"):
        replace(BUNDLE, successors=many)


def test_a_payload_of_another_form_is_refused() -> None:
    good = cbor.decode(BUNDLE.payload, limit=10_000, what="test")
    for change in (
        {"extra": 1},
        {"format": 2},
        {"simulation_keys": [b"s" * 32, b"k" * 32]},
        {"witnesses": ["w" * 32]},
        {"successors": [[b"n" * 48]]},
        {"keyservice": b""},
    ):
        data = cose.sign1(ROOT, Context.BUNDLE, cbor.encode(good | change))
        with pytest.raises(InvalidInput):
            open_bundle(data, ROOT.public_key, 0, NOW)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidInput, Tampered):
        open_bundle(data, ROOT.public_key, 0, NOW)
    with contextlib.suppress(InvalidInput):
        open_bundle(cose.sign1(ROOT, Context.BUNDLE, data), ROOT.public_key, 0, NOW)
