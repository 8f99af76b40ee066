"""Who may do how much: token buckets, what statements cost, and what is refused (spec/protocol.md, 5.7)."""
