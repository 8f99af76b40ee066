"""The gateway's configuration: one TOML file (docs/reference/gateway-configuration.md). Pure but for :func:`read`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from cloister.adapters.modelstore.opened import check as check_store
from cloister.base.errors import InvalidInput
from cloister.base.ids import ModelId
from cloister.base.limits import MIB
from cloister.control import policies
from cloister.control.gateway.platforms import PlatformSettings, read_platform
from cloister.control.gateway.section import Section, malformed
from cloister.control.snapshot import STAGES, Fleet, Stages

MAX_FILE: Final = MIB
_LISTEN: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """``[pool]``: bounds and policies."""

    packer: str
    cost_weight: float
    balancer: str
    scaler: str
    window_s: float
    slo_ms: float
    min_instances: int
    max_instances: int
    keyless: int
    memory_mb: float
    concurrency: int
    keep_alive_s: float
    slowdown: tuple[float, ...]

    @property
    def fleet(self) -> Fleet:
        """As policies see it."""
        return Fleet(self.max_instances, self.memory_mb, self.concurrency, self.keep_alive_s, self.slowdown)


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """``[queue]``: how many requests wait, and for how long."""

    per_model: int
    total: int
    deadline_s: float


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """``[limits]``: of users, bodies and connections. A rate or concurrency of 0 is no limit."""

    max_body: int
    retry_body: int
    buffers: int
    user_rate: float
    user_burst: int
    user_concurrency: int
    users: int
    connections: int
    answer_s: float
    drain_s: float


@dataclass(frozen=True, slots=True)
class CircuitSettings:
    """``[circuit]``: when an instance is left alone, and how often a request is tried."""

    failures: int
    open_s: float
    max_open_s: float
    probes: int
    attempts: int


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """``[models."<owner>/<name>"]``: what is known of a model beforehand."""

    id: str
    memory_mb: float | None
    slo_ms: float | None
    shares_with: frozenset[str]
    stages: Stages | None


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """``[discovery]``: models that are not configured, looked up in the store when they are asked for."""

    enabled: bool
    max_models: int


@dataclass(frozen=True, slots=True)
class ScalerSettings:
    """``[scaler]``: where an external scaler is answered; empty for nowhere."""

    listen: str


@dataclass(frozen=True, slots=True)
class GatewayConfiguration:
    """The whole file."""

    platform: PlatformSettings
    store: str
    pool: PoolSettings
    queue: QueueSettings
    limits: LimitSettings
    circuit: CircuitSettings
    discovery: DiscoverySettings
    models: tuple[ModelSettings, ...]
    scaler: ScalerSettings


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload has to do.

    :param addresses: of instances that somebody else starts.
    :param restart: settings that differ and count only after a restart.
    """

    fleet: bool
    policies: bool
    command: bool
    addresses: bool
    models: bool
    restart: tuple[str, ...]


def read(path: Path) -> GatewayConfiguration:
    """:raises InvalidInput: ``configuration-unreadable``, ``configuration-malformed``, naming the setting."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InvalidInput("configuration-unreadable", f"cannot read {path}: {error.strerror}") from error
    return parse(data)


def parse(data: bytes) -> GatewayConfiguration:
    """:raises InvalidInput: ``configuration-malformed``."""
    if len(data) > MAX_FILE:
        raise malformed("the file", f"is longer than {MAX_FILE} bytes")
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise malformed("the file", f"is not TOML: {error}") from error
    top = Section("", table)
    configuration = GatewayConfiguration(
        platform=read_platform(top.section("platform")),
        store=_store(top.section("store")),
        pool=_pool(top.section("pool")),
        queue=_queue(top.section("queue")),
        limits=_limits(top.section("limits")),
        circuit=_circuit(top.section("circuit")),
        discovery=_discovery(top.section("discovery")),
        models=_models(top.section("models")),
        scaler=_scaler(top.section("scaler")),
    )
    top.done()
    return configuration


def _store(at: Section) -> str:
    url = at.text("url", default="")
    at.done()
    if url:
        try:
            check_store(url)
        except InvalidInput as error:
            raise malformed("[store] url", f"is no model store: {error.message}") from error
    return url


def _pool(at: Section) -> PoolSettings:
    settings = PoolSettings(
        packer=at.choice("packer", policies.PACKERS, default="adaptive"),
        cost_weight=at.number("cost_weight", 0.5, 0, 1),
        balancer=at.choice("balancer", policies.BALANCERS, default="least-outstanding"),
        scaler=at.choice("scaler", policies.SCALERS, default="keep-alive"),
        window_s=at.number("window_s", 60.0, 1, 86400),
        slo_ms=at.number("slo_ms", 1000.0, 0.1, 3_600_000),
        min_instances=at.integer("min_instances", 0, 0, 100_000),
        max_instances=at.integer("max_instances", 2, 1, 100_000),
        keyless=at.integer("keyless", 0, 0, 10_000),
        memory_mb=at.number("memory_mb", 2048.0, 1, 1 << 24),
        concurrency=at.integer("concurrency", 4, 1, 1024),
        keep_alive_s=at.number("keep_alive_s", 60.0, 0, 30 * 86400),
        slowdown=at.numbers("slowdown", (1.0,), 1.0, 1000.0),
    )
    at.done()
    if settings.min_instances + settings.keyless > settings.max_instances:
        raise malformed("pool.min_instances", "is, with pool.keyless, more than pool.max_instances")
    if list(settings.slowdown) != sorted(settings.slowdown):
        raise malformed("pool.slowdown", "falls: more requests at once never make each faster")
    return settings


def _queue(at: Section) -> QueueSettings:
    settings = QueueSettings(
        per_model=at.integer("per_model", 256, 0, 1_000_000),
        total=at.integer("total", 2048, 0, 1_000_000),
        deadline_s=at.number("deadline_s", 60.0, 0.01, 3600),
    )
    at.done()
    return settings


def _limits(at: Section) -> LimitSettings:
    settings = LimitSettings(
        max_body=int(at.number("max_body_mb", 66.0, 0.001, 1 << 20) * MIB),
        retry_body=int(at.number("retry_body_mb", 8.0, 0, 1024) * MIB),
        buffers=int(at.number("buffers_mb", 512.0, 1, 1 << 20) * MIB),
        user_rate=at.number("user_rate_per_s", 0.0, 0, 1_000_000),
        user_burst=at.integer("user_burst", 32, 1, 1_000_000),
        user_concurrency=at.integer("user_concurrency", 64, 0, 1_000_000),
        users=at.integer("users", 100_000, 1, 10_000_000),
        connections=at.integer("connections", 4096, 1, 1_000_000),
        answer_s=at.number("answer_s", 120.0, 0.1, 86400),
        drain_s=at.number("drain_s", 30.0, 0, 3600),
    )
    at.done()
    return settings


def _circuit(at: Section) -> CircuitSettings:
    settings = CircuitSettings(
        failures=at.integer("failures", 5, 1, 1000),
        open_s=at.number("open_s", 0.1, 0.001, 3600),
        max_open_s=at.number("max_open_s", 5.0, 0.001, 3600),
        probes=at.integer("probes", 5, 1, 1000),
        attempts=at.integer("attempts", 3, 1, 100),
    )
    at.done()
    return settings


def _discovery(at: Section) -> DiscoverySettings:
    settings = DiscoverySettings(
        enabled=at.flag("enabled", default=True), max_models=at.integer("max_models", 100_000, 1, 10_000_000)
    )
    at.done()
    return settings


def _scaler(at: Section) -> ScalerSettings:
    listen = at.text("listen", default="")
    at.done()
    if listen and _LISTEN.fullmatch(listen) is None:
        raise malformed("scaler.listen", f"is {listen!r}", hint="Write HOST:PORT.")
    return ScalerSettings(listen)


def _models(at: Section) -> tuple[ModelSettings, ...]:
    found = []
    for name in at.names():
        try:
            ModelId.parse(name)
        except InvalidInput as error:
            raise malformed(f"models.{name!r}", f"is no model: {error.message}") from error
        section = at.section(name)
        shares = section.texts("shares_with")
        found.append(
            ModelSettings(
                id=name,
                memory_mb=section.optional("memory_mb", 0.001, 1 << 24),
                slo_ms=section.optional("slo_ms", 0.1, 3_600_000),
                shares_with=frozenset(shares),
                stages=_stages(section.section("stages")),
            )
        )
        section.done()
    return tuple(found)


def _stages(at: Section) -> Stages | None:
    given = {name: at.number(name, 0.0, 0, 3_600_000) for name in STAGES}
    at.done()
    return Stages(**given) if any(given.values()) else None


def changes(old: GatewayConfiguration, new: GatewayConfiguration) -> Changes:
    """What differs, by what it takes to follow."""
    bounds = {"packer", "cost_weight", "balancer", "scaler", "window_s", "slo_ms", "min_instances", "keyless"}
    platform = (
        "kind",
        "start_timeout_s",
        "stop_grace_s",
        "openwhisk",
        "auth_file",
        "kubernetes",
        "knative",
        "manifest",
    )
    restart = [
        f"{section}.{name}"
        for section, names in (("platform", platform), ("limits", ("connections",)))
        for name in names
        if getattr(getattr(old, section), name) != getattr(getattr(new, section), name)
    ]
    if old.store != new.store:
        restart.append("store.url")
    if old.scaler != new.scaler:
        restart.append("scaler.listen")
    return Changes(
        fleet=old.pool.fleet != new.pool.fleet,
        policies=any(_differs(old.pool, new.pool, name) for name in bounds),
        command=old.platform.command != new.platform.command,
        addresses=old.platform.static != new.platform.static,
        models=old.models != new.models or old.discovery != new.discovery,
        restart=tuple(restart),
    )


def _differs(old: PoolSettings, new: PoolSettings, name: str) -> bool:
    return bool(getattr(old, name) != getattr(new, name))


def as_table(configuration: GatewayConfiguration) -> Mapping[str, Any]:
    """The policies and bounds in force, for the status page."""
    pool = configuration.pool
    return {field.name: getattr(pool, field.name) for field in fields(pool)}
