"""Packing: which instance serves which model. Pure policies behind one port."""
