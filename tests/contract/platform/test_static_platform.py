"""What only addresses do that somebody else fills: names with several, none left, silence, waiting, giving back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.http.server import HttpServer
from cloister.base.errors import Unavailable
from cloister.platforms.port import Event, Gone, Leaving, Ready
from cloister.platforms.static import roster
from cloister.platforms.static.driver import RECORD, StaticPlatform
from cloister.platforms.static.settings import StaticSettings
from cloister.testing.instance import StandIn
from cloister.testing.logs import MemoryLog

NAME = "runtimes.test"


class Street:
    """Stand-ins on loopback addresses, all at one port, and a name for them."""

    def __init__(self) -> None:
        self.names: dict[str, tuple[str, ...]] = {NAME: ()}
        self.failing = False
        self.port = 0
        self.stand_ins: dict[str, StandIn] = {}
        self.servers: dict[str, HttpServer] = {}

    async def build(self, *hosts: str) -> None:
        """A stand-in at each host, and the name leads to them all."""
        for host in hosts:
            server = HttpServer(StandIn(host), log=MemoryLog())
            await server.start(host, self.port)
            self.port = int(server.address.rpartition(":")[2])
            self.servers[host] = server
        self.names[NAME] = tuple(self.servers)

    def address(self, host: str) -> str:
        return f"http://{host}:{self.port}"

    @property
    def named(self) -> StaticSettings:
        return StaticSettings((f"http://{NAME}:{self.port}",), poll_s=0.05)

    async def getaddrinfo(self, _loop: Any, host: str, port: int, **_more: Any) -> list[Any]:
        if self.failing:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        if host not in self.names and host.startswith("127."):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        if not self.names.get(host):
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
        return [six, *((socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in self.names[host])]

    async def close(self) -> None:
        for server in self.servers.values():
            await server.close()


class Drive:
    def __init__(self, folder: Path, settings: StaticSettings, **options: Any) -> None:
        self.log = MemoryLog()
        self.platform = StaticPlatform(folder, settings, self.log, **options)
        self._events = self.platform.events()

    async def next(self) -> Event:
        return await asyncio.wait_for(anext(self._events), 10)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Street], Awaitable[None]]], None]:
    async def whole(body: Callable[[Street], Awaitable[None]]) -> None:
        street = Street()

        async def lookup(loop: Any, host: str, port: int, **more: Any) -> list[Any]:
            return await street.getaddrinfo(loop, host, port, **more)

        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
        try:
            async with asyncio.timeout(30):
                await body(street)
        finally:
            await street.close()

    return lambda body: asyncio.run(whole(body))


def test_each_address_of_a_name_is_an_instance(run: Any, tmp_path: Path) -> None:
    async def body(street: Street) -> None:
        await street.build("127.0.0.2", "127.0.0.3")
        drive = Drive(tmp_path, street.named)
        await drive.platform.open()
        for instance in ("i-1", "i-2"):
            await drive.platform.start(instance, "g")
        ready = [await drive.next(), await drive.next()]
        assert ready == [
            Ready("i-1", "g", street.address("127.0.0.2"), "127.0.0.2"),
            Ready("i-2", "g", street.address("127.0.0.3"), "127.0.0.3"),
        ]
        with pytest.raises(Unavailable) as caught:
            await drive.platform.start("i-3", "g")
        assert caught.value.code == "platform-full"
        assert "all 2 addresses" in caught.value.message
        await street.build("127.0.0.4")
        await asyncio.sleep(0.3)
        await drive.platform.start("i-3", "g")
        assert await drive.next() == Ready("i-3", "g", street.address("127.0.0.4"), "127.0.0.4")
        await drive.platform.close()

    run(body)


def test_where_somebody_scales_an_instance_waits_for_its_address(run: Any, tmp_path: Path) -> None:
    async def body(street: Street) -> None:
        await street.build("127.0.0.2")
        drive = Drive(tmp_path, replace(street.named, scaled=True), start_timeout_s=1.0)
        for instance in ("i-1", "i-2"):
            await drive.platform.start(instance, "g")
        assert await drive.next() == Ready("i-1", "g", street.address("127.0.0.2"), "127.0.0.2")
        assert [there.ready for there in await drive.platform.running()] == [True, False]
        await street.build("127.0.0.3")  # as a scaler does that was told: two are wanted
        assert await drive.next() == Ready("i-2", "g", street.address("127.0.0.3"), "127.0.0.3")
        await drive.platform.start("i-3", "g")
        assert await drive.next() == Gone("i-3", "no address answered in time")
        await drive.platform.close()

    run(body)


def test_one_that_its_name_no_longer_leads_to_leaves_and_is_gone_after_its_grace(run: Any, tmp_path: Path) -> None:
    async def body(street: Street) -> None:
        await street.build("127.0.0.2", "127.0.0.3")
        drive = Drive(tmp_path, street.named, stop_grace_s=0.2)
        for instance in ("i-1", "i-2"):
            await drive.platform.start(instance, "g")
            assert isinstance(await drive.next(), Ready)
        street.names[NAME] = ("127.0.0.3",)
        leaving = await drive.next()
        assert isinstance(leaving, Leaving)
        assert (leaving.instance, "listed no more" in leaving.reason) == ("i-1", True)
        gone = await drive.next()
        assert isinstance(gone, Gone)
        assert gone.instance == "i-1"
        assert [there.instance for there in await drive.platform.running()] == ["i-2"]
        await drive.platform.close()

    run(body)


def test_a_name_that_cannot_be_resolved_changes_nothing_and_is_told_once(run: Any, tmp_path: Path) -> None:
    async def body(street: Street) -> None:
        await street.build("127.0.0.2")
        drive = Drive(tmp_path, street.named)
        await drive.platform.start("i-1", "g")
        assert isinstance(await drive.next(), Ready)
        street.failing = True
        await asyncio.sleep(0.5)
        assert [(there.instance, there.ready) for there in await drive.platform.running()] == [("i-1", True)]
        assert [name for name, *_ in drive.log.events].count("name-unresolved") == 1
        await drive.platform.close()

    run(body)


def test_silence_ends_an_instance_and_it_can_be_taken_again_when_it_answers(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is cut off: its connections neither answer nor end."""
    monkeypatch.setattr(roster, "ANSWER_S", 0.1)

    async def body(street: Street) -> None:
        await street.build("127.0.0.2")
        there = street.servers["127.0.0.2"].app
        drive = Drive(tmp_path, street.named, start_timeout_s=5.0)
        await drive.platform.start("i-1", "g")
        assert isinstance(await drive.next(), Ready)

        async def silent(_request: Any) -> Any:
            await asyncio.Event().wait()

        street.servers["127.0.0.2"].app = silent
        gone = await drive.next()
        assert isinstance(gone, Gone)
        assert "does not answer" in gone.reason
        await drive.platform.start("i-2", "g")
        assert [(there.address, there.ready) for there in await drive.platform.running()] == [("", False)]
        street.servers["127.0.0.2"].app = there
        assert await drive.next() == Ready("i-2", "g", street.address("127.0.0.2"), "127.0.0.2")
        await drive.platform.close()

    run(body)


def test_one_that_answers_unready_stays_but_is_not_taken(run: Any, tmp_path: Path) -> None:
    """A KeyService that restarts makes runtimes unready for a while: no reason to give them up."""

    async def body(street: Street) -> None:
        await street.build("127.0.0.2", "127.0.0.3")
        for server in street.servers.values():
            assert isinstance(server.app, StandIn)
            street.stand_ins[server.app.name] = server.app
        street.stand_ins["127.0.0.2"].ready = False
        drive = Drive(tmp_path, street.named, start_timeout_s=0.3)
        await drive.platform.start("i-1", "g")
        assert await drive.next() == Ready("i-1", "g", street.address("127.0.0.3"), "127.0.0.3")
        street.stand_ins["127.0.0.3"].ready = False
        await drive.platform.start("i-2", "g")
        gone = await drive.next()
        assert gone == Gone("i-2", "no address answered in time")
        assert [(there.instance, there.ready) for there in await drive.platform.running()] == [("i-1", True)]
        await drive.platform.close()

    run(body)


def test_an_address_goes_to_who_used_it_before(run: Any, tmp_path: Path) -> None:
    async def body(street: Street) -> None:
        await street.build("127.0.0.2", "127.0.0.3")
        drive = Drive(tmp_path, street.named)
        for instance, group in (("i-1", "a"), ("i-2", "b")):
            await drive.platform.start(instance, group)
            assert isinstance(await drive.next(), Ready)
        for instance in ("i-1", "i-2"):
            await drive.platform.stop(instance)
            assert isinstance(await drive.next(), Gone)
        await drive.platform.start("i-3", "b")
        ready = await drive.next()
        assert isinstance(ready, Ready)
        assert ready.address == street.address("127.0.0.3")
        await drive.platform.close()

    run(body)


def test_stopping_waits_for_what_is_under_way_and_then_serves_who_waits(run: Any, tmp_path: Path) -> None:
    async def body(street: Street) -> None:
        await street.build("127.0.0.2")
        there = street.servers["127.0.0.2"].app
        assert isinstance(there, StandIn)
        drive = Drive(tmp_path, street.named)
        await drive.platform.start("i-1", "a")
        assert isinstance(await drive.next(), Ready)
        there.in_flight = 1
        await drive.platform.stop("i-1")
        await drive.platform.start("i-2", "b")
        await asyncio.sleep(0.4)
        assert [claim.instance for claim in await drive.platform.running()] == ["i-2"]
        assert not (await drive.platform.running())[0].ready
        there.in_flight = 0
        assert isinstance(await drive.next(), Gone)
        ready = await drive.next()
        assert isinstance(ready, Ready)
        assert ready.instance == "i-2"
        await drive.platform.stop_all()
        assert (tmp_path / RECORD).read_text() == "{}"
        await drive.platform.close()

    run(body)


def test_other_addresses_count_at_once(run: Any, tmp_path: Path) -> None:
    async def body(street: Street) -> None:
        await street.build("127.0.0.2", "127.0.0.3")
        drive = Drive(tmp_path, StaticSettings((street.address("127.0.0.2"),), poll_s=30.0))
        await drive.platform.start("i-1", "g")
        assert isinstance(await drive.next(), Ready)
        drive.platform.reconfigure(StaticSettings((street.address("127.0.0.3"),), poll_s=30.0))
        leaving = await drive.next()
        assert isinstance(leaving, Leaving)
        await drive.platform.stop("i-1")
        assert isinstance(await drive.next(), Gone)
        await drive.platform.start("i-2", "g")
        assert await drive.next() == Ready("i-2", "g", street.address("127.0.0.3"), "127.0.0.3")
        await drive.platform.close()

    run(body)


@pytest.mark.parametrize("content", ["", "[]", '{"i-1": {}}', '{"i-1": {"group": "g", "address": "nowhere"}}'])
def test_a_record_that_cannot_be_read_is_none(run: Any, tmp_path: Path, content: str) -> None:
    async def body(street: Street) -> None:
        await street.build("127.0.0.2")
        (tmp_path / RECORD).write_text(content)
        drive = Drive(tmp_path, street.named)
        assert await drive.platform.running() == ()
        other = Drive(tmp_path, street.named)
        with pytest.raises(Unavailable) as caught:
            await other.platform.open()
        assert caught.value.code == "platform-in-use"
        await other.platform.close()
        await drive.platform.close()

    run(body)
