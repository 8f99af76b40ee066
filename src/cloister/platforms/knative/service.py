"""A Knative Service: made from the operator's manifest, and read for what it says of the instance in it. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.base.errors import InvalidInput
from cloister.platforms.kubernetes.pods import GROUP, INSTANCE
from cloister.platforms.kubernetes.resources import printable

DEPLOYMENT: Final = "cloister.dev/deployment"
VISIBILITY: Final = "networking.knative.dev/visibility"
ONE: Final = {"autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "1"}
API_VERSION: Final = "serving.knative.dev/v1"


@dataclass(frozen=True, slots=True)
class Service:
    """A Service as far as it matters here.

    :param address: origin inside the cluster; empty while it has none. :param failed: why it will not come up; empty
        while it may. :param waits: why it is not ready; empty when it is.
    """

    name: str
    uid: str
    instance: str
    group: str
    address: str
    failed: str
    waits: str
    leaving: bool

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Service:
        """Whatever is missing counts as not there."""
        meta, status = _map(value, "metadata"), _map(value, "status")
        labels, annotations = _map(meta, "labels"), _map(meta, "annotations")
        conditions = status.get("conditions")
        ready: Mapping[str, Any] = {}
        for one in conditions if isinstance(conditions, list) else []:
            if isinstance(one, dict) and one.get("type") == "Ready":
                ready = one
        # Of an earlier generation: it says nothing of what was asked for.
        stale = status.get("observedGeneration") != meta.get("generation")
        state = "Unknown" if stale else ready.get("status")
        # Route and Configuration are made at once and look for each other: what one misses is there a moment later.
        passing = str(ready.get("reason")).endswith("Missing")
        words = ": ".join(text for text in (printable(ready.get("reason")), printable(ready.get("message"))) if text)
        url = _map(status, "address").get("url") or status.get("url")
        return cls(
            name=str(meta.get("name", "")),
            uid=str(meta.get("uid", "")),
            instance=str(labels.get(INSTANCE, "")),
            group=str(annotations.get(GROUP, "")),
            address=url.rstrip("/") if isinstance(url, str) else "",
            failed=(words or "its Service is not ready") if state == "False" and not passing else "",
            waits="" if state == "True" else (words or "Knative has not looked at its Service yet"),
            leaving=bool(meta.get("deletionTimestamp")),
        )


def make(manifest: Mapping[str, Any], name: str, deployment: str, instance: str, group: str) -> dict[str, Any]:
    """The manifest as this instance's Service. What the operator wrote stays, but for what makes it this instance."""
    made = copy.deepcopy(dict(manifest))
    made.pop("status", None)
    meta = made["metadata"] = {
        "name": name,
        "labels": {VISIBILITY: "cluster-local", **_map(_map(manifest, "metadata"), "labels")},
        "annotations": dict(_map(_map(manifest, "metadata"), "annotations")),
    }
    meta["labels"].update({DEPLOYMENT: deployment, INSTANCE: instance})
    meta["annotations"].update({GROUP: group})
    template = made["spec"]["template"]
    given = template.get("metadata") or {}
    template["metadata"] = {**given, "annotations": {**_map(given, "annotations"), **ONE}}
    template["metadata"].pop("name", None)  # a revision's name cannot be had twice
    return made


def check(manifest: object, where: str) -> Mapping[str, Any]:
    """That it is a Service with a container.

    :raises InvalidInput: ``knative-manifest``.
    """
    value = manifest if isinstance(manifest, dict) else {}
    containers = _map(_map(_map(value, "spec"), "template"), "spec").get("containers")
    if (value.get("apiVersion"), value.get("kind")) != (API_VERSION, "Service") or not (
        isinstance(containers, list) and containers and isinstance(containers[0], dict) and containers[0].get("image")
    ):
        raise InvalidInput(
            "knative-manifest",
            f"{where} holds no Knative Service with a container",
            hint=f"It is one document in YAML: apiVersion {API_VERSION}, kind Service, spec.template.spec.containers.",
        )
    return value


def _map(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}
