"""Balancing: which of several equally good instances gets the next request. Pure policies behind one port."""
