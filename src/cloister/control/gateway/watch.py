"""Once a second: scale, ask instances how they are, and tell policies what was measured."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from cloister.adapters.http.answer import Answer
from cloister.base.errors import CloisterError, InvalidInput
from cloister.base.ids import ModelId
from cloister.control.gateway.advice import Advice
from cloister.control.gateway.catalogue import Catalogue
from cloister.control.gateway.conductor import Conductor, Place
from cloister.platforms.port import Ready

TICK_S: Final = 1.0
ASKED_AT_ONCE: Final = 32  # instances asked at one tick, those not heard of for longest first
RECOUNT_TICKS: Final = 10  # how often the platform is asked what runs, for events that were missed
MAX_STATUS: Final = 1024 * 1024
MAX_MODELS: Final = 10_000
LOST_AFTER_S: Final = 5.0


class Watch:
    """Belongs to the conductor's loop."""

    def __init__(self, conductor: Conductor, catalogue: Catalogue, advice: Advice) -> None:
        self._conductor = conductor
        self._advice = advice
        self._catalogue = catalogue
        self._ticks = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            await self.tick()

    async def tick(self) -> None:
        """One round."""
        conductor = self._conductor
        self._ticks += 1
        for name in conductor.costs.changed():
            self._revise(name)
        now = conductor.clock.monotonic()
        conductor.carry_out(conductor.dispatcher.tick(now))
        self._advice.tick(conductor.dispatcher.snapshot, conductor.dispatcher.domains, now)
        up = [(name, place) for name, place in conductor.places.items() if place.address and not place.halting]
        up.sort(key=lambda item: item[1].seen_at)
        await asyncio.gather(*(self.ask(name, place) for name, place in up[:ASKED_AT_ONCE]))
        conductor.telemetry.forget(set(conductor.places))
        if self._ticks % RECOUNT_TICKS == 0:
            await self._recount()

    async def ask(self, name: str, place: Place) -> None:
        """Ask one instance for its status and stages; an instance that is busy or gone answers another time."""
        conductor = self._conductor
        place.seen_at = conductor.clock.monotonic()
        status = await self._get(place.address, "/v1/status")
        if status is None or conductor.places.get(name) is not place:
            return
        try:
            self._heard(name, place, _status(status.body))
        except InvalidInput as error:
            conductor.log.event("status-malformed", level="warning", instance=name, error=error.message)
            return
        metrics = await self._get(place.address, "/metrics")
        if metrics is not None:
            conductor.telemetry.stages(name, metrics.body.decode("utf-8", "replace"))

    def _heard(self, name: str, place: Place, status: dict[str, Any]) -> None:
        conductor = self._conductor
        there = conductor.dispatcher.snapshot.instances.get(name)
        if there is None or place.halting:
            return
        now = conductor.clock.monotonic()
        models = frozenset(status["models"])
        for text in models:
            if self._catalogue.get(text) is None:
                conductor.spawn(self._learn(text))
        conductor.carry_out(
            conductor.dispatcher.observed(
                now, name, models, concurrency=status["concurrency"], memory_mb=status["budget_mb"]
            )
        )
        conductor.dispatcher.pressed(name, self._pressure(place, status, models))

    def _pressure(self, place: Place, status: dict[str, Any], models: frozenset[str]) -> float:
        """The share of time it loses: stalled on memory as the kernel says, or loading again what it had before."""
        churn_mb, before = status["churn_mb"], place.churn_mb
        place.churn_mb = churn_mb
        known = [model for text in models if (model := self._catalogue.get(text)) is not None]
        memory = sum(model.memory_mb for model in known)
        seconds_per_mb = sum(model.load_s for model in known) / memory if memory else 0.0
        again = max(0.0, churn_mb - before) * seconds_per_mb / TICK_S if before is not None else 0.0
        return float(min(0.99, max(again, status["stalled"])))

    async def _learn(self, text: str) -> None:
        try:
            await self._catalogue.find(ModelId.parse(text), text)
        except CloisterError:
            return  # an instance may hold what the store has no more

    def _revise(self, name: str) -> None:
        model = self._catalogue.get(name)
        if model is not None:
            revised = self._conductor.costs.applied(model)
            if revised is not model:
                self._catalogue.put(revised)

    async def _recount(self) -> None:
        conductor = self._conductor
        try:
            running = {there.instance: there for there in await conductor.platform.running()}
        except CloisterError as error:
            conductor.log.event("platform-silent", level="warning", code=error.code)
            return
        now = conductor.clock.monotonic()
        for name, there in running.items():
            if name not in conductor.places:
                conductor.adopt(there)
            elif there.ready:
                conductor.came_up(Ready(name, there.group, there.address, there.host))
        for name, place in tuple(conductor.places.items()):
            fresh = place.launched_at is not None and now - place.launched_at < LOST_AFTER_S
            if name not in running and not fresh and not (place.halting and not place.address):
                conductor.gone(name, "not running any more")

    async def _get(self, address: str, target: str) -> Answer | None:
        try:
            answer = await self._conductor.client.request("GET", address, target, deadline_s=2.0, max_answer=MAX_STATUS)
        except CloisterError:
            return None
        return answer if answer.status == 200 else None


def _status(body: bytes) -> dict[str, Any]:
    """What counts of a runtime's ``/v1/status`` (``cloister.runtime.app.Runtime.status``), checked.

    :raises InvalidInput: ``status-malformed``.
    """
    try:
        value = json.loads(body)
        memory, pressure = value["memory_mb"], value["pressure"]
        found = {
            "models": value["models"],
            "concurrency": value["concurrency"],
            "budget_mb": memory["budget"],
            "churn_mb": value["churn_mb"],
            "stalled": pressure.get("memory_some_avg10", 0.0) / 100 if isinstance(pressure, dict) else 0.0,
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput("status-malformed", "an instance's status cannot be read") from error
    models = found["models"]
    if not isinstance(models, list) or len(models) > MAX_MODELS or not all(isinstance(m, str) for m in models):
        raise InvalidInput("status-malformed", "an instance's list of models cannot be read")
    for name, low, high in (("concurrency", 1, 65536), ("budget_mb", 0, 1 << 32), ("churn_mb", 0, 1 << 52)):
        number = found[name]
        if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
            raise InvalidInput("status-malformed", f"an instance's {name} is out of range")
    found["concurrency"] = int(found["concurrency"])
    found["stalled"] = min(1.0, max(0.0, float(found["stalled"])))
    return found
