"""Simulated evidence is accepted only where its key is named, and only as what was signed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.attest import claim_names
from cloister.attest.anchors import TrustAnchors, production_anchors
from cloister.attest.simulation import SimulatedToken, produce
from cloister.attest.simulation import verify as verify_simulation
from cloister.attest.steps import Steps, Verdict
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.errors import InvalidInput, Refused, Tampered
from cloister.base.limits import MAX_COLLATERAL, MAX_EVIDENCE
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context
from cloister.crypto.sign import SigningKey
from cloister.wire import cbor, cose

NOW = 1_800_000_000.0
KEY = SigningKey.from_seed(SecretBytes(bytes(range(32))))
TOKEN = SimulatedToken(
    key=KEY.public_key,
    measurement=b"m" * 48,
    configuration_digest=b"c" * 32,
    report_data=b"r" * 64,
    issued_at=int(NOW),
)
ANCHORS = TrustAnchors(simulation_keys=(KEY.public_key,))


def test_claims_say_what_was_signed_and_that_it_is_simulated() -> None:
    steps = Steps()
    verified = verify(produce(KEY, TOKEN), Collateral(), ANCHORS, NOW, steps)
    assert verified.claims.tee is TeeType.SIMULATION
    assert verified.claims.measurements == {"measurement": b"m" * 48}
    assert verified.claims.report_data == b"r" * 64
    assert verified.claims.specific[claim_names.SIMULATION_WARNING] == "insecure-simulation"
    assert verified.claims.specific[claim_names.SIMULATION_CONFIGURATION] == b"c" * 32
    assert verified.claims.configuration_digest == b"c" * 32
    assert verified.expires_at > NOW
    assert [step.verdict for step in steps.report] == [Verdict.PASS] * 4


def test_the_signed_bytes_hold_the_warning() -> None:
    assert b"insecure-simulation" in cose.peek1(produce(KEY, TOKEN).body, limit=4096, what="test")


def test_production_anchors_refuse_it() -> None:
    with pytest.raises(Refused) as caught:
        verify(produce(KEY, TOKEN), Collateral(), production_anchors(), NOW)
    assert caught.value.code == "simulation-refused"


def test_a_key_that_only_the_token_names_proves_nothing() -> None:
    stranger = SigningKey.generate()
    with pytest.raises(Refused, match="simulation-refused"):
        verify(produce(stranger, TOKEN), Collateral(), ANCHORS, NOW)
    forged = cose.sign1(stranger, Context.SIMULATED_EVIDENCE, TOKEN.encode())
    with pytest.raises(Tampered, match="signature-invalid"):
        verify(Evidence(TeeType.SIMULATION, forged), Collateral(), ANCHORS, NOW)


def test_a_signature_for_another_purpose_proves_nothing() -> None:
    other = cose.sign1(KEY, Context.STATEMENT, TOKEN.encode())
    with pytest.raises(Tampered, match="signature-invalid"):
        verify(Evidence(TeeType.SIMULATION, other), Collateral(), ANCHORS, NOW)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"warning": "trust me"}, "simulation-unmarked"),
        ({"version": 2}, "simulation-version"),
        ({"extra": 1}, "field-unknown"),
        ({"measurement": b"m" * 47}, "field-range"),
        ({"report_data": b""}, "field-range"),
        ({"debug": 0}, "field-type"),
    ],
)
def test_a_signed_payload_of_another_form_is_refused(change: dict[str, object], code: str) -> None:
    fields = cbor.decode(TOKEN.encode(), limit=4096, what="test") | change
    body = cose.sign1(KEY, Context.SIMULATED_EVIDENCE, cbor.encode(fields))
    with pytest.raises(InvalidInput) as caught:
        verify(Evidence(TeeType.SIMULATION, body), Collateral(), ANCHORS, NOW)
    assert caught.value.code == code


def test_time_bounds_it() -> None:
    verify(produce(KEY, TOKEN), Collateral(), ANCHORS, NOW - 30)
    with pytest.raises(Refused, match="simulation-not-yet-valid"):
        verify(produce(KEY, TOKEN), Collateral(), ANCHORS, NOW - 120)
    with pytest.raises(Refused, match="simulation-expired"):
        verify(produce(KEY, TOKEN), Collateral(), ANCHORS, NOW + 90_000)
    for now in (float("nan"), float("inf"), -1.0):
        with pytest.raises(InvalidInput, match="time-malformed"):
            verify(produce(KEY, TOKEN), Collateral(), ANCHORS, now)


def test_every_flipped_bit_is_refused() -> None:
    body = produce(KEY, TOKEN).body
    for position in range(len(body)):
        changed = bytearray(body)
        changed[position] ^= 1 << (position % 8)
        with pytest.raises((InvalidInput, Refused, Tampered)):
            verify(Evidence(TeeType.SIMULATION, bytes(changed)), Collateral(), ANCHORS, NOW)


def test_every_truncation_and_extension_is_refused() -> None:
    body = produce(KEY, TOKEN).body
    for changed in [*(body[:length] for length in range(len(body))), body + b"\x00", body + bytes(4096)]:
        with pytest.raises(InvalidInput):
            verify(Evidence(TeeType.SIMULATION, changed), Collateral(), ANCHORS, NOW)


def test_it_comes_alone_and_small() -> None:
    good = produce(KEY, TOKEN)
    with pytest.raises(InvalidInput, match="simulation-collateral"):
        verify(good, Collateral({"vek.der": b""}), ANCHORS, NOW)
    with pytest.raises(InvalidInput, match="evidence-too-long"):
        verify(replace(good, endorsements={"x": bytes(MAX_EVIDENCE)}), Collateral(), ANCHORS, NOW)
    with pytest.raises(InvalidInput, match="collateral-too-long"):
        verify(good, Collateral({"x": bytes(MAX_COLLATERAL + 1)}), ANCHORS, NOW)


def test_the_verifier_itself_refuses_another_label() -> None:
    labelled = replace(produce(KEY, TOKEN), tee=TeeType.TDX)
    with pytest.raises(InvalidInput, match="evidence-other-tee"):
        verify_simulation(labelled, Collateral(), ANCHORS, NOW, Steps())
