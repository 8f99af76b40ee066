"""Drives the dispatcher and the platform: what the dispatcher commands is done, what happens is told to it.

All of it belongs to one event loop, and nothing here waits while a decision is half carried out: starts and stops are
tasks of their own, so the dispatcher's picture never lags behind a slow platform.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.logs import EventLog
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, Unavailable
from cloister.control.dispatch import Command, Dispatcher, Halt, Launch, Preload, Send, Wake
from cloister.control.gateway.breaker import Breaker
from cloister.control.gateway.configuration import CircuitSettings, QueueSettings
from cloister.control.gateway.costs import Costs
from cloister.control.gateway.flight import Flight, Leg
from cloister.control.gateway.telemetry import Telemetry
from cloister.control.snapshot import KEYLESS, Fleet, Instance, InstanceState
from cloister.platforms.port import Gone, Leaving, Platform, Ready, Running

START_BACKOFF_S: Final = 0.25  # after a start that failed; doubles with each one in a row
MAX_START_BACKOFF_S: Final = 15.0


class Place:
    """An instance as the gateway reaches it.

    :ivar launched_at: when it was asked for; None for one that was there before.
    :ivar flights: requests that are on it.
    :ivar stale: started under another command line or packer: once it is empty, it goes.
    :ivar leaving: somebody else ends it: once it is empty, it goes, whether it could be reached again or not.
    """

    __slots__ = (
        "address", "breaker", "churn_mb", "flights", "group", "halting", "launched_at", "leaving", "seen_at", "stale",
    )  # fmt: skip

    def __init__(self, group: str, breaker: Breaker, launched_at: float | None) -> None:
        self.group = group
        self.address = ""
        self.breaker = breaker
        self.launched_at = launched_at
        self.flights: set[Flight] = set()
        self.halting = self.stale = self.leaving = False
        self.churn_mb: float | None = None
        self.seen_at = 0.0


class Conductor:
    """See the module. :meth:`open` first, :meth:`close` last."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        platform: Platform,
        client: AsyncHttpClient,
        *,
        packer: str,
        queue: QueueSettings,
        circuit: CircuitSettings,
        costs: Costs,
        telemetry: Telemetry,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self.dispatcher = dispatcher
        self.platform = platform
        self.client = client
        self.packer = packer
        self.queue = queue
        self.circuit = circuit
        self.costs = costs
        self.telemetry = telemetry
        self.clock = clock
        self.log = log
        self.places: dict[str, Place] = {}
        self.flights: dict[str, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed_starts = 0
        self._reader: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Take over what runs, and listen to the platform.

        :raises Unavailable: as the platform does.
        """
        running = await self.platform.running()
        for there in running:
            self.adopt(there)
        self._reader = asyncio.ensure_future(self._listen())

    async def close(self) -> None:
        """End what goes on in the background; instances go on."""
        tasks = [*self._tasks, *([self._reader] if self._reader is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def fleet(self) -> Fleet:
        """Bounds in force."""
        return self.dispatcher.snapshot.fleet

    # --- requests ---

    def begin(self, flight: Flight) -> None:
        """A request comes in.

        :raises Unavailable: ``queue-full``; ``model-too-large``.
        """
        snapshot = self.dispatcher.snapshot
        model = flight.request.model
        if snapshot.queued(model) >= max(1, self.queue.per_model) or snapshot.backlog >= max(1, self.queue.total):
            raise Unavailable("queue-full", "too many requests wait", retry_after=self.retry_after(model))
        if snapshot.models[model].memory_mb > snapshot.fleet.memory_mb:
            raise Unavailable(
                "model-too-large",
                f"the model takes {snapshot.models[model].memory_mb:.0f} MiB, an instance has "
                f"{snapshot.fleet.memory_mb:.0f}",
                hint="The operator decides: [pool] memory_mb.",
            )
        self.flights[flight.request.id] = flight
        self.carry_out(self.dispatcher.arrive(self.clock.monotonic(), flight.request))

    async def placed(self, flight: Flight) -> None:
        """Wait for a slot.

        :raises Unavailable: ``queue-timeout``.
        """
        if flight.leg is Leg.SENT:
            return
        left = flight.deadline - self.clock.monotonic()
        loop = asyncio.get_running_loop()
        waiter = flight.waiter = loop.create_future()
        timer = loop.call_later(max(0.0, left), self._expire, flight)
        try:
            await waiter
        finally:
            timer.cancel()
            flight.waiter = None

    def landed(self, flight: Flight, *, well: bool, loaded: bool = True) -> None:
        """A request is over on its instance, answered or given up; its slot is free.

        :param well: a good answer came; it counts for costs and for the circuit.
        :param loaded: False when the instance does not have the model after all.
        """
        now = self.clock.monotonic()
        leg, flight.leg = flight.leg, Leg.LANDED
        place = self.places.get(flight.instance)
        if leg is Leg.WAITING:
            self.dispatcher.cancel(now, flight.request)
        elif leg is Leg.SENT:
            if place is not None:
                place.flights.discard(flight)
                if well:
                    place.breaker.succeeded()
            took = now - flight.sent_at
            if well:
                hot = flight.path.value == "hot"
                self.costs.answered(flight.request.model, took, hot=hot, loaded=flight.load, slowdown=flight.slowdown)
            self.carry_out(self.dispatcher.finished(now, flight.request.id, flight.instance, took, loaded=loaded))
        self.flights.pop(flight.request.id, None)

    def again(self, flight: Flight, *, broken: bool, rest_s: float | None = None) -> None:
        """The attempt failed before any byte of an answer: off its instance, and to the head of the queue.

        :param broken: the connection was refused or cut. :param rest_s: the instance asks to be left alone so long.
        """
        self.failed(flight, broken=broken, rest_s=rest_s)
        self.once_more(flight)

    def once_more(self, flight: Flight) -> None:
        """One that landed without an answer goes to the head of the queue."""
        self.telemetry.retried()
        self.flights[flight.request.id] = flight
        flight.leg = Leg.WAITING
        self.carry_out(self.dispatcher.resubmit(self.clock.monotonic(), flight.request))

    def failed(self, flight: Flight, *, broken: bool, rest_s: float | None = None) -> None:
        """The attempt failed, and that is the instance's fault."""
        place = self.places.get(flight.instance)
        if place is not None and flight.leg is Leg.SENT and not place.halting and not place.leaving:
            opens = place.breaker.failed(broken=broken or rest_s is not None)
            if opens:
                self._avoid(flight.instance, place, rest_s)
        self.landed(flight, well=False, loaded=not flight.load)

    def retry_after(self, model: str) -> float:
        """Seconds until a slot may be free, from what is known of the model; 1 to 30."""
        snapshot = self.dispatcher.snapshot
        known = snapshot.models[model]
        slots = sum(there.concurrency for there in snapshot.holding(model)) or snapshot.fleet.concurrency
        wait = (snapshot.queued(model) + 1) * known.service_s / slots
        if not snapshot.holding(model):
            wait += known.start_s + known.load_s
        return min(30.0, max(1.0, wait))

    def _expire(self, flight: Flight) -> None:
        if flight.waiter is not None and not flight.waiter.done():
            error = Unavailable(
                "queue-timeout",
                "no instance was free in time",
                retry_after=self.retry_after(flight.request.model),
            )
            flight.waiter.set_exception(error)

    # --- commands ---

    def carry_out(self, commands: list[Command]) -> None:
        """Do what the dispatcher says, in its order."""
        for command in commands:
            match command:
                case Send():
                    self._send(command)
                case Launch():
                    self._place(command.instance, command.group, self.clock.monotonic())
                    self.spawn(self._launch(command))
                case Halt():
                    self._halt(command.instance)
                case Wake():
                    delay = max(0.0, command.at - self.clock.monotonic())
                    asyncio.get_running_loop().call_later(delay, self._wake, command.model)
                case Preload():
                    pass  # a runtime loads only with keys, which only a user's request brings

    def _send(self, command: Send) -> None:
        flight = self.flights[command.request.id]
        place = self.places[command.instance]
        flight.leg = Leg.SENT
        flight.instance = command.instance
        flight.address = place.address
        flight.path = command.path
        flight.load = command.load
        flight.sent_at = self.clock.monotonic()
        flight.attempts += 1
        snapshot = self.dispatcher.snapshot
        flight.slowdown = snapshot.fleet.slower(snapshot.instances[command.instance].in_flight)
        place.flights.add(flight)
        if flight.waiter is not None and not flight.waiter.done():
            flight.waiter.set_result(None)

    async def _launch(self, command: Launch) -> None:
        try:
            await self.platform.start(command.instance, f"{self.packer}/{command.group}")
        except CloisterError as error:
            self.log.event("instance-not-started", level="error", instance=command.instance, code=error.code)
            await self.lose(command.instance, error.code)

    def _halt(self, instance: str) -> None:
        place = self.places.get(instance)
        if place is not None:
            place.halting = True
            self.spawn(self.stop(instance))

    async def stop(self, instance: str) -> None:
        """Ask the platform to end an instance."""
        try:
            await self.platform.stop(instance)
        except CloisterError as error:
            self.log.event("instance-not-stopped", level="warning", instance=instance, code=error.code)

    def _wake(self, model: str) -> None:
        self.carry_out(self.dispatcher.wake(self.clock.monotonic(), model))

    # --- instances ---

    def adopt(self, there: Running) -> None:
        """An instance that runs and was not started from here."""
        if there.instance in self.places:
            return
        now = self.clock.monotonic()
        packer, _, group = there.group.partition("/")
        place = self._place(there.instance, group, None)
        place.stale = packer != self.packer
        fleet = self.fleet
        found = Instance(
            id=there.instance,
            group=group or KEYLESS,
            state=InstanceState.STARTING,
            concurrency=fleet.concurrency,
            memory_mb=fleet.memory_mb,
            host=there.host,
            launched_at=now,
            expected_at=now,
            last_used=now,
        )
        self.log.event("instance-found", instance=there.instance)
        self.carry_out(self.dispatcher.discovered(now, found))
        if there.ready:
            self.came_up(Ready(there.instance, there.group, there.address, there.host))

    def came_up(self, event: Ready) -> None:
        """An instance answers."""
        place = self.places.get(event.instance)
        if place is None:
            self.adopt(Running(event.instance, event.group, event.address, ready=True, host=event.host))
            return
        known = self.dispatcher.snapshot.instances.get(event.instance)
        if place.address or place.halting or known is None or known.state is not InstanceState.STARTING:
            return
        now = self.clock.monotonic()
        place.address = event.address
        self._failed_starts = 0
        if place.launched_at is not None:
            took = now - place.launched_at
            self.costs.started(took)
            self.telemetry.started(took)
            self.log.event("instance-ready", instance=event.instance, duration_ms=round(took * 1000))
        self._take(event.instance, place, event.host)

    def renew(self, packer: str) -> None:
        """The command line or the packer changed: what is up goes once it is empty, what is starting goes at once."""
        self.packer = packer
        now = self.clock.monotonic()
        for name in self.dispatcher.snapshot.order:
            there = self.dispatcher.snapshot.instances.get(name)
            if there is None:
                continue  # stopped meanwhile, to make room
            self.places[name].stale = True
            match there.state:
                case InstanceState.STARTING:
                    self.replace(name, "started under an earlier configuration")
                case InstanceState.BROKEN | InstanceState.DRAINING:
                    pass  # looked at when its circuit closes
                case _:
                    self.carry_out(self.dispatcher.avoid(now, name, InstanceState.DRAINING))

    def _take(self, instance: str, place: Place, host: str = "") -> None:
        """An instance may be used, or is to go although it could be."""
        now = self.clock.monotonic()
        if place.stale:
            self.carry_out(self.dispatcher.avoid(now, instance, InstanceState.DRAINING))
        else:
            self.carry_out(self.dispatcher.ready(now, instance, host))

    def leave(self, instance: str, reason: str) -> None:
        """Somebody else ends an instance: it finishes what it has and gets nothing new. Its circuit matters no more."""
        place = self.places.get(instance)
        there = self.dispatcher.snapshot.instances.get(instance)
        if place is None or there is None or place.leaving or place.halting:
            return
        self.log.event("instance-leaving", instance=instance, reason=reason[:200])
        place.stale = place.leaving = True
        if there.state is InstanceState.STARTING:
            self.replace(instance, reason)
        else:
            self.carry_out(self.dispatcher.avoid(self.clock.monotonic(), instance, InstanceState.DRAINING))

    async def lose(self, instance: str, reason: str) -> None:
        """An instance is gone. After a start that failed, wait before anybody tries the next."""
        place = self.places.get(instance)
        if place is None:
            return
        if not place.address and not place.halting:
            self._failed_starts += 1
            delay = min(MAX_START_BACKOFF_S, START_BACKOFF_S * 2.0 ** min(self._failed_starts - 1, 16))
            place.halting = True
            await asyncio.sleep(delay)
        self.gone(instance, reason)

    def gone(self, instance: str, reason: str) -> None:
        """Forget an instance; its requests try elsewhere as soon as their connections are cut."""
        place = self.places.pop(instance, None)
        if place is None:
            return
        asked = place.halting and bool(place.address)
        self.log.event("instance-gone", level="info" if asked else "warning", instance=instance, reason=reason[:200])
        for flight in place.flights:
            flight.leg = Leg.ORPHAN
        if instance in self.dispatcher.snapshot.instances:
            commands, _ = self.dispatcher.lost(self.clock.monotonic(), instance)
            self.carry_out(commands)
        if place.address:
            self.client.forget(place.address)

    def _avoid(self, instance: str, place: Place, rest_s: float | None) -> None:
        """Send nothing to an instance until a probe is answered."""
        self.log.event("circuit-open", level="warning", instance=instance)
        self.telemetry.opened()
        commands = self.dispatcher.avoid(self.clock.monotonic(), instance, InstanceState.BROKEN)
        self.spawn(self._probe(instance, place, rest_s))
        self.carry_out(commands)

    async def _probe(self, instance: str, place: Place, rest_s: float | None) -> None:
        wait = place.breaker.wait_s() if rest_s is None else min(rest_s, self.circuit.max_open_s)
        while True:
            await asyncio.sleep(wait)
            if self._is_over(instance, place):
                return
            well = await answers(self.client, place.address)
            if self._is_over(instance, place):
                return
            place.breaker.probed(well=well)
            if well:
                self.log.event("circuit-closed", instance=instance)
                self._take(instance, place)
                return
            if place.breaker.hopeless:
                self.replace(instance, "does not answer")
                return
            wait = place.breaker.wait_s()

    def _is_over(self, instance: str, place: Place) -> bool:
        return self.places.get(instance) is not place or place.halting or place.leaving

    def replace(self, instance: str, reason: str) -> None:
        """Give an instance up: others serve, and the platform ends it."""
        self.spawn(self.stop(instance))
        self.gone(instance, reason)

    def _place(self, instance: str, group: str, launched_at: float | None) -> Place:
        place = self.places[instance] = Place(group, Breaker(self.circuit), launched_at)
        return place

    # --- events ---

    async def _listen(self) -> None:
        async for event in self.platform.events():
            match event:
                case Ready():
                    self.came_up(event)
                case Leaving():
                    self.leave(event.instance, event.reason)
                case Gone():
                    self.spawn(self.lose(event.instance, event.reason))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.event("internal-error", level="error", error=type(error).__name__, where=task.get_name())


async def answers(client: AsyncHttpClient, address: str) -> bool:
    """Whether an instance says it is ready."""
    try:
        answer = await client.request("GET", address, "/readyz", deadline_s=2.0, max_answer=4096)
    except CloisterError:
        return False
    return answer.status == 200
