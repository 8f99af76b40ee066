"""Custodians, of whom k bring the KeyService back (spec/protocol.md, 13.24)."""
