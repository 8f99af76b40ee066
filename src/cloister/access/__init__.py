"""Who may use what: grants, consents, and the decision that releases a key."""
