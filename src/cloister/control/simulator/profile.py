"""The cost profile: what stages cost, how memory and concurrency behave (docs/reference/profile.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any, Final, NoReturn

from cloister.base.errors import InvalidInput
from cloister.control.snapshot import ANYONE, STAGES, Fleet, Model, Stages

FORMAT: Final = "cloister-profile/1"
MAX_PROFILE_BYTES: Final = 16 * 1024 * 1024  # thousands of models at a few hundred bytes each
MAX_NUMBER: Final = 1e9  # eleven days in ms, a petabyte in MB: sums of such figures stay finite and exact enough


@dataclass(frozen=True, slots=True)
class Hosts:
    """Machines that instances are spread over.

    :param secure_memory_mb: of each machine, ``count`` figures.
    :param page_fault_us: time to bring one 4 KiB page back when a host's secure memory is over-committed.
    """

    count: int
    cores: int
    secure_memory_mb: tuple[float, ...]
    page_fault_us: float


@dataclass(frozen=True, slots=True)
class Profile:
    """See docs/reference/profile.md.

    :param memory_mb: what an instance reserves and is billed for; ``runtime_mb`` of it is not for models.
    :param jitter: sigma of the log-normal factor on every duration; 0 for none.
    :param others: models that stand for names the profile does not have.
    :param overheads_s: of models: what a request waits outside instances, in the client, on the wire, in the gateway.
    """

    origin: str
    instances: int
    memory_mb: float
    runtime_mb: float
    concurrency: int
    keep_alive_s: float
    slo_ms: float
    slowdown: tuple[float, ...]
    hosts: Hosts
    jitter: float
    models: Mapping[str, Model]
    others: tuple[str, ...]
    overheads_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def fleet(self) -> Fleet:
        """Bounds for the dispatcher."""
        return Fleet(
            max_instances=self.instances,
            memory_mb=self.memory_mb - self.runtime_mb,
            concurrency=self.concurrency,
            keep_alive_s=self.keep_alive_s,
            slowdown=self.slowdown,
        )

    def model(self, name: str) -> Model:
        """The model of that name; for a name that is not listed, one of ``others``, chosen by the name's SHA-256.

        :raises InvalidInput: ``profile-model-unknown``, ``model-does-not-fit``.
        """
        known = self.models[self._like(name)]
        if known.id != name:
            known = replace(known, id=name)
        if known.memory_mb > self.memory_mb - self.runtime_mb:
            raise InvalidInput(
                "model-does-not-fit",
                f"model {name!r} needs {known.memory_mb:g} MB, an instance of {self.memory_mb:g} MB has "
                f"{self.memory_mb - self.runtime_mb:g} MB for models",
                hint="Raise --memory-mb or the profile's fleet.memory_mb.",
            )
        return known

    def overhead_s(self, name: str) -> float:
        """Seconds that a request of this model waits outside instances.

        :raises InvalidInput: ``profile-model-unknown``.
        """
        return self.overheads_s.get(self._like(name), 0.0)

    def _like(self, name: str) -> str:
        if name in self.models:
            return name
        if not self.others:
            raise InvalidInput("profile-model-unknown", f"the profile has no model {name!r} and no `others`")
        return self.others[int.from_bytes(sha256(name.encode()).digest()[:8], "big") % len(self.others)]

    def with_caps(
        self, *, instances: int | None = None, memory_mb: float | None = None, slo_ms: float | None = None
    ) -> Profile:
        """This profile with other bounds; a given ``slo_ms`` replaces those of the models too.

        :raises InvalidInput: ``profile-value``.
        """
        changed = self
        if instances is not None:
            changed = replace(changed, instances=_whole(instances, "fleet.instances", 1))
        if memory_mb is not None:
            memory_mb = _number(memory_mb, "fleet.memory_mb", above=True)
            if memory_mb <= self.runtime_mb:
                _bad(
                    "fleet.memory_mb",
                    f"{memory_mb:g} MB leaves nothing for models beside {self.runtime_mb:g} MB of runtime",
                )
            changed = replace(changed, memory_mb=memory_mb)
        if slo_ms is not None:
            slo_ms = _number(slo_ms, "fleet.slo_ms", above=True)
            models = {name: replace(model, slo_ms=slo_ms) for name, model in self.models.items()}
            changed = replace(changed, slo_ms=slo_ms, models=models)
        return changed


def _bad(path: str, message: str) -> NoReturn:
    raise InvalidInput("profile-value", f"profile: {path}: {message}", hint="See docs/reference/profile.md.")


def _table(value: Any, path: str, required: set[str], optional: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        _bad(path, "must be an object")
    for name in sorted(required - set(value)):
        _bad(f"{path}.{name}", "is missing")
    for name in sorted(set(value) - required - (optional or set())):
        _bad(f"{path}.{name}", "is not known")
    return value


def _number(value: Any, path: str, least: float = 0.0, *, above: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        _bad(path, "must be a number")
    if value < least or (above and value == least):
        _bad(path, f"must be {'above' if above else 'at least'} {least:g}")
    if value > MAX_NUMBER:
        _bad(path, f"must be at most {MAX_NUMBER:g}")
    return float(value)


def _whole(value: Any, path: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        _bad(path, f"must be a whole number, at least {least}")
    if value > MAX_NUMBER:
        _bad(path, f"must be at most {MAX_NUMBER:g}")
    return value


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str) or not value:
        _bad(path, "must be a text")
    return value


def _each_host(value: Any, count: int) -> tuple[float, ...]:
    path = "hosts.secure_memory_mb"
    if isinstance(value, list):
        if len(value) != count:
            _bad(path, f"has {len(value)} figures for {count} hosts")
        return tuple(_number(item, f"{path}[{i}]", above=True) for i, item in enumerate(value))
    return (_number(value, path, above=True),) * count


def _model(name: str, value: Any) -> Model:
    path = f"models.{name}"
    table = _table(value, path, {"memory_mb", "stages"}, {"owner", "shares_with", "slo_ms", "overhead_ms"})
    stages = _table(table["stages"], f"{path}.stages", set(STAGES))
    shares = table.get("shares_with", [ANYONE])
    if not isinstance(shares, list):
        _bad(f"{path}.shares_with", "must be a list of owners")
    slo = table.get("slo_ms")
    return Model(
        id=name,
        owner=_text(table.get("owner", "owner"), f"{path}.owner"),
        memory_mb=_number(table["memory_mb"], f"{path}.memory_mb", above=True),
        stages=Stages(**{stage: _number(stages[stage], f"{path}.stages.{stage}") for stage in STAGES}),
        shares_with=frozenset(_text(owner, f"{path}.shares_with") for owner in shares),
        slo_ms=None if slo is None else _number(slo, f"{path}.slo_ms", above=True),
    )


def parse_profile(data: bytes) -> Profile:
    """A profile from JSON.

    :raises InvalidInput: ``profile-malformed`` (not JSON), ``profile-value`` (names the field).
    """
    if len(data) > MAX_PROFILE_BYTES:
        raise InvalidInput("profile-malformed", f"a profile has at most {MAX_PROFILE_BYTES} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("profile-malformed", f"the profile is not JSON: {error}") from error
    top = _table(value, "profile", {"format", "fleet", "slowdown", "hosts", "models"}, {"origin", "jitter", "others"})
    if top["format"] != FORMAT:
        _bad("format", f"must be {FORMAT!r}")
    fleet = _table(
        top["fleet"], "fleet", {"instances", "memory_mb", "concurrency"}, {"runtime_mb", "keep_alive_s", "slo_ms"}
    )
    hosts = _table(top["hosts"], "hosts", {"count", "cores", "secure_memory_mb", "page_fault_us"})
    if not isinstance(top["slowdown"], list) or not top["slowdown"]:
        _bad("slowdown", "must be a list, the first element for one request")
    slowdown = tuple(_number(item, f"slowdown[{i}]", 1.0) for i, item in enumerate(top["slowdown"]))
    if list(slowdown) != sorted(slowdown):
        _bad("slowdown", "must not fall")
    if not isinstance(top["models"], dict) or not top["models"]:
        _bad("models", "must be an object with at least one model")
    models = {name: _model(name, item) for name, item in top["models"].items()}
    others = top.get("others", [])
    if not isinstance(others, list) or any(not isinstance(name, str) or name not in models for name in others):
        _bad("others", "must be a list of names in `models`")
    runtime_mb = _number(fleet.get("runtime_mb", 0), "fleet.runtime_mb")
    memory_mb = _number(fleet["memory_mb"], "fleet.memory_mb", above=True)
    if memory_mb <= runtime_mb:
        _bad("fleet.memory_mb", "must be above fleet.runtime_mb")
    overheads = {
        name: _number(item.get("overhead_ms", 0), f"models.{name}.overhead_ms") / 1000
        for name, item in top["models"].items()
    }
    return Profile(
        overheads_s=overheads,
        origin=str(top.get("origin", "")),
        instances=_whole(fleet["instances"], "fleet.instances", 1),
        memory_mb=memory_mb,
        runtime_mb=runtime_mb,
        concurrency=_whole(fleet["concurrency"], "fleet.concurrency", 1),
        keep_alive_s=_number(fleet.get("keep_alive_s", 60), "fleet.keep_alive_s", above=True),
        slo_ms=_number(fleet.get("slo_ms", 1000), "fleet.slo_ms", above=True),
        slowdown=slowdown,
        hosts=Hosts(
            count=_whole(hosts["count"], "hosts.count", 1),
            cores=_whole(hosts["cores"], "hosts.cores", 1),
            secure_memory_mb=_each_host(hosts["secure_memory_mb"], _whole(hosts["count"], "hosts.count", 1)),
            page_fault_us=_number(hosts["page_fault_us"], "hosts.page_fault_us"),
        ),
        jitter=_number(top.get("jitter", 0), "jitter"),
        models=models,
        others=tuple(others),
    )


def read_profile(path: Path | None) -> Profile:
    """The profile in a file, or the one shipped with the project.

    :raises InvalidInput: as :func:`parse_profile`, and ``file-unreadable``.
    """
    if path is None:
        return parse_profile(files("cloister.control.simulator").joinpath("default_profile.json").read_bytes())
    try:
        return parse_profile(path.read_bytes())
    except OSError as error:
        raise InvalidInput("file-unreadable", f"cannot read the profile {path}: {error.strerror}") from error
