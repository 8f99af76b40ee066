"""Devices of TEEs: obtain evidence and sealing keys inside the guest."""
