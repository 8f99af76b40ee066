"""What a pod says of the instance in it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.platforms.kubernetes.resources import printable

INSTANCE: Final = "cloister.dev/instance"
STATE: Final = "cloister.dev/state"
GROUP: Final = "cloister.dev/group"
SERVING: Final = "serving"
DRAINING: Final = "draining"
COST: Final = "controller.kubernetes.io/pod-deletion-cost"
BOUND_COST: Final = "100"  # more than a pod that nobody asked for has
# Why a container waits, where waiting longer is known to be in vain or was already tried.
_HOPELESS: Final = frozenset({
    "CrashLoopBackOff", "CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull", "ImageInspectError",
    "ImagePullBackOff", "InvalidImageName", "PostStartHookError", "RunContainerError",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as far as it matters here.

    :param group: None where it is nobody's. :param address: origin of the runtime in it; empty while it has none.
    :param ended: why there is no runtime in it any more, or never will be; empty while there may be.
    :param waits: why it is not ready; empty when it is.
    :param leaving_s: how long it may take to go, from when it was asked to; None while it stays.
    """

    name: str
    uid: str
    instance: str
    group: str | None
    state: str
    address: str
    host: str
    ended: str
    waits: str
    leaving_s: float | None

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return not self.waits and not self.ended and self.leaving_s is None and bool(self.address)

    @classmethod
    def read(cls, value: Mapping[str, Any], container: str, port: int) -> Pod:
        """Whatever is missing counts as not there: a pod is seen in every stage of its making."""
        meta, spec, status = _map(value, "metadata"), _map(value, "spec"), _map(value, "status")
        labels, annotations = _map(meta, "labels"), _map(meta, "annotations")
        ip = str(status.get("podIP") or "")
        named = f"[{ip}]" if ":" in ip else ip
        leaving = meta.get("deletionGracePeriodSeconds", 30) if meta.get("deletionTimestamp") else None
        return cls(
            name=str(meta.get("name", "")),
            uid=str(meta.get("uid", "")),
            instance=str(labels.get(INSTANCE, "")),
            group=str(annotations[GROUP]) if GROUP in annotations else None,
            state=str(labels.get(STATE, "")),
            address=f"http://{named}:{port}" if ip else "",
            host=str(spec.get("nodeName") or ""),
            ended=_ended(status, container),
            waits=_waits(status, container),
            leaving_s=float(leaving) if isinstance(leaving, int | float) else None,
        )


def _ended(status: Mapping[str, Any], container: str) -> str:
    if status.get("phase") in ("Failed", "Succeeded"):
        words = (status.get("reason") or status["phase"], printable(status.get("message")))
        return "its pod ended: " + ": ".join(str(word) for word in words if word)
    for one in _list(status, "containerStatuses"):
        if one.get("name") != container:
            continue
        for state in (_map(one, "state"), _map(one, "lastState")):
            over = state.get("terminated")
            if isinstance(over, dict):
                return _said("its container ended", f"exit code {over.get('exitCode')}", _last_words(over))
        waiting = _map(_map(one, "state"), "waiting")
        if waiting.get("reason") in _HOPELESS:
            return _said("its container cannot run", "", waiting)
    return ""


def _waits(status: Mapping[str, Any], container: str) -> str:
    """Conditions and containers are made one after the other; the first that is wrong is why."""
    conditions = {str(one.get("type")): one for one in _list(status, "conditions")}
    if conditions.get("Ready", {}).get("status") == "True":
        return ""
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") != "True":
        return _said("its pod has no node", "", scheduled)
    for one in _list(status, "initContainerStatuses"):
        waiting = _map(_map(one, "state"), "waiting")
        if waiting.get("reason") in _HOPELESS:
            return _said(f"its init container {one.get('name')} cannot run", "", waiting)
    running = {str(one.get("name")): one for one in _list(status, "containerStatuses")}
    if container not in running:
        return f"its pod has no container {container!r}" if running else "its containers are not started yet"
    waiting = _map(_map(running[container], "state"), "waiting")
    if waiting:
        return _said("its container waits", "", waiting)
    return "its container runs, and its readiness probe (/readyz) does not answer 200"


def _last_words(over: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last line that a container wrote: what it ended of, where it says so."""
    message = over.get("message")
    lines = [line for line in message.splitlines() if line.strip()] if isinstance(message, str) else []
    return {**over, "message": lines[-1] if lines else ""}


def _said(what: str, more: str, state: Mapping[str, Any]) -> str:
    words = [what, more, printable(state.get("reason")), printable(state.get("message"))]
    return ": ".join(word for word in words if word)


def _map(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _list(value: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    found = value.get(name)
    return (one for one in found if isinstance(one, dict)) if isinstance(found, list) else iter(())
