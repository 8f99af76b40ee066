"""AWS Nitro Enclaves attestation documents (spec/attestation.md, section 5)."""

from cloister.attest.nitro.parse import parse
from cloister.attest.nitro.verify import verify

__all__ = ["parse", "verify"]
