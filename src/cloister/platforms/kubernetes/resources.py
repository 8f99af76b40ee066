"""What the drivers ask the API for: paths, verbs, and what it answers to bad questions. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable

MAX_TEXT: Final = 300
THROTTLED_S: Final = 1.0
RETRY_S: Final = 1.0
_SECONDS: Final = re.compile(r"[0-9]{1,4}")
# What an admission plugin says when a namespace's quota is used up; it has no status of its own.
_QUOTA: Final = "exceeded quota"


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource of the API, or a subresource of one."""

    group: str
    version: str
    plural: str
    subresource: str = ""

    @property
    def rule(self) -> str:
        """As a Role names it."""
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural

    def path(self, namespace: str, name: str = "") -> str:
        """Of one object, or of all in a namespace."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        words = [root, "namespaces", namespace, self.plural, name, self.subresource]
        return "/".join(word for word in words if word)


PODS: Final = Resource("", "v1", "pods")
SCALE: Final = Resource("apps", "v1", "deployments", "scale")
SERVICES: Final = Resource("serving.knative.dev", "v1", "services")


class Expired(Exception):
    """The version to watch from is older than what the API remembers (410 Gone): list anew."""


@dataclass(frozen=True, slots=True)
class Told:
    """A ``Status`` that the API answered instead of an object.

    :param retry_after: seconds, from the header or the status itself.
    """

    code: int
    reason: str
    message: str
    retry_after: float | None = None

    @classmethod
    def read(cls, code: int, body: bytes, retry_after: str | None = None) -> Told:
        """Whatever the body is: proxies and dying servers answer without a ``Status``."""
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        told = cls.of(value if isinstance(value, dict) else {}, code)
        if retry_after is not None and _SECONDS.fullmatch(retry_after):
            return cls(told.code, told.reason, told.message, float(retry_after))
        return told

    @classmethod
    def of(cls, status: Mapping[str, Any], code: int = 0) -> Told:
        """From a ``Status`` object, as a watch has it in an ERROR event."""
        given, reason, message = status.get("code"), status.get("reason"), status.get("message")
        details = status.get("details")
        after = details.get("retryAfterSeconds") if isinstance(details, dict) else None
        return cls(
            code or (given if isinstance(given, int) else 0),
            reason if isinstance(reason, str) else "",
            printable(message),
            float(after) if isinstance(after, int) and 0 < after < 10_000 else None,
        )

    def error(self, verb: str, resource: Resource, namespace: str, name: str) -> CloisterError | Expired:
        """What this means for whoever asked."""
        what = f"{resource.rule} in namespace {namespace}"
        said = f"the Kubernetes API answers {self.code} to {verb} {what}" + (
            f": {self.message}" if self.message else ""
        )
        match self.code:
            case 401:
                return Refused(
                    "platform-refused",
                    said,
                    hint="It does not know this gateway: check its service account's token, or the kubeconfig.",
                )
            case 403 if _QUOTA in self.message:
                return Unavailable("platform-full", said, retry_after=5.0, hint="The namespace's quota is used up.")
            case 403:
                group = f" (API group {resource.group})" if resource.group else ""
                return Refused(
                    "platform-refused",
                    said,
                    hint=f"Grant the gateway's service account the verb {verb} on {resource.rule}{group}: "
                    f"kubectl auth can-i {verb} {resource.rule} -n {namespace}.",
                )
            case 404:
                return InvalidInput(
                    "platform-object-missing",
                    f"namespace {namespace} has no {name or resource.rule}: {self.message or 'not found'}",
                    hint="Check the names in [platform], and that what the chart installs is there.",
                )
            case 410 if verb in ("list", "watch"):
                return Expired(self.message)
            case 409:  # several writers at a time; the API has tried some times already
                return Unavailable("platform-unavailable", said, retry_after=self.retry_after or 0.1)
            case 400 | 405 | 413 | 415 | 422:
                return InvalidInput("platform-limit", said, hint="Check [platform] against what the cluster admits.")
            case 429:
                return Unavailable(
                    "platform-throttled",
                    said,
                    retry_after=self.retry_after or THROTTLED_S,
                    hint="The API server sheds load; kubectl get --raw /debug/api_priority_and_fairness/ says whose.",
                )
            case _:
                return Unavailable("platform-unavailable", said, retry_after=self.retry_after or RETRY_S)


def printable(text: object) -> str:
    """Somebody else's words, short and on one line; empty if they are none."""
    if not isinstance(text, str):
        return ""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT]).strip()
