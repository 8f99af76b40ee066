"""The Platform port over instances that somebody else starts and ends: compose files, service managers, people.

To start one is to take an address that answers and that nobody uses; to stop one is to let it finish and give the
address back. What is taken for whom is written down in the state folder, for the next driver. An instance that stops
listening, or whose name leads elsewhere, is :class:`Leaving`: that is how one looks that was told to end. One that
gives no answer at all, several times in a row, is gone. An address that was given back is not empty: its runtime keeps
models and keys until it needs the room, which its own isolation level governs (docs/adr/0014).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.adapters.http.origin import parse_origin
from cloister.adapters.logs import EventLog
from cloister.base.errors import CloisterError, Unavailable
from cloister.platforms.port import Event, Gone, Leaving, Ready, Running
from cloister.platforms.records import lock
from cloister.platforms.static.roster import Roster, Sight
from cloister.platforms.static.settings import StaticSettings

RECORD: Final = "taken.json"
MIN_REST_S: Final = 0.05  # between two rounds, however long one took
IDLE_POLL_S: Final = 0.2  # how often an instance that is let go is asked whether it is idle


@dataclass(slots=True)
class _Claim:
    """An instance of ours. ``origin`` is empty while it waits for an address until ``patience_ends``."""

    instance: str
    group: str
    origin: str = ""
    ready: bool = False
    stopping: bool = False
    patience_ends: float = 0.0
    leaving_since: float | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class StaticPlatform:
    """See the module.

    :param folder: of this gateway alone; what is taken is written there. :param start_timeout_s: how long an instance
        waits for an address that answers. :param stop_grace_s: how long one that is stopped, or leaves, may take.
    """

    def __init__(
        self,
        folder: Path,
        settings: StaticSettings,
        log: EventLog,
        *,
        start_timeout_s: float = 60.0,
        stop_grace_s: float = 20.0,
    ) -> None:
        self._folder = folder
        self._roster = Roster(settings, log)
        self._log = log
        self._start_timeout_s = start_timeout_s
        self._stop_grace_s = stop_grace_s
        self._claims: dict[str, _Claim] = {}
        self._last: dict[str, str] = {}  # origin -> what it was used for last; its models may still be there
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._lock = -1

    async def open(self) -> None:
        """Take over what the driver before had taken, and look at every address once.

        :raises Unavailable: ``platform-in-use``, ``platform-unavailable``.
        """
        if self._lock >= 0:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise Unavailable("platform-unavailable", f"cannot use {self._folder}: {error.strerror}") from error
        self._lock = lock(self._folder)
        for claim in _read(self._folder / RECORD):
            self._claims[claim.instance] = claim
        await self._roster.look(self._used())
        for claim in self._claims.values():
            seen = self._roster.get(claim.origin)
            claim.ready = seen is not None and seen.sight is Sight.READY  # told by `running`
        self._spawn(self._keep_looking())

    async def start(self, instance: str, group: str) -> None:
        """See the port. ``platform-full``: every address is taken, and no further one will come unless the platform is
        scaled. Prefers an address that did the same before."""
        await self.open()
        if instance in self._claims:
            return
        listed = len(self._roster.listed())
        taken = sum(not claim.stopping for claim in self._claims.values())
        if taken >= listed and not self._roster.settings.scaled:
            raise Unavailable(
                "platform-full",
                f"all {listed} addresses are taken" if listed else "there is no address",
                retry_after=self._roster.settings.poll_s,
                hint="Start more runtimes, or lower [pool] max_instances.",
            )
        now = asyncio.get_running_loop().time()
        claim = self._claims[instance] = _Claim(instance, group, patience_ends=now + self._start_timeout_s)
        self._assign(claim)

    async def stop(self, instance: str) -> None:
        """See the port: its process goes on."""
        claim = self._claims.get(instance)
        if claim is None or claim.stopping:
            return
        claim.stopping = True
        self._spawn(self._let_go(claim))

    async def running(self) -> tuple[Running, ...]:
        """See the port."""
        await self.open()
        return tuple(
            Running(claim.instance, claim.group, claim.origin, claim.ready, _host(claim.origin))
            for claim in self._claims.values()
            if not claim.stopping
        )

    async def events(self) -> AsyncIterator[Event]:
        """See the port."""
        while True:
            yield await self._events.get()

    async def stop_all(self) -> None:
        """See the port."""
        await self.open()
        claims = list(self._claims.values())
        for claim in claims:
            await self.stop(claim.instance)
        for claim in claims:
            await claim.gone.wait()

    async def close(self) -> None:
        """See the port."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._roster.close()
        self._claims.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def reconfigure(self, settings: StaticSettings) -> None:
        """Other addresses: new ones may be taken at once; instances on those that are gone finish and leave."""
        self._roster.settings = settings
        self._wake.set()

    # --- what is seen of them ---

    async def _keep_looking(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            left = max(MIN_REST_S, began + self._roster.settings.poll_s - loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
            self._wake.clear()
            began = loop.time()
            try:
                await self._roster.look(self._used())
                self._follow()
            except Exception as error:  # noqa: BLE001  # a round that fails is logged, and the next one comes
                self._log.event("internal-error", level="error", error=type(error).__name__, where="static")

    def _follow(self) -> None:
        """Tell what became of each instance, and give those that wait an address."""
        now = asyncio.get_running_loop().time()
        self._last = {origin: group for origin, group in self._last.items() if self._roster.get(origin) is not None}
        for claim in tuple(self._claims.values()):
            if claim.stopping:
                continue
            if claim.origin:
                self._look_after(claim, now)
            elif not self._assign(claim) and now >= claim.patience_ends:
                self._end(claim, "no address answered in time")

    def _look_after(self, claim: _Claim, now: float) -> None:
        seen = self._roster.get(claim.origin)
        if seen is None or seen.sight is None:
            return
        if seen.silent >= self._roster.settings.failures:
            self._end(claim, f"died: {claim.origin} does not answer")
        elif seen.sight is Sight.REFUSED or not seen.listed:
            reason = "does not listen any more" if seen.listed else "is listed no more"
            if claim.leaving_since is None:
                claim.leaving_since = now
                self._events.put_nowait(Leaving(claim.instance, f"{claim.origin} {reason}"))
            elif now - claim.leaving_since >= self._stop_grace_s:
                self._end(claim, f"died: {claim.origin} {reason}")
        elif not claim.ready and seen.sight is Sight.READY:
            self._come_up(claim)

    def _come_up(self, claim: _Claim) -> None:
        claim.ready = True
        self._events.put_nowait(Ready(claim.instance, claim.group, claim.origin, _host(claim.origin)))

    # --- taking and giving back ---

    def _used(self) -> set[str]:
        return {claim.origin for claim in self._claims.values() if claim.origin}

    def _assign(self, claim: _Claim) -> bool:
        """Take a free address that answers, if there is one."""
        used = self._used()
        free = [seen.origin for seen in self._roster.listed() if seen.sight is Sight.READY and seen.origin not in used]
        if not free:
            return False
        known = [origin for origin in free if self._last.get(origin) == claim.group]
        untouched = [origin for origin in free if origin not in self._last]
        claim.origin = (known or untouched or free)[0]
        self._last[claim.origin] = claim.group
        self._write()
        self._come_up(claim)
        return True

    async def _let_go(self, claim: _Claim) -> None:
        """Once it is idle, or its time is over."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._stop_grace_s
        while claim.origin and not await self._roster.idle(claim.origin):
            if loop.time() >= end:
                break
            await asyncio.sleep(IDLE_POLL_S)
        self._end(claim, "stopped: its address may be taken again")
        self._follow()  # somebody may wait for it

    def _end(self, claim: _Claim, reason: str) -> None:
        if self._claims.get(claim.instance) is claim:
            del self._claims[claim.instance]
            self._write()
            claim.gone.set()
            self._events.put_nowait(Gone(claim.instance, reason))

    def _write(self) -> None:
        """What is taken now. A folder that cannot be written loses the next driver's knowledge, nothing else."""
        taken = {c.instance: {"group": c.group, "address": c.origin} for c in self._claims.values() if c.origin}
        target = self._folder / RECORD
        try:
            temporary = target.with_suffix(".new")
            temporary.write_text(json.dumps(taken))
            temporary.replace(target)
        except OSError as error:
            self._log.event("state-unavailable", level="error", error=type(error).__name__, path=str(target))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _read(file: Path) -> list[_Claim]:
    """What the driver before had taken; nothing where that cannot be read."""
    try:
        taken = json.loads(file.read_text())
        return [
            _Claim(str(name), str(entry["group"]), str(parse_origin(entry["address"]))) for name, entry in taken.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CloisterError):
        return []


def _host(origin: str) -> str:
    return parse_origin(origin).host if origin else ""
