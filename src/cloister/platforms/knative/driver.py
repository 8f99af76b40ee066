"""The Platform port on Knative: an instance is a Service, at one pod from its making to its deletion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.logs import EventLog
from cloister.base.errors import CloisterError, Unavailable
from cloister.platforms.knative.service import DEPLOYMENT, Service, make
from cloister.platforms.knative.settings import KnativeSettings
from cloister.platforms.kubernetes.api import KubeApi, Object
from cloister.platforms.kubernetes.draining import GIVE_UP_S, drained
from cloister.platforms.kubernetes.mirror import Mirror
from cloister.platforms.kubernetes.resources import SERVICES
from cloister.platforms.kubernetes.settler import Ended, Settler
from cloister.platforms.port import Event, Gone, Leaving, Ready, Running

UNSEEN_S: Final = (
    1.0  # a Service that was deleted before a watch told of it is asked for again, for none tells of its end
)
DELETED: Final = "somebody deleted its Service"


@dataclass(slots=True)
class _Place:
    """An instance. ``made`` once its Service is there; ``doomed`` once that has to go, and ``asked_at`` when
    the API last agreed to that.

    ``stopping`` from when it takes no more requests; ``reason`` for that, where it was not this gateway's own.
    """

    instance: str
    group: str
    deadline: float
    uid: str = ""
    address: str = ""
    made: bool = False
    ready: bool = False
    stopping: bool = False
    doomed: bool = False
    asked_at: float | None = None
    why: str = "its Service is not made yet"
    leave_by: float = 0.0
    reason: str = ""
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class KnativePlatform:
    """See the module. One driver at a time for one deployment; nothing but its name keeps two apart."""

    def __init__(self, settings: KnativeSettings, log: EventLog) -> None:
        self.settings = settings
        self._log = log
        self._api = KubeApi(settings.cluster)
        self._asker = AsyncHttpClient()
        self._mirror: Mirror | None = None
        self._places: dict[str, _Place] = {}
        self._left: dict[str, str] = {}  # uid to name: Services of instances that are none any more
        self._ended = Ended()
        self._quiet = True  # until open() is through: what was there before is no event
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._settler = Settler(self._settle, self._next_at, log)

    async def open(self) -> None:
        """Take over the deployment's Services.

        :raises InvalidInput: ``kubernetes-missing``, ``kubeconfig-unreadable``; ``platform-object-missing``: the
            cluster has no Knative Serving. :raises Refused: ``platform-refused``.
        :raises Unavailable: ``platform-unavailable``, ``platform-throttled``.
        """
        if self._mirror is not None:
            return
        await self._api.open()
        mirror = Mirror(
            self._api,
            SERVICES,
            f"{DEPLOYMENT}={self.settings.deployment}",
            changed=self._changed,
            removed=self._removed,
            poll_s=self.settings.cluster.poll_s,
            log=self._log,
        )
        await mirror.fill()
        self._mirror = mirror
        self._quiet = False
        self._settler.keep(mirror.run)
        self._settler.keep(self._settler.run)

    async def start(self, instance: str, group: str) -> None:
        """See the port. When the API is away for the moment, it is asked again until ``start_timeout_s`` is over."""
        await self.open()
        if instance in self._places:
            return
        place = _Place(instance, group, self._now + self.settings.start_timeout_s)
        self._places[instance] = place
        self._ended.discard(instance)
        try:
            async with self._settler.lock:
                await self._make(place)
        except Unavailable as error:
            if error.code == "platform-full":
                self._places.pop(instance, None)
                raise
            self._settler.complain(error)
        except CloisterError as error:
            self._places.pop(instance, None)
            raise Unavailable("platform-unavailable", error.message, hint=error.hint, retry_after=5.0) from error
        self._settler.wake()

    async def stop(self, instance: str) -> None:
        """See the port: requests that are under way end, then the Service is deleted, and its pod gets SIGTERM."""
        place = self._places.get(instance)
        if place is None or place.stopping:
            return
        place.stopping = True
        place.leave_by = self._now + self.settings.stop_grace_s + GIVE_UP_S
        if place.ready:
            self._settler.spawn(self._drain(place))
        else:
            place.doomed = True
            self._settler.wake()

    async def running(self) -> tuple[Running, ...]:
        """See the port. As last heard of the API. Knative does not say where its pods run."""
        await self.open()
        return tuple(
            Running(p.instance, p.group, p.address, p.ready, p.address)
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
        """Stop every instance, and wait until its Service is gone with all that belongs to it."""
        await self.open()
        places = list(self._places.values())
        for place in places:
            await self.stop(place.instance)
        for place in places:
            await place.gone.wait()

    # --- what the API says ---

    def _changed(self, one: Object) -> None:
        service = Service.read(one)
        self._settler.wake()
        if not service.instance or service.uid in self._left:
            return
        place = self._places.get(service.instance)
        if place is None:
            if service.leaving:
                return
            if service.instance in self._ended:
                self._left[service.uid] = service.name
                return
            place = _Place(service.instance, service.group, self._now + self.settings.start_timeout_s)
            self._places[service.instance] = place
        elif place.uid != service.uid and (place.uid or service.leaving):
            return  # the one before, on its way out
        place.uid, place.made, place.address = service.uid, True, service.address
        if place.stopping:
            return
        if service.leaving and place.ready:
            self._leave(place)
        elif service.leaving:
            self._lose(place, f"did not start: {DELETED}")
        elif place.ready:
            return  # whether it answers now is for whoever asks it
        elif service.failed:
            self._lose(place, f"did not start: {service.failed}")
        elif service.waits:
            place.why = service.waits
        elif service.address:
            place.ready = True
            if not self._quiet:
                self._events.put_nowait(Ready(place.instance, place.group, place.address, place.address))

    def _removed(self, one: Object) -> None:
        service = Service.read(one)
        self._left.pop(service.uid, None)
        self._settler.wake()
        place = self._places.get(service.instance)
        if place is None:
            return
        if not place.uid:
            place.made = False  # what stood in the way is gone
        elif place.uid == service.uid:
            self._finish(place, place.reason or ("stopped" if place.stopping else f"died: {DELETED}"))

    # --- an instance's end ---

    def _finish(self, place: _Place, reason: str) -> None:
        """It is no instance any more, which is told once."""
        if place.gone.is_set():
            return
        self._places.pop(place.instance, None)
        self._ended.add(place.instance)
        place.gone.set()
        self._events.put_nowait(Gone(place.instance, reason))

    def _lose(self, place: _Place, reason: str) -> None:
        """Nobody asked for its end; what is left of its Service goes too."""
        if place.uid:
            self._left[place.uid] = self._name(place.instance)
        self._finish(place, reason)
        self._settler.wake()

    def _leave(self, place: _Place) -> None:
        """Somebody else stops it; it finishes what it has."""
        place.stopping, place.reason = True, f"died: {DELETED}"
        place.leave_by = self._now + self.settings.stop_grace_s + GIVE_UP_S
        self._events.put_nowait(Leaving(place.instance, DELETED))
        self._settler.wake()

    async def _drain(self, place: _Place) -> None:
        await drained(self._asker, place.address, self.settings.stop_grace_s, place.gone)
        place.doomed = True
        self._settler.wake()

    # --- settling ---

    def _next_at(self) -> float:
        """When somebody's time is over."""
        times = [self._now + self.settings.cluster.poll_s]
        for place in self._places.values():
            if place.stopping:
                times += [place.leave_by, self._ask_at(place)]
            elif not place.ready:
                times.append(place.deadline)
        return min(times)

    def _expire(self) -> None:
        for place in tuple(self._places.values()):
            if place.stopping:
                if self._now >= place.leave_by:
                    told = place.reason or "stopped"
                    self._lose(place, f"{told}, as far as can be told: its Service is still there")
            elif not place.ready and self._now >= place.deadline:
                self._lose(place, f"did not start in {self.settings.start_timeout_s:g} s: {place.why}")

    async def _settle(self) -> None:
        """What is wanted and not there is made; what is there and not wanted is deleted."""
        self._expire()
        failed: CloisterError | None = None
        for place in tuple(self._places.values()):
            try:
                if place.gone.is_set():
                    continue  # while the API was asked about another
                if place.doomed and self._now >= self._ask_at(place):
                    await self._end(place)
                elif not place.made and not place.stopping:
                    await self._make(place)
            except CloisterError as error:
                failed = failed or error
        for uid, name in tuple(self._left.items()):
            try:
                await self._api.delete(SERVICES, name, uid=uid, foreground=True)
                self._left.pop(uid, None)
            except CloisterError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    async def _make(self, place: _Place) -> None:
        settings = self.settings
        body = make(settings.manifest, self._name(place.instance), settings.deployment, place.instance, place.group)
        await self._api.create(SERVICES, body)  # False: an attempt of before has arrived after all
        place.made = True

    async def _end(self, place: _Place) -> None:
        there = await self._api.delete(SERVICES, self._name(place.instance), uid=place.uid, foreground=True)
        place.asked_at = self._now
        if not there:
            self._finish(place, place.reason or "stopped")

    def _ask_at(self, place: _Place) -> float:
        """When the API is to be told that a Service has to go, for the first time or again."""
        if not place.doomed or place.asked_at is None:
            return 0.0 if place.doomed else place.leave_by
        return place.asked_at + (self.settings.cluster.poll_s if place.uid else UNSEEN_S)

    def _name(self, instance: str) -> str:
        return f"{self.settings.deployment}-{instance}"

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()
