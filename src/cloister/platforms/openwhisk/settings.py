"""How actions are made, and where the platform is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloister.base.limits import MIB

# The platform's rule for names (EntityName.scala), without blanks and signs that a URL would have to escape.
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class OpenWhiskSettings:
    """Of one deployment: all actions that one gateway makes.

    :param api: origin of the platform's API. :param auth: ``uuid:key`` of the namespace.
    :param namespace: ``_`` for that of the key. :param deployment: begins the names of its actions; no other gateway
        may use the same one.
    :param image: of the actions, with a tag other than ``latest``, which the platform would pull at each cold start.
    :param parameters: init parameters of each action (docs/how-to/openwhisk.md).
    :param memory_mb: of a container. :param timeout_s: of an activation. :param concurrency: activations at a time in
        one container.
    :param payloads: URL of the store for bodies that the platform does not carry; empty for none.
    :param carries: bytes of JSON the platform takes in a request and in a result.
    :param ca: file with the certificate of a platform that no public authority has certified; empty for the system's.
    """

    api: str
    auth: str = field(repr=False)
    image: str
    deployment: str = "cloister"
    namespace: str = "_"
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)
    memory_mb: int = 512
    timeout_s: float = 60.0
    logs_mb: int = 10
    concurrency: int = 1
    payloads: str = ""
    carries: int = MIB
    ca: str = ""
    start_timeout_s: float = 120.0
    stop_grace_s: float = 20.0
    poll_s: float = 10.0

    def action(self, instance: str) -> str:
        """The action's name."""
        return f"{self.deployment}-{instance}"

    def instance(self, action: str) -> str | None:
        """Which instance an action is, None if it is not of this deployment."""
        prefix = self.deployment + "-"
        return action[len(prefix) :] if action.startswith(prefix) and NAME.fullmatch(action) else None
