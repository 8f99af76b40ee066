"""Drivers that start, stop and reach runtime instances, behind one port."""
