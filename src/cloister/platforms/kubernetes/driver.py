"""The Platform port on Kubernetes: an instance is a pod of the gateway's Deployment.

Two loops: a mirror of the pods (``mirror``), and one that settles the difference between them and what is wanted. Pods
that have to go are deleted, by name and uid; then the Deployment gets as many replicas as there are instances; then
pods that are nobody's become the instances that still have none. A pod is deleted before the number is lowered, so the
one too many is the replacement that has just been made for it: nobody's, pending, and by the rules of the ReplicaSet's
controller the first to go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.logs import EventLog
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.platforms.kubernetes.api import KubeApi, Object, malformed
from cloister.platforms.kubernetes.draining import GIVE_UP_S, drained
from cloister.platforms.kubernetes.mirror import Mirror
from cloister.platforms.kubernetes.pods import (
    BOUND_COST,
    COST,
    DRAINING,
    GROUP,
    INSTANCE,
    SERVING,
    STATE,
    Pod,
)
from cloister.platforms.kubernetes.resources import PODS, SCALE
from cloister.platforms.kubernetes.settings import KubernetesSettings
from cloister.platforms.kubernetes.settler import Ended, Settler
from cloister.platforms.port import Event, Gone, Leaving, Ready, Running

SPARE_S: Final = 10.0  # a pod that somebody deletes is replaced by the cluster; the replacement waits so long for a use
LEAVE_SLACK_S: Final = 30.0  # beyond a pod's grace period; then its node is taken to be gone
DELETED: Final = "somebody deleted its pod"
_NO_POD: Final = "the Deployment has made no pod yet: kubectl describe replicaset says why"


@dataclass(slots=True)
class _Place:
    """An instance. ``uid`` is of its pod, empty while it has none; ``labelled`` once the pod says so itself.

    ``stopping`` from when it takes no more requests; ``reason`` for that, where it was not this gateway's own.
    """

    instance: str
    group: str
    deadline: float
    pod: str = ""
    uid: str = ""
    labelled: bool = False
    address: str = ""
    host: str = ""
    ready: bool = False
    stopping: bool = False
    why: str = _NO_POD
    leave_by: float = 0.0
    leaving: bool = False
    reason: str = ""
    gone: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Doom:
    """A pod that has to go. ``asked_at`` is when the API last agreed."""

    name: str
    asked_at: float | None = None


class KubernetesPlatform:
    """See the module. One driver at a time for one Deployment; nothing but its name keeps two apart."""

    def __init__(self, settings: KubernetesSettings, log: EventLog) -> None:
        self.settings = settings
        self._log = log
        self._api = KubeApi(settings.cluster)
        self._asker = AsyncHttpClient()
        self._mirror: Mirror | None = None
        self._places: dict[str, _Place] = {}
        self._pods: dict[str, Pod] = {}
        self._doomed: dict[str, _Doom] = {}  # by uid
        self._ended = Ended()
        self._spare: list[float] = []  # until when pods are kept that replace what somebody else took away
        self._replicas = 0
        self._read_at = 0.0
        self._quiet = True  # until open() is through: what was there before is no event
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._empty = asyncio.Event()  # the Deployment has no pods
        self._settler = Settler(self._settle, self._next_at, log)

    async def open(self) -> None:
        """Find the Deployment, and take over its pods.

        :raises InvalidInput: ``kubernetes-missing``, ``kubeconfig-unreadable``, ``platform-object-missing``.
        :raises Refused: ``platform-refused``. :raises Unavailable: ``platform-unavailable``, ``platform-throttled``.
        """
        if self._mirror is not None:
            return
        await self._api.open()
        selector = await self._read_scale()
        mirror = Mirror(
            self._api,
            PODS,
            selector,
            changed=self._changed,
            removed=self._removed,
            poll_s=self.settings.cluster.poll_s,
            log=self._log,
        )
        self._empty.set()
        await mirror.fill()
        self._mirror = mirror
        self._quiet = False
        self._settler.wake()
        self._settler.keep(mirror.run)
        self._settler.keep(self._settler.run)

    async def start(self, instance: str, group: str) -> None:
        """See the port. When the API is away for the moment, it is asked again until ``start_timeout_s`` is over."""
        await self.open()
        if instance in self._places:
            return
        self._places[instance] = _Place(instance, group, self._now + self.settings.start_timeout_s)
        self._ended.discard(instance)
        if self._spare:
            self._spare.pop()
        try:
            async with self._settler.lock:
                await self._scale()
        except Unavailable as error:
            self._settler.complain(error)
        except CloisterError as error:
            self._places.pop(instance, None)
            raise Unavailable("platform-unavailable", error.message, hint=error.hint, retry_after=5.0) from error
        self._settler.wake()

    async def stop(self, instance: str) -> None:
        """See the port: requests that are under way end, then the pod is deleted and gets SIGTERM."""
        place = self._places.get(instance)
        if place is None or place.stopping:
            return
        self._halt(place)
        if not place.uid:
            self._finish(place, "stopped")
        elif place.ready:
            self._settler.spawn(self._drain(place))
        else:
            self._doom(place.uid, place.pod)

    async def running(self) -> tuple[Running, ...]:
        """See the port. As last heard of the API; while it is away, what it said is all there is."""
        await self.open()
        return tuple(
            Running(p.instance, p.group, p.address, p.ready, p.host)
            for p in self._places.values()
            if not p.stopping or p.reason
        )

    async def events(self) -> AsyncIterator[Event]:
        """See the port."""
        while True:
            yield await self._events.get()

    async def close(self) -> None:
        """See the port."""
        await self._settler.close()
        await self._asker.close()
        await self._api.close()

    async def stop_all(self) -> None:
        """Stop every instance, wait until its pod is gone, and leave the Deployment without replicas."""
        await self.open()
        places = list(self._places.values())
        for place in places:
            await self.stop(place.instance)
        for place in places:
            await place.gone.wait()
        self._spare.clear()
        async with self._settler.lock:
            await self._scale()
        with contextlib.suppress(TimeoutError):  # those that were nobody's, too
            async with asyncio.timeout(self.settings.stop_grace_s + GIVE_UP_S):
                await self._empty.wait()

    # --- what the API says ---

    async def _read_scale(self) -> str:
        """The Deployment's number of replicas, and the selector of its pods."""
        scale = await self._api.get(SCALE, self.settings.deployment)
        status = scale.get("status")
        selector = status.get("selector") if isinstance(status, dict) else None
        if not isinstance(selector, str) or not selector:  # it would be every pod of the namespace
            raise InvalidInput("platform-limit", f"the Deployment {self.settings.deployment} has no selector")
        self._replicas = _replicas(scale)
        self._read_at = self._now
        return selector

    def _changed(self, one: Object) -> None:
        pod = Pod.read(one, self.settings.container, self.settings.port)
        self._pods[pod.name] = pod
        self._empty.clear()
        self._settler.wake()
        if pod.uid in self._doomed and self._of(pod) is None:
            return
        place = self._of(pod)
        if place is None and pod.instance:
            place = self._claimed(pod)
        if place is not None:
            self._seen(place, pod)

    def _removed(self, one: Object) -> None:
        pod = Pod.read(one, self.settings.container, self.settings.port)
        self._pods.pop(pod.name, None)
        if not self._pods:
            self._empty.set()
        self._doomed.pop(pod.uid, None)
        self._settler.wake()
        place = self._of(pod)
        if place is None:
            return
        if place.stopping:
            self._finish(place, place.reason or "stopped")
        elif place.ready:
            self._lose(place, f"died: {pod.ended or DELETED}")
        else:
            self._unbind(place)

    def _of(self, pod: Pod) -> _Place | None:
        return next((place for place in self._places.values() if place.uid == pod.uid), None)

    def _claimed(self, pod: Pod) -> _Place | None:
        """A pod that says which instance it is, and is not known as that: an earlier gateway's, or one whose label was
        written although nobody heard of it."""
        place = self._places.get(pod.instance)
        if pod.leaving_s is not None or pod.ended or pod.instance in self._ended:
            self._doom(pod.uid, pod.name)
            return None
        if place is None:
            place = self._places[pod.instance] = _Place(
                pod.instance, pod.group or "", self._now + self.settings.start_timeout_s
            )
        elif place.uid:  # one id, two pods
            self._doom(pod.uid, pod.name)
            return None
        place.uid, place.pod, place.labelled = pod.uid, pod.name, True
        if pod.state == DRAINING and not place.stopping:
            self._halt(place)
            self._doom(pod.uid, pod.name)
        return place

    def _seen(self, place: _Place, pod: Pod) -> None:
        place.address, place.host = pod.address, pod.host
        if place.stopping:
            if pod.leaving_s is not None and not place.leaving:
                self._halt(place, place.reason, pod.leaving_s)
            return
        if pod.ended:
            self._lose(place, f"{'died' if place.ready else 'did not start'}: {pod.ended}")
        elif pod.leaving_s is not None:
            if place.ready:
                self._halt(place, f"died: {DELETED}", pod.leaving_s)
                self._spare.append(self._now + SPARE_S)
                self._events.put_nowait(Leaving(place.instance, DELETED))
            else:
                self._unbind(place)
        elif not pod.ready:
            place.why = pod.waits or "its pod has no address"
        elif place.labelled and not place.ready:
            place.ready = True
            if not self._quiet:
                self._events.put_nowait(Ready(place.instance, place.group, place.address, place.host))

    # --- an instance's end ---

    def _halt(self, place: _Place, reason: str = "", leaving_s: float | None = None) -> None:
        """It takes no more requests. ``leaving_s``: its pod has been told to end, and has so long for it."""
        place.stopping, place.reason = True, reason
        if leaving_s is None:
            place.leave_by = self._now + self.settings.stop_grace_s + GIVE_UP_S
            return
        place.leaving, place.leave_by = True, self._now + leaving_s + LEAVE_SLACK_S
        self._doomed.setdefault(place.uid, _Doom(place.pod)).asked_at = self._now
        self._settler.wake()

    def _finish(self, place: _Place, reason: str) -> None:
        """It is no instance any more, which is told once."""
        if place.gone.is_set():
            return
        self._places.pop(place.instance, None)
        self._ended.add(place.instance)
        place.gone.set()
        self._events.put_nowait(Gone(place.instance, reason))
        self._settler.wake()

    def _lose(self, place: _Place, reason: str) -> None:
        """Nobody asked for its end; what is left of its pod goes too."""
        if place.uid:
            self._doom(place.uid, place.pod)
        self._finish(place, reason)

    def _unbind(self, place: _Place) -> None:
        """Its pod went before it was ready, in place of another one too many; the next pod is its own."""
        place.pod = place.uid = place.address = place.host = ""
        place.labelled = False
        place.why = _NO_POD

    def _doom(self, uid: str, name: str) -> None:
        known = self._pods.get(name)
        if known is not None and known.uid == uid:
            self._doomed.setdefault(uid, _Doom(name))
        self._settler.wake()

    async def _drain(self, place: _Place) -> None:
        """Out of every Service's endpoints, then wait until it is idle: SIGTERM finds nothing under way."""
        with contextlib.suppress(CloisterError):  # it is for others; this gateway sends nothing there any more
            await self._api.patch(PODS, place.pod, {"metadata": {"uid": place.uid, "labels": {STATE: DRAINING}}})
        await drained(self._asker, place.address, self.settings.stop_grace_s, place.gone)
        if not place.gone.is_set():
            self._doom(place.uid, place.pod)

    # --- settling ---

    def _next_at(self) -> float:
        """When somebody's time is over, or the Deployment is looked at again."""
        times = [self._read_at + self.settings.cluster.poll_s, *self._spare]
        for place in self._places.values():
            if place.stopping:
                times.append(place.leave_by)
            elif not place.ready:
                times.append(place.deadline)
        return min(times)

    def _expire(self) -> None:
        self._spare = [until for until in self._spare if until > self._now]
        for place in tuple(self._places.values()):
            if place.stopping:
                if self._now >= place.leave_by:
                    who = "its node" if place.leaving else "the Kubernetes API"
                    told = place.reason or "stopped"
                    self._finish(place, f"{told}, as far as can be told: {who} does not confirm it")
            elif not place.ready and self._now >= place.deadline:
                self._lose(place, f"did not start in {self.settings.start_timeout_s:g} s: {place.why}")

    async def _settle(self) -> None:
        """One round. A step that fails keeps the others from nothing; the first error is raised at the end."""
        self._expire()
        failed: CloisterError | None = None
        for step in (self._look, self._delete, self._scale, self._bind):
            try:
                await step()
            except CloisterError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    async def _look(self) -> None:
        """Somebody else may have scaled the Deployment: a person once, an autoscaler or another gateway every time."""
        if self._now - self._read_at >= self.settings.cluster.poll_s:
            wanted = self._replicas
            await self._read_scale()
            if self._replicas != wanted:
                self._log.event(
                    "platform-contended",
                    level="warning",
                    count=self._replicas,
                    limit=wanted,
                    hint=f"Nobody but this gateway may set the replicas of {self.settings.deployment}.",
                )

    async def _delete(self) -> None:
        for uid, doom in tuple(self._doomed.items()):
            pod = self._pods.get(doom.name)
            if pod is None or pod.uid != uid:
                self._doomed.pop(uid, None)
            elif pod.leaving_s is not None:
                doom.asked_at = doom.asked_at or self._now
            elif doom.asked_at is None or self._now - doom.asked_at >= self.settings.cluster.poll_s:
                await self._api.delete(PODS, doom.name, uid=uid)  # False: it is gone already, as the mirror will tell
                doom.asked_at = self._now

    async def _scale(self) -> None:
        """As many replicas as there are instances, pods that nobody has deleted yet, and spare ones."""
        held = {uid for uid, doom in self._doomed.items() if doom.asked_at is None}
        held |= {place.uid for place in self._places.values() if place.uid and place.uid not in self._doomed}
        wanted = len(held) + len(self._spare) + sum(not place.uid for place in self._places.values())
        if wanted != self._replicas:
            scale = await self._api.patch(SCALE, self.settings.deployment, {"spec": {"replicas": wanted}})
            if _replicas(scale) != wanted:
                raise malformed("what it was asked for")
            self._replicas = wanted

    async def _bind(self) -> None:
        """Give instances without a pod one that is nobody's; ready ones first, as they are of no use otherwise."""
        taken = {place.uid for place in self._places.values()} | set(self._doomed)
        free = [
            pod for pod in self._pods.values() if not (pod.instance or pod.leaving_s is not None or pod.uid in taken)
        ]
        free.sort(key=lambda pod: (pod.ready, not pod.ended))  # taken from the end
        for place in tuple(self._places.values()):
            if not place.uid and free and not place.gone.is_set():
                pod = free.pop()
                place.uid, place.pod = pod.uid, pod.name
            if place.uid and not (place.labelled or place.stopping or place.gone.is_set()):
                await self._label(place)

    async def _label(self, place: _Place) -> None:
        uid = place.uid
        change = {
            "uid": uid,
            "labels": {INSTANCE: place.instance, STATE: SERVING},
            "annotations": {GROUP: place.group, COST: BOUND_COST},
        }
        try:
            made = await self._api.patch(PODS, place.pod, {"metadata": change})
            if Pod.read(made, self.settings.container, self.settings.port).instance != place.instance:
                raise malformed("what it was asked for")
        except InvalidInput as error:  # it went meanwhile
            if place.uid == uid:
                self._unbind(place)
            self._log.event("instance-not-bound", level="warning", instance=place.instance, code=error.code)
            return
        if place.uid != uid or place.gone.is_set():  # it ended while the API was asked
            return
        place.labelled = True
        pod = self._pods.get(place.pod)
        if pod is not None:
            self._seen(place, pod)

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _replicas(scale: Object) -> int:
    """What is asked for; the API leaves a zero out, and answers nothing of the kind where it is no Scale.

    :raises Unavailable: ``platform-unavailable``.
    """
    spec = scale.get("spec")
    wanted = spec.get("replicas", 0) if isinstance(spec, dict) else None
    if not isinstance(wanted, int):
        raise malformed("a Scale")
    return wanted
