"""The gateway's configuration: one TOML file, checked whole before anything uses it.

Described in docs/reference/gateway-configuration.md. Every error names the key's path. An unknown key is an error: a
misspelt limit must not be a limit that silently does not exist. :func:`diff` says what a reload changes, so that a
gateway can take it over without dropping a request.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final

from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_NAME, MAX_REQUEST_BODY
from cloister.control.policies import BALANCERS, PACKERS, SCALERS
from cloister.control.snapshot import ANYONE, STAGES, Fleet, Model, Stages

MAX_CONFIGURATION: Final = 4 * 1024 * 1024  # thousands of models at a few hundred bytes each
HINT: Final = "See docs/reference/gateway-configuration.md."
_NAME: Final = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{MAX_NAME - 1}}}")


@dataclass(frozen=True, slots=True)
class Policies:
    """Which policies a pool runs under, and their knobs."""

    packer: str = "adaptive"
    cost_weight: float = 0.5
    balancer: str = "tee-aware"
    scaler: str = "slo"
    window_s: float = 60.0
    keyless: int = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """Identical instances.

    :param memory_mb: budget of one instance, ``runtime_mb`` of it for the runtime itself.
    :param least: never fewer instances; above 0, the pool does not scale to zero.
    """

    name: str
    memory_mb: float
    runtime_mb: float = 128.0
    instances: int = 16
    least: int = 0
    concurrency: int = 4
    keep_alive_s: float = 60.0
    slowdown: tuple[float, ...] = (1.0,)
    slo_ms: float = 1000.0
    policies: Policies = field(default_factory=Policies)

    @property
    def fleet(self) -> Fleet:
        """As the dispatcher takes it."""
        return Fleet(
            max_instances=self.instances,
            memory_mb=self.memory_mb - self.runtime_mb,
            concurrency=self.concurrency,
            keep_alive_s=self.keep_alive_s,
            slowdown=self.slowdown,
        )


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model and the pool that serves it."""

    pool: str
    model: Model


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers may ask of a gateway.

    :param queue: requests waiting over all models; one more is answered 503.
    :param deadline_s: longest wait in the queue.
    :param user_rate: requests a second of one user, in bursts of ``user_burst``.
    :param user_concurrency: requests of one user sent or waiting at a time.
    """

    queue: int = 10_000
    deadline_s: float = 60.0
    body_bytes: int = MAX_REQUEST_BODY
    user_rate: float = 100.0
    user_burst: int = 200
    user_concurrency: int = 64


@dataclass(frozen=True, slots=True)
class Configuration:
    """The whole file."""

    pools: tuple[Pool, ...]
    models: tuple[ModelEntry, ...]
    limits: Limits

    def pool_of(self, model: str) -> Pool | None:
        """The pool that serves a model."""
        names = [entry.pool for entry in self.models if entry.model.id == model]
        return next((pool for pool in self.pools if pool.name in names), None)


@dataclass(frozen=True, slots=True)
class Change:
    """What differs between two configurations; names, sorted."""

    pools_added: tuple[str, ...]
    pools_removed: tuple[str, ...]
    pools_changed: tuple[str, ...]
    models_added: tuple[str, ...]
    models_removed: tuple[str, ...]
    models_changed: tuple[str, ...]
    limits_changed: bool

    def __bool__(self) -> bool:
        return self != NO_CHANGE


NO_CHANGE: Final = Change((), (), (), (), (), (), limits_changed=False)


class _Reader:
    """One table, key by key; what was not asked for is unknown."""

    def __init__(self, value: Any, path: str) -> None:
        self.path = path
        if not isinstance(value, dict):
            raise self.bad("", "must be a table")
        self._left = dict(value)

    def bad(self, key: str, message: str, code: str = "configuration-value") -> InvalidInput:
        path = ".".join(part for part in (self.path, key) if part)
        return InvalidInput(code, f"configuration: {path or 'file'}: {message}", hint=HINT)

    def take(self, key: str, default: Any = ...) -> Any:
        if key in self._left:
            return self._left.pop(key)
        if default is ...:
            raise self.bad(key, "is missing")
        return default

    def text(self, key: str, default: Any = ...) -> str:
        value = self.take(key, default)
        if not isinstance(value, str) or not value:
            raise self.bad(key, "must be a text")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self.take(key, default)
        if value not in choices:
            raise self.bad(key, f"must be one of {', '.join(choices)}")
        return str(value)

    def number(
        self, key: str, default: Any = ..., *, least: float = 0.0, most: float = 1e12, above: bool = False
    ) -> float:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise self.bad(key, "must be a number")
        if value < least or value > most or (above and value == least):
            raise self.bad(key, f"must be {'above' if above else 'at least'} {least:g} and at most {most:g}")
        return float(value)

    def whole(self, key: str, default: Any = ..., *, least: int = 0, most: int = 1_000_000) -> int:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.bad(key, f"must be a whole number from {least} to {most}")
        return value

    def tables(self, key: str) -> dict[str, Any]:
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise self.bad(key, "must be a table of tables")
        for name in value:
            if not _NAME.fullmatch(name):
                raise self.bad(f"{key}.{name}", f"a name is {_NAME.pattern}")
        return value

    def done(self) -> None:
        for key in self._left:
            raise self.bad(key, "is not known", "configuration-unknown-key")


def _policies(value: Any, path: str) -> Policies:
    reader, default = _Reader(value, path), Policies()
    made = Policies(
        packer=reader.choice("packer", PACKERS, default.packer),
        cost_weight=reader.number("cost_weight", default.cost_weight, most=1.0),
        balancer=reader.choice("balancer", BALANCERS, default.balancer),
        scaler=reader.choice("scaler", SCALERS, default.scaler),
        window_s=reader.number("window_s", default.window_s, above=True),
        keyless=reader.whole("keyless", default.keyless),
    )
    reader.done()
    return made


def _slowdown(reader: _Reader) -> tuple[float, ...]:
    value = reader.take("slowdown", [1.0])
    good = isinstance(value, list) and value and all(type(v) in {int, float} and isfinite(v) and v >= 1 for v in value)
    if not good or value != sorted(value):
        raise reader.bad("slowdown", "must be a list of numbers from 1 up that never fall")
    return tuple(map(float, value))


def _pool(name: str, value: Any) -> Pool:
    reader = _Reader(value, f"pools.{name}")
    default = Pool(name, 0.0)
    pool = Pool(
        name=name,
        memory_mb=reader.number("memory_mb", above=True),
        runtime_mb=reader.number("runtime_mb", default.runtime_mb),
        instances=reader.whole("instances", default.instances, least=1),
        least=reader.whole("least", default.least),
        concurrency=reader.whole("concurrency", default.concurrency, least=1, most=4096),
        keep_alive_s=reader.number("keep_alive_s", default.keep_alive_s, above=True),
        slowdown=_slowdown(reader),
        slo_ms=reader.number("slo_ms", default.slo_ms, above=True),
        policies=_policies(reader.take("policies", {}), f"pools.{name}.policies"),
    )
    reader.done()
    if pool.memory_mb <= pool.runtime_mb:
        raise reader.bad("memory_mb", f"must be above runtime_mb, which is {pool.runtime_mb:g}")
    if pool.least + pool.policies.keyless > pool.instances:
        raise reader.bad("least", f"with policies.keyless is more than instances, which is {pool.instances}")
    return pool


def _model(name: str, value: Any, pools: dict[str, Pool]) -> ModelEntry:
    reader = _Reader(value, f"models.{name}")
    pool_name = reader.text("pool")
    if pool_name not in pools:
        raise reader.bad("pool", f"there is no pool {pool_name!r}")
    shares = reader.take("shares_with", [])
    if not isinstance(shares, list) or not all(isinstance(owner, str) and owner for owner in shares):
        raise reader.bad("shares_with", f'must be a list of owners, or ["{ANYONE}"]')
    costs = _Reader(reader.take("stages", {}), f"models.{name}.stages")
    stages = Stages(**{stage: costs.number(stage, 0.0) for stage in STAGES})
    costs.done()
    slo = reader.number("slo_ms", pools[pool_name].slo_ms, above=True)
    model = Model(
        id=name,
        owner=reader.text("owner"),
        memory_mb=reader.number("memory_mb", above=True),
        stages=stages,
        shares_with=frozenset(shares),
        slo_ms=slo,
    )
    reader.done()
    room = pools[pool_name].fleet.memory_mb
    if model.memory_mb > room:
        raise reader.bad("memory_mb", f"does not fit: an instance of pool {pool_name!r} has {room:g} MB for models")
    return ModelEntry(pool_name, model)


def _limits(value: Any) -> Limits:
    reader, default = _Reader(value, "limits"), Limits()
    made = Limits(
        queue=reader.whole("queue", default.queue, most=10_000_000),
        deadline_s=reader.number("deadline_s", default.deadline_s, above=True),
        body_bytes=reader.whole("body_bytes", default.body_bytes, least=1, most=1 << 40),
        user_rate=reader.number("user_rate", default.user_rate, above=True),
        user_burst=reader.whole("user_burst", default.user_burst, least=1),
        user_concurrency=reader.whole("user_concurrency", default.user_concurrency, least=1),
    )
    reader.done()
    return made


def parse_configuration(data: bytes) -> Configuration:
    """A configuration from TOML in UTF-8.

    :raises InvalidInput: ``configuration-malformed`` (not TOML), ``configuration-value`` and
        ``configuration-unknown-key`` (both name the key's path).
    """
    if len(data) > MAX_CONFIGURATION:
        raise InvalidInput("configuration-malformed", f"a configuration has at most {MAX_CONFIGURATION} bytes")
    try:
        value = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise InvalidInput("configuration-malformed", f"configuration: not TOML: {error}", hint=HINT) from error
    reader = _Reader(value, "")
    pools = {name: _pool(name, item) for name, item in reader.tables("pools").items()}
    if not pools:
        raise reader.bad("pools", "at least one pool is needed")
    models = [_model(name, item, pools) for name, item in reader.tables("models").items()]
    limits = _limits(reader.take("limits", {}))
    reader.done()
    return Configuration(
        pools=tuple(sorted(pools.values(), key=lambda pool: pool.name)),
        models=tuple(sorted(models, key=lambda entry: entry.model.id)),
        limits=limits,
    )


def diff(old: Configuration, new: Configuration) -> Change:
    """What a reload from ``old`` to ``new`` changes. Pure: it changes nothing itself."""
    old_pools, new_pools = {p.name: p for p in old.pools}, {p.name: p for p in new.pools}
    old_models, new_models = {m.model.id: m for m in old.models}, {m.model.id: m for m in new.models}
    return Change(
        pools_added=tuple(sorted(new_pools.keys() - old_pools.keys())),
        pools_removed=tuple(sorted(old_pools.keys() - new_pools.keys())),
        pools_changed=tuple(sorted(n for n in old_pools.keys() & new_pools.keys() if old_pools[n] != new_pools[n])),
        models_added=tuple(sorted(new_models.keys() - old_models.keys())),
        models_removed=tuple(sorted(old_models.keys() - new_models.keys())),
        models_changed=tuple(
            sorted(n for n in old_models.keys() & new_models.keys() if old_models[n] != new_models[n])
        ),
        limits_changed=old.limits != new.limits,
    )
