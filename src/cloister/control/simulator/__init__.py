"""Discrete-event simulation of a fleet, driven by the same dispatcher and policies as the gateway."""
