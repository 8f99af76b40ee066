"""A copy of all objects of one kind that match a selector: listed, then watched, then listed again.

What changed is told once and in order, whatever happens to the API meanwhile: a cut watch goes on from the version it
had seen; one that the API has forgotten (410 Gone), that is silent beyond its time, or that simply ended begins with a
new list, and the difference between the list and what was known is what happened.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from cloister.adapters.logs import EventLog
from cloister.base.errors import CloisterError, Unavailable
from cloister.platforms.kubernetes.api import KubeApi, Object, jittered
from cloister.platforms.kubernetes.resources import Expired, Resource

FIRST_WAIT_S: Final = 0.2  # after a failure; doubles with each one in a row
LAST_WAIT_S: Final = 15.0
LEAST_WATCH_S: Final = 1.0  # an API that ends watches sooner is asked no more often than this


class Mirror:
    """See the module. :meth:`fill` first; then :meth:`run` as a task.

    :param changed: an object is new, or other than it was. :param removed: it is gone; its last form.
    :param poll_s: how long a watch lasts.
    :ivar failing: why nothing is known of the present; None while it is.
    """

    def __init__(
        self,
        api: KubeApi,
        resource: Resource,
        selector: str,
        *,
        changed: Callable[[Object], None],
        removed: Callable[[Object], None],
        poll_s: float,
        log: EventLog,
    ) -> None:
        self._api = api
        self._resource = resource
        self._selector = selector
        self._changed = changed
        self._removed = removed
        self._poll_s = poll_s
        self._log = log
        self._objects: dict[str, Object] = {}
        self._version = ""
        self.failing: CloisterError | None = None

    async def fill(self) -> None:
        """List everything, and tell what is different.

        :raises CloisterError: as the API.
        """
        objects, version = await self._api.all_of(self._resource, self._selector)
        there = {_meta(one).get("name", ""): one for one in objects}
        for name in [name for name in self._objects if name not in there]:
            self._drop(name)
        for one in there.values():
            self._keep(one)
        self._version = version

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        wait = FIRST_WAIT_S
        while True:
            began = loop.time()
            try:
                if not self._version:
                    await self.fill()
                    self._well()
                await self._watch()
                self._version = ""
                wait = FIRST_WAIT_S
            except Expired:
                self._version = ""
            except Unavailable as error:
                if loop.time() - began > self._poll_s:  # silent, or as good as: nothing it says counts any more
                    self._version = ""
                wait = await self._rest(error, wait)
                continue
            except CloisterError as error:
                self._version = ""
                wait = await self._rest(error, wait)
                continue
            await asyncio.sleep(jittered(max(0.0, LEAST_WATCH_S - (loop.time() - began))))

    async def _watch(self) -> None:
        events = self._api.watch(self._resource, self._selector, self._version, self._poll_s)
        async with contextlib.aclosing(events):
            async for event in events:
                self._well()
                self._take(event)

    def _take(self, event: Object) -> None:
        one = event.get("object")
        if not isinstance(one, dict):
            raise Unavailable("platform-unavailable", "the Kubernetes API sent an event without an object")
        meta = _meta(one)
        match event.get("type"):
            case "ADDED" | "MODIFIED":
                self._keep(one)
            case "DELETED":
                known = self._objects.get(meta.get("name", ""))
                if known is not None and _meta(known).get("uid") == meta.get("uid"):
                    self._objects[meta["name"]] = one
                    self._drop(meta["name"])
            case _:
                pass  # a bookmark, which is only a version
        version = meta.get("resourceVersion")
        if isinstance(version, str) and version:
            self._version = version

    async def _rest(self, error: CloisterError, wait: float) -> float:
        """After a failure; returns how long to rest after the next one."""
        if self.failing is None:
            self._log.event("platform-silent", level="warning", code=error.code, error=error.message)
        self.failing = error
        after = error.retry_after if isinstance(error, Unavailable) else None
        await asyncio.sleep(jittered(max(wait, min(after or 0.0, LAST_WAIT_S))))
        return min(LAST_WAIT_S, wait * 2)

    def _well(self) -> None:
        if self.failing is not None:
            self._log.event("platform-back")
            self.failing = None

    def _keep(self, one: Object) -> None:
        meta = _meta(one)
        name = meta.get("name", "")
        known = self._objects.get(name)
        if known is not None:
            before = _meta(known)
            if before.get("uid") != meta.get("uid"):
                self._drop(name)
            elif before.get("resourceVersion") == meta.get("resourceVersion"):
                return
        self._objects[name] = one
        self._changed(one)

    def _drop(self, name: str) -> None:
        self._removed(self._objects.pop(name))


def _meta(one: Object) -> dict[str, Any]:
    found = one.get("metadata")
    return found if isinstance(found, dict) else {}
