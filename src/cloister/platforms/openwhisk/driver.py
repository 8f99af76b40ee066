"""The Platform port on OpenWhisk: an instance is an action, its address a socket here with a bridge behind it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.server import HttpServer
from cloister.adapters.logs import EventLog
from cloister.adapters.payloads import HttpPayloadStore
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.platforms.openwhisk.bridge import MAX_BODY, Bridge
from cloister.platforms.openwhisk.rest import OpenWhiskApi
from cloister.platforms.openwhisk.settings import OpenWhiskSettings
from cloister.platforms.port import Event, Gone, Ready, Running

if TYPE_CHECKING:
    import ssl

DEPLOYMENT: Final = "cloister-deployment"
GROUP: Final = "cloister-group"
# Init parameters that an action gets from the gateway's settings, where its own parameters do not say otherwise.
PAYLOADS: Final = "CLOISTER_PAYLOADS"
RESULT_LIMIT: Final = "CLOISTER_MAX_RESULT"
RETRY_S: Final = 0.5  # between two attempts to start an action's first container
SLOW_RETRY_S: Final = 5.0
MAX_FAILURES: Final = 3  # containers that could not be initialised; whoever wants an instance may begin anew


@dataclass(slots=True)
class _Place:
    instance: str
    group: str
    bridge: Bridge
    server: HttpServer
    ready: bool = False
    stopping: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class OpenWhiskPlatform:
    """See the module. One driver at a time for one deployment; nothing but its name keeps two apart."""

    def __init__(
        self, settings: OpenWhiskSettings, log: EventLog, *, api_client: AsyncHttpClient | None = None
    ) -> None:
        """:raises InvalidInput: ``tls-certificate``, ``payload-url-malformed``."""
        self.settings = settings
        self._log = log
        self._client = api_client or AsyncHttpClient(tls=_roots(settings.ca))
        self._api = OpenWhiskApi(self._client, settings.api, settings.auth, settings.namespace)
        self._store = HttpPayloadStore(self._client, settings.payloads) if settings.payloads else None
        self._folder: Path | None = None
        self._places: dict[str, _Place] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0

    async def open(self) -> None:
        """Check the namespace's limits, and take over the deployment's actions.

        :raises InvalidInput: ``platform-limit``: the settings ask for more than the namespace has.
        :raises Refused: ``platform-refused``. :raises Unavailable: ``platform-unavailable``.
        """
        if self._folder is not None:
            return
        check_limits(self.settings, await self._api.limits())
        self._folder = Path(tempfile.mkdtemp(prefix="cloister-ow-"))
        await self._recount()
        self._spawn(self._keep_counting())

    async def start(self, instance: str, group: str) -> None:
        """See the port. The action's first container is started by an activation that asks whether it is ready."""
        await self.open()
        if instance in self._places:
            return
        place = await self._place(instance, group)
        try:
            await self._api.put(self.settings.action(instance), self._action(group))
        except BaseException as error:
            await self._forget(place)
            if isinstance(error, CloisterError) and not isinstance(error, Unavailable):
                raise Unavailable("platform-unavailable", error.message, hint=error.hint, retry_after=5.0) from error
            raise
        self._spawn(self._wait_ready(place))

    async def stop(self, instance: str) -> None:
        """See the port: activations that are under way end, then the action is deleted."""
        place = self._places.get(instance)
        if place is None or place.stopping:
            return
        place.stopping = True
        self._spawn(self._end(place, "stopped", self.settings.stop_grace_s))

    async def running(self) -> tuple[Running, ...]:
        """See the port. Asks the platform."""
        await self.open()
        await self._recount()
        return tuple(
            Running(p.instance, p.group, p.server.address, p.ready, self._host)
            for p in self._places.values()
            if not p.stopping
        )

    async def events(self) -> AsyncIterator[Event]:
        """See the port."""
        while True:
            yield await self._events.get()

    async def close(self) -> None:
        """See the port."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for place in self._places.values():
            await place.server.close()
            await place.bridge.close()
        self._places.clear()
        await self._client.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def stop_all(self) -> None:
        """Stop every instance and wait until its action is deleted."""
        await self.open()
        places = list(self._places.values())
        for place in places:
            await self.stop(place.instance)
        for place in places:
            await place.gone.wait()

    @property
    def _host(self) -> str:
        return self.settings.api  # OpenWhisk does not say where its containers run

    # --- an action's life ---

    def _action(self, group: str) -> Mapping[str, object]:
        settings = self.settings
        limits: dict[str, object] = {
            "memory": settings.memory_mb,
            "timeout": round(settings.timeout_s * 1000),
            "logs": settings.logs_mb,
        }
        if settings.concurrency > 1:
            limits["concurrency"] = settings.concurrency
        parameters = {RESULT_LIMIT: str(settings.carries), **settings.parameters}
        if settings.payloads:
            parameters.setdefault(PAYLOADS, settings.payloads)
        return {
            "exec": {"kind": "blackbox", "image": settings.image, "code": "", "binary": False},
            "annotations": [
                {"key": DEPLOYMENT, "value": settings.deployment},
                {"key": GROUP, "value": group},
                {"key": "provide-api-key", "value": False},  # an action needs no key of the namespace
            ],
            "parameters": [{"key": key, "value": value, "init": True} for key, value in sorted(parameters.items())],
            "limits": limits,
        }

    async def _place(self, instance: str, group: str) -> _Place:
        assert self._folder is not None  # noqa: S101
        settings = self.settings
        bridge = Bridge(
            self._api,
            settings.action(instance),
            store=self._store,
            carries=settings.carries,
            timeout_s=settings.timeout_s,
        )
        server = HttpServer(bridge, log=self._log, limits=ServerLimits(max_body=MAX_BODY))
        place = self._places[instance] = _Place(instance, group, bridge, server)
        self._count += 1
        try:
            await server.start(path=self._folder / f"{self._count}")
        except CloisterError as error:
            del self._places[instance]
            raise Unavailable("platform-unavailable", error.message, retry_after=1.0) from error
        return place

    async def _wait_ready(self, place: _Place) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.settings.start_timeout_s
        wait, failures = RETRY_S, 0
        while self._wanted(place):
            try:
                await place.bridge.probe(max(1.0, end - loop.time()))
            except CloisterError as error:
                if not self._wanted(place):
                    return
                failures += error.code == "activation-failed"
                if loop.time() + wait > end or failures == MAX_FAILURES:
                    place.stopping = True
                    await self._end(place, f"did not start: {error}", 0.0)
                    return
                self._log.event("instance-not-ready", level="warning", instance=place.instance, error=str(error))
                if isinstance(error, Unavailable) and error.retry_after is not None:
                    wait = max(wait, min(error.retry_after, SLOW_RETRY_S))
                await asyncio.sleep(wait)
                wait = min(SLOW_RETRY_S, wait * 2)
            else:
                if self._wanted(place):
                    place.ready = True
                    self._events.put_nowait(Ready(place.instance, place.group, place.server.address, self._host))
                return

    def _wanted(self, place: _Place) -> bool:
        return self._places.get(place.instance) is place and not place.stopping

    async def _end(self, place: _Place, reason: str, grace_s: float) -> None:
        await place.server.drain(grace_s)
        try:
            await self._api.delete(self.settings.action(place.instance))
        except CloisterError as error:
            self._log.event("instance-not-stopped", level="error", instance=place.instance, code=error.code)
            reason = f"{reason}; its action could not be deleted: {error.code}"
        await self._forget(place)
        self._events.put_nowait(Gone(place.instance, reason))

    async def _forget(self, place: _Place) -> None:
        self._places.pop(place.instance, None)
        await place.server.close()
        await place.bridge.close()
        place.gone.set()

    # --- what the platform says ---

    async def _recount(self) -> None:
        """Take over actions that are not known here, and report those that somebody else deleted."""
        known = set(self._places)
        there: dict[str, str] = {}
        for action in await self._api.actions():
            instance = self.settings.instance(action.name)
            if instance is not None and action.annotations.get(DEPLOYMENT) == self.settings.deployment:
                there[instance] = action.annotations.get(GROUP, "")
        for instance in known - set(there):
            place = self._places.get(instance)
            if place is not None and place.ready and not place.stopping:
                await self._forget(place)
                self._events.put_nowait(Gone(instance, "died: somebody deleted its action"))
        for instance, group in there.items():
            if instance not in self._places and instance not in known:
                self._spawn(self._wait_ready(await self._place(instance, group)))

    async def _keep_counting(self) -> None:
        while True:
            await asyncio.sleep(self.settings.poll_s)
            try:
                await self._recount()
            except CloisterError as error:
                self._log.event("platform-silent", level="warning", code=error.code)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def check_limits(settings: OpenWhiskSettings, limits: Mapping[str, object]) -> None:
    """:raises InvalidInput: ``platform-limit``, naming the setting."""
    for name, wanted, what in (
        ("memory_mb", settings.memory_mb, "Memory"),
        ("timeout_s", settings.timeout_s * 1000, "Timeout"),
        ("logs_mb", settings.logs_mb, "Logs"),
        ("concurrency", settings.concurrency, "Concurrency"),
    ):
        low, high = limits.get(f"minAction{what}"), limits.get(f"maxAction{what}")
        if (isinstance(low, int) and wanted < low) or (isinstance(high, int) and wanted > high):
            raise InvalidInput(
                "platform-limit",
                f"{name} asks for {wanted:g}, the namespace's limits are {low} to {high}",
                hint=f"Change [platform.openwhisk] {name}, or have the limit raised.",
            )


def _roots(file: str) -> ssl.SSLContext | None:
    if not file:
        return None
    import ssl

    try:
        return ssl.create_default_context(cafile=file)
    except (OSError, ValueError) as error:
        raise InvalidInput("tls-certificate", f"{file} holds no certificate") from error
