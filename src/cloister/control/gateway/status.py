"""The gateway's status page: instances, models, queue. No users, no contents."""

from __future__ import annotations

from cloister import __version__
from cloister.control.gateway.advice import POLICIES, Advice
from cloister.control.gateway.conductor import Conductor
from cloister.control.gateway.configuration import GatewayConfiguration, as_table
from cloister.control.snapshot import InstanceState, Snapshot

MAX_LISTED = 1000  # models


def states(snapshot: Snapshot) -> dict[str, int]:
    """How many instances are in each state."""
    counts = {state.value: 0 for state in InstanceState}
    for name in snapshot.order:
        counts[snapshot.instances[name].state.value] += 1
    return counts


def status_page(conductor: Conductor, configuration: GatewayConfiguration, advice: Advice) -> dict[str, object]:
    """For ``GET /v1/status``. Times in milliseconds, memory in MiB."""
    snapshot = conductor.dispatcher.snapshot
    advice.look(snapshot)
    instances = []
    for name in snapshot.order:
        there = snapshot.instances[name]
        place = conductor.places.get(name)
        instances.append(
            {
                "id": name,
                "group": there.group,
                "state": there.state.value,
                "host": there.host,
                "in_flight": there.in_flight,
                "concurrency": there.concurrency,
                "models": sorted(there.residents),
                "memory_mb": {"used": round(there.used_mb, 1), "budget": there.memory_mb},
                "pressure": round(there.pressure, 3),
                "circuit_open": place.breaker.is_open if place is not None else False,
            }
        )
    models = []
    for name in list(snapshot.activity)[:MAX_LISTED]:
        model, seen = snapshot.models[name], snapshot.seen(name)
        models.append(
            {
                "id": name,
                "memory_mb": round(model.memory_mb, 1),
                "requests": seen.arrivals,
                "in_flight": seen.in_flight,
                "waiting": snapshot.queued(name),
                "start_ms": round(model.start_s * 1000, 1),
                "load_ms": round(model.load_s * 1000, 1),
                "service_ms": round(model.service_s * 1000, 2),
            }
        )
    return {
        "version": __version__,
        "pool": dict(as_table(configuration)),
        "states": states(snapshot),
        "wanted": {policy: advice.wanted(policy) for policy in POLICIES},
        "waiting": snapshot.backlog,
        "in_flight": len(conductor.flights) - snapshot.backlog,
        "instances": instances,
        "models": models,
    }
