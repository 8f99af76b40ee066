"""Cloister serves encrypted machine-learning models on infrastructure nobody has to trust."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
