"""Cloister serves encrypted machine-learning models on infrastructure nobody has to trust.

``Client`` and ``AsyncClient`` are imported when first used: the trusted services never load the client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.client.asynchronous import AsyncClient as AsyncClient
    from cloister.client.client import Client as Client

__all__ = ["AsyncClient", "Client", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Client":
        from cloister.client.client import Client

        return Client
    if name == "AsyncClient":
        from cloister.client.asynchronous import AsyncClient

        return AsyncClient
    raise AttributeError(f"module 'cloister' has no attribute {name!r}")
