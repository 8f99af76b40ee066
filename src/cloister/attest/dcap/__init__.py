"""Intel DCAP evidence: SGX and TDX quotes (spec/attestation.md, section 3). Parse, collateral, verify."""
