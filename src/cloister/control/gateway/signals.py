"""Pressure and service levels as metrics: what S3ML balances and scales by, for whoever else looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from cloister.adapters.metrics import Registry
from cloister.base.limits import MIB
from cloister.control.gateway.advice import POLICIES, Advice
from cloister.control.gateway.conductor import Conductor
from cloister.control.gateway.configuration import GatewayConfiguration

Series = Mapping[tuple[str, ...], float]
PREFIX: Final = "cloister_gateway_"


def export(
    registry: Registry, conductor: Conductor, advice: Advice, configuration: Callable[[], GatewayConfiguration]
) -> None:
    """Add them to the gateway's page."""

    def pressure() -> Series:
        snapshot = conductor.dispatcher.snapshot
        return {(name,): snapshot.instances[name].pressure for name in snapshot.order}

    def churn() -> Series:
        return {(n,): place.churn_mb * MIB for n, place in conductor.places.items() if place.churn_mb is not None}

    def declared() -> Series:
        return {(model.id,): model.slo_ms / 1000 for model in configuration().models if model.slo_ms is not None}

    def predicted() -> Series:
        return {(name,): seconds for name, seconds in advice.predicted_p99_s().items()}

    def wanted() -> Series:
        advice.look(conductor.dispatcher.snapshot)
        return {(policy,): float(advice.wanted(policy)) for policy in POLICIES}

    family = registry.family
    family(
        f"{PREFIX}instance_pressure_ratio",
        "Share of time an instance loses to secure memory: stalled, or loading again what it had.",
        ("instance",),
        pressure,
    )
    family(
        f"{PREFIX}instance_churn_bytes",
        "Bytes of models an instance fetched and decrypted again, since it started.",
        ("instance",),
        churn,
    )
    family(f"{PREFIX}slo_seconds", "Declared bound of p99 latency.", ("model",), declared)
    family(
        f"{PREFIX}predicted_p99_seconds",
        "p99 latency that the slo policy expects of the instances there are; +Inf when they cannot keep up.",
        ("domain",),
        predicted,
    )
    family(
        f"{PREFIX}wanted_instances",
        "Instances wanted: by the gateway as it runs, and by scaling policies that look on.",
        ("policy",),
        wanted,
    )
