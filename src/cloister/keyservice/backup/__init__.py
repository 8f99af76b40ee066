"""A KeyService's store in one file, and back (spec/protocol.md, clause 13.25)."""
