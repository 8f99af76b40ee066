"""Grants, consents and the decision about a key. Pure."""
