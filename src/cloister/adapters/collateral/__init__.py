"""Collateral sources: a directory, a bundle file, Intel PCS or PCCS, AMD KDS, a cache before them (spec section 8)."""
