"""The append-only log: entries, Merkle tree, receipts, consistency. Pure."""
