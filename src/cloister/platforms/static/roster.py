"""Who is there: names are resolved, every address is asked whether it is ready, again and again."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from dataclasses import dataclass
from enum import Enum
from typing import Final

from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.limits import ClientLimits
from cloister.adapters.http.origin import Origin, parse_origin
from cloister.adapters.logs import EventLog
from cloister.base.errors import CloisterError
from cloister.platforms.static.settings import MAX_ADDRESSES, StaticSettings

ANSWER_S: Final = 2.0  # as long as the gateway's own probes wait
RESOLVE_S: Final = 5.0
ASKED_AT_ONCE: Final = 32
MAX_ANSWER: Final = 64 * 1024


class Sight(Enum):
    """What became of one question."""

    READY = "ready"
    UP = "up"  # it answers, but takes no requests now
    REFUSED = "refused"  # its machine is there and nobody listens: it has ended, or finishes what it has
    SILENT = "silent"


@dataclass(slots=True)
class Seen:
    """One address.

    :ivar sight: of the last question; None before the first. :ivar silent: questions in a row without any answer.
    :ivar listed: whether the configuration, or a name in it, still leads here.
    """

    origin: str
    sight: Sight | None = None
    silent: int = 0
    listed: bool = True


class Roster:
    """Belongs to one event loop. :meth:`close` it."""

    def __init__(self, settings: StaticSettings, log: EventLog) -> None:
        self.settings = settings
        self._log = log
        # A new connection for each question: on a kept one, an instance that has stopped listening still answers.
        self._client = AsyncHttpClient(limits=ClientLimits(connect_s=ANSWER_S, keep_s=0.0))
        self._seen: dict[str, Seen] = {}
        self._resolved: dict[str, tuple[str, ...]] = {}
        self._resolving: dict[str, asyncio.Future[tuple[str, ...]]] = {}
        self._unresolved: set[str] = set()  # told already

    def get(self, origin: str) -> Seen | None:
        """What is known of one address."""
        return self._seen.get(origin)

    def listed(self) -> list[Seen]:
        """Addresses that instances may have now, in the configuration's order."""
        return [seen for seen in self._seen.values() if seen.listed]

    async def look(self, used: set[str]) -> None:
        """One round. ``used`` addresses are asked even when no name leads to them any more."""
        found = await self._addresses()
        for origin in (*found, *used):
            if origin not in self._seen:
                self._seen[origin] = Seen(origin)
        for origin, seen in tuple(self._seen.items()):
            seen.listed = origin in found
            if not seen.listed and origin not in used:
                del self._seen[origin]
        gate = asyncio.Semaphore(ASKED_AT_ONCE)
        await asyncio.gather(*(self._ask(seen, gate) for seen in tuple(self._seen.values())))

    async def idle(self, origin: str) -> bool:
        """Whether an instance says that it has nothing under way; True when it says nothing."""
        try:
            answer = await self._client.request(
                "GET", origin, "/v1/status", deadline_s=ANSWER_S, max_answer=16 * MAX_ANSWER
            )
            status = json.loads(answer.body) if answer.status == 200 else {}
        except (CloisterError, ValueError):
            return True
        return not (isinstance(status, dict) and any(status.get(name) for name in ("in_flight", "queued", "waiting")))

    async def close(self) -> None:
        """Let go of everything; a lookup that hangs ends by itself."""
        await self._client.close()

    # --- inside ---

    async def _addresses(self) -> dict[str, None]:
        """Origins of all addresses, ordered, each once."""
        configured = self.settings.addresses
        for gone in set(self._resolved) - set(configured):
            del self._resolved[gone]
        places = await asyncio.gather(*(self._places(address) for address in configured))
        return dict.fromkeys([origin for some in places for origin in some][:MAX_ADDRESSES])

    async def _places(self, address: str) -> tuple[str, ...]:
        origin = parse_origin(address)
        if origin.scheme != "http" or _is_ip(origin.host):  # certificates are for names; sockets have one place
            return (str(origin),)
        lookup = self._resolving.get(address)
        if lookup is None:
            lookup = self._resolving[address] = asyncio.ensure_future(_resolve(origin))
            lookup.add_done_callback(lambda done: self._looked_up(address, done))
        try:
            return await asyncio.wait_for(asyncio.shield(lookup), RESOLVE_S)
        except (OSError, TimeoutError, UnicodeError) as error:
            # Names that cannot be resolved leave everything as it is: whether instances live, they say themselves.
            if address not in self._unresolved:
                self._unresolved.add(address)
                self._log.event("name-unresolved", level="warning", address=address, error=type(error).__name__)
            return self._resolved.get(address, ())

    def _looked_up(self, address: str, done: asyncio.Future[tuple[str, ...]]) -> None:
        self._resolving.pop(address, None)
        if not done.cancelled() and done.exception() is None and address in self.settings.addresses:
            self._resolved[address] = done.result()
            self._unresolved.discard(address)

    async def _ask(self, seen: Seen, gate: asyncio.Semaphore) -> None:
        async with gate:
            sight = await self._look_at(seen.origin)
        before = seen.sight
        seen.sight = sight
        seen.silent = seen.silent + 1 if sight is Sight.SILENT else 0
        if before is not sight:
            level = "info" if sight is Sight.READY else "warning"
            self._log.event("address-seen", level=level, address=seen.origin, state=sight.value)

    async def _look_at(self, origin: str) -> Sight:
        try:
            answer = await self._client.request("GET", origin, "/readyz", deadline_s=ANSWER_S, max_answer=MAX_ANSWER)
        except CloisterError as error:
            refused = isinstance(error.__cause__, ConnectionRefusedError | FileNotFoundError)
            return Sight.REFUSED if refused else Sight.SILENT
        return Sight.READY if answer.status == 200 else Sight.UP


async def _resolve(origin: Origin) -> tuple[str, ...]:
    """Its addresses, sorted. Of one family: a container that has both is one instance."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    hosts = {family: {str(place[0]) for kind, *_, place in found if kind == family} for family, *_ in found}
    chosen = hosts.get(socket.AF_INET) or hosts.get(socket.AF_INET6) or set()
    return tuple(str(Origin("http", host, origin.port)) for host in sorted(chosen))


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
