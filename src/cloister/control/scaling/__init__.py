"""Scaling: how many instances there are. Pure policies behind one port."""
