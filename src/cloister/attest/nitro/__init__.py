"""AWS Nitro Enclaves attestation documents (spec/attestation.md, section 5)."""
