"""What a policy sees: frozen views of instances, models and queues, and the costs the platform measured.

A :class:`Snapshot` is a value. The ledger makes the next one from the last in time that does not grow with the number
of models (``cloister.control.ledger``), so a gateway can afford one for every request. What is made anew for
every event is a named tuple: a frozen dataclass takes several times as long to make.

Units: seconds for times, MB (2^20 bytes) for memory, milliseconds only in :class:`Stages`, as everywhere outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from cloister.control.table import Table

STAGES: Final = (
    "sandbox_start",
    "runtime_init",
    "attest",
    "key_fetch",
    "model_fetch",
    "model_decrypt",
    "engine_init",
    "request_decrypt",
    "inference",
    "response_encrypt",
)
START_STAGES: Final = STAGES[:3]
LOAD_STAGES: Final = STAGES[3:7]
SERVICE_STAGES: Final = STAGES[7:]

KEYLESS: Final = "keyless"  # the group of spare instances
ANYONE: Final = "*"  # in Model.shares_with: owners of every name
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
QUEUE_WINDOW: Final = 64  # how many waiting models, longest waiting first, a snapshot lists


class InstanceState(Enum):
    """Life of an instance."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # finishes what it has, gets nothing new
    SPARE = "spare"  # attested, holds no keys, belongs to nobody yet: the next start takes it
    BROKEN = "broken"  # its circuit is open: gets nothing until it is halted or closes again


class Holding(Enum):
    """How much of a model an instance has."""

    KEYS = "keys"
    MODEL = "model"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Stages:
    """Measured cost of each stage for one model, in milliseconds; fields are named as in metrics and traces."""

    sandbox_start: float = 0.0
    runtime_init: float = 0.0
    attest: float = 0.0
    key_fetch: float = 0.0
    model_fetch: float = 0.0
    model_decrypt: float = 0.0
    engine_init: float = 0.0
    request_decrypt: float = 0.0
    inference: float = 0.0
    response_encrypt: float = 0.0

    def total_ms(self, names: tuple[str, ...]) -> float:
        """The sum of the named stages."""
        return float(sum(getattr(self, name) for name in names))


assert tuple(f.name for f in fields(Stages)) == STAGES  # noqa: S101  # a definition, checked where it is made


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the control plane knows it: never its contents.

    :param owner: whose model it is.
    :param memory_mb: what it takes in an instance once loaded.
    :param shares_with: owners (or ``*``) whose models may be in the same instance; both sides must agree.
    :param slo_ms: the declared bound of p99 latency, if there is one.
    """

    id: str
    owner: str
    memory_mb: float
    stages: Stages
    shares_with: frozenset[str] = frozenset()
    slo_ms: float | None = None
    start_s: float = field(init=False)
    load_s: float = field(init=False)
    service_s: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "start_s", self.stages.total_ms(START_STAGES) / 1000)
        object.__setattr__(self, "load_s", self.stages.total_ms(LOAD_STAGES) / 1000)
        object.__setattr__(self, "service_s", self.stages.total_ms(SERVICE_STAGES) / 1000)

    def may_share(self, other: Model) -> bool:
        """True when both owners allow the two models in one instance."""
        if self.owner == other.owner:
            return True
        return (ANYONE in self.shares_with or other.owner in self.shares_with) and (
            ANYONE in other.shares_with or self.owner in other.shares_with
        )


class Resident(NamedTuple):
    """A model, or part of one, in an instance.

    :param ready_at: when it is, or is expected to be, ready to infer.
    :param last_used: when a request for it last came or ended here.
    """

    memory_mb: float
    holding: Holding
    ready_at: float
    last_used: float


class Instance(NamedTuple):
    """One runtime.

    :param group: what it was started for: a model, a function of a pool, or the pool (see each packer).
    :param concurrency: requests it serves at once.
    :param memory_mb: its budget for models.
    :param in_flight: requests sent and not answered; ``running`` has them by model.
    :param planned: models it was started for; they are not resident yet.
    :param pressure: share of time it loses to secure-memory pressure, 0 to below 1 (``PressureSource``).
    :param expected_at: when a starting instance is expected to be ready.
    """

    id: str
    group: str
    state: InstanceState
    concurrency: int
    memory_mb: float
    host: str = ""
    used_mb: float = 0.0
    in_flight: int = 0
    running: Mapping[str, int] = _NOTHING
    residents: Mapping[str, Resident] = _NOTHING
    planned: tuple[str, ...] = ()
    owners: frozenset[str] = frozenset()
    pressure: float = 0.0
    launched_at: float = 0.0
    expected_at: float = 0.0
    last_used: float = 0.0

    @property
    def open_slots(self) -> int:
        """Requests it could take now."""
        return self.concurrency - self.in_flight if self.state is InstanceState.READY else 0


class Activity(NamedTuple):
    """What was seen of a model's requests.

    :param gaps: histogram of the time between arrivals (``cloister.control.gaps``).
    :param in_flight: sent to an instance, not answered.
    :param execution_s: how long the last one took on its instance.
    """

    arrivals: int = 0
    last_arrival: float = 0.0
    gaps: tuple[float, ...] = ()
    in_flight: int = 0
    last_completion: float = 0.0
    execution_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Queue:
    """Requests for one model that wait in the gateway."""

    count: int
    head_arrived: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """Bounds and prices of one pool of identical instances.

    :param max_instances: never more at a time, starting and draining ones included.
    :param memory_mb: budget for models in one instance.
    :param concurrency: requests an instance serves at once.
    :param keep_alive_s: how long this platform keeps an idle instance to spare somebody a cold start. It is the
        operator's own exchange rate between memory and waiting, and the only one that policies use.
    :param slowdown: ``slowdown[k-1]`` is how much longer an inference takes when k run in one instance.
    """

    max_instances: int
    memory_mb: float
    concurrency: int
    keep_alive_s: float = 60.0
    slowdown: tuple[float, ...] = (1.0,)

    def slower(self, running: int) -> float:
        """Slowdown with ``running`` requests in one instance; past the measured end it grows in proportion."""
        curve = self.slowdown
        if running <= len(curve):
            return curve[running - 1] if running > 0 else 1.0
        return curve[-1] * running / len(curve)


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the control plane sees it: no contents."""

    id: str
    model: str
    user: str
    arrived: float


NO_ACTIVITY: Final = Activity()


class Snapshot(NamedTuple):
    """The whole picture at one moment.

    :param order: instances alive, oldest first.
    :param holders: model to the instances that have it or are loading it, oldest first.
    :param groups: group to its instances, oldest first.
    :param waiting: up to ``QUEUE_WINDOW`` models with waiting requests, longest waiting head first.
    :param backlog: requests waiting, over all models.
    :param open_slots: requests that all ready instances together could take now.
    :param starting: instances starting.
    :param traffic: arrivals of all models together.
    :param spares: spare instances (``InstanceState.SPARE``).
    """

    fleet: Fleet
    models: Table[Model]
    instances: Table[Instance]
    order: tuple[str, ...]
    holders: Table[tuple[str, ...]]
    groups: Table[tuple[str, ...]]
    activity: Table[Activity]
    queues: Table[Queue]
    waiting: tuple[str, ...]
    backlog: int
    open_slots: int
    starting: int
    traffic: Activity
    spares: int = 0

    @property
    def room(self) -> int:
        """Instances that may still be started, or taken from the spare ones."""
        return self.fleet.max_instances - len(self.order) + self.spares

    def seen(self, model: str) -> Activity:
        """Activity of a model; all zero when it has had no request."""
        return self.activity.get(model) or NO_ACTIVITY

    def queued(self, model: str) -> int:
        """Requests of a model that wait."""
        queue = self.queues.get(model)
        return queue.count if queue is not None else 0

    def holding(self, model: str) -> tuple[Instance, ...]:
        """Instances that have a model or are loading it, oldest first."""
        return tuple(self.instances.several(self.holders.get(model) or ()))

    def members(self, group: str) -> tuple[Instance, ...]:
        """Instances of a group, oldest first."""
        return tuple(self.instances.several(self.groups.get(group) or ()))
