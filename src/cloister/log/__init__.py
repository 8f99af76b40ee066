"""The append-only Merkle log: tree heads, inclusion and consistency proofs."""
