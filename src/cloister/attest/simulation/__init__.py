"""``insecure-simulation`` evidence: the whole protocol where there is no TEE (spec/attestation.md, section 6).

It protects nothing from the machine it runs on, and says so in the signed bytes.
"""

from cloister.attest.simulation.parse import SimulatedToken, parse
from cloister.attest.simulation.produce import produce
from cloister.attest.simulation.verify import verify

__all__ = ["SimulatedToken", "parse", "produce", "verify"]
