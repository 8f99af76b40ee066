"""Untrusted control plane: packing, balancing, scaling (pure), the gateway, the simulator."""
