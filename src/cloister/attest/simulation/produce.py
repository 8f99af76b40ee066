"""Make simulated evidence; for the simulated attester and for tests."""

from __future__ import annotations

from dataclasses import replace

from cloister.attest.simulation.parse import SimulatedToken
from cloister.attest.types import Evidence, TeeType
from cloister.crypto.digest import Context
from cloister.crypto.sign import SigningKey
from cloister.wire import cose


def produce(key: SigningKey, token: SimulatedToken) -> Evidence:
    """Evidence that says what ``token`` says, under the key that signs it (``token.key`` is replaced)."""
    payload = replace(token, key=key.public_key).encode()
    return Evidence(TeeType.SIMULATION, cose.sign1(key, Context.SIMULATED_EVIDENCE, payload))
