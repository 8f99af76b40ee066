"""A witness: checks that logs of KeyServices only grow, and co-signs their heads (spec/protocol.md, 13.7 to 13.9)."""
