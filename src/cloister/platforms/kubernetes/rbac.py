"""Every verb that the drivers use, as rules of a Role: what the chart grants, and what a test holds them to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a Role, in the gateway's own namespace.

    :param group: API group; empty for the core one. :param resource: with its subresource, if any.
    """

    group: str
    resource: str
    verbs: tuple[str, ...]


KUBERNETES: Final = (
    Rule("", "pods", ("list", "watch", "patch", "delete")),
    Rule("apps", "deployments/scale", ("get", "patch")),
)
KNATIVE: Final = (Rule("serving.knative.dev", "services", ("list", "watch", "create", "delete")),)
