"""Remote attestation: parse, verify, appraise. Pure functions of bytes, policy and time."""
