"""How Knative Services are made, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloister.platforms.kubernetes.settings import Cluster


@dataclass(frozen=True, slots=True)
class KnativeSettings:
    """Of one gateway.

    :param deployment: begins the names of its Services; no other gateway in the namespace may use the same one.
    :param manifest: a Service as it would be applied, to which names, labels and scale are added.
    :param start_timeout_s: until a Service must be ready.
    :param stop_grace_s: for requests that are under way, before the Service is deleted.
    """

    deployment: str
    manifest: Mapping[str, Any] = field(repr=False)
    cluster: Cluster = field(default_factory=Cluster)
    start_timeout_s: float = 120.0
    stop_grace_s: float = 20.0
