"""What starting an instance, loading a model and answering take, as the gateway sees it from outside. Pure.

Runtimes tell stages by histogram and never by model (S10), so a model's own costs are measured here: a hot request is
its service, a request that loads is service and load, and a start is the time from the command to readiness.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from cloister.control.snapshot import Model, Stages

SMOOTHING: Final = 1 / 8  # weight of the newest observation, as in TCP's round-trip estimate (RFC 6298)
NOTEWORTHY: Final = 0.05  # policies are told when an estimate has moved by so much

# First guesses, each replaced by the first observation: this machine's figures for a small model (PERFORMANCE.md).
FIRST_START_S: Final = 1.0
FIRST_SERVICE_S: Final = 0.02
FIRST_LOAD_S: Final = 0.1
LOAD_MB_PER_S: Final = 500.0


def first_guess(memory_mb: float) -> Stages:
    """Of a model that was never seen."""
    load = FIRST_LOAD_S + memory_mb / LOAD_MB_PER_S
    return Stages(sandbox_start=FIRST_START_S * 1000, model_fetch=load * 1000, inference=FIRST_SERVICE_S * 1000)


@dataclass(slots=True)
class _Seen:
    load_s: float | None = None
    service_s: float | None = None


class Costs:
    """Estimates; grows with the number of models that are asked for."""

    def __init__(self) -> None:
        self._start_s: float | None = None
        self._seen: dict[str, _Seen] = {}
        self._changed: set[str] = set()

    @property
    def start_s(self) -> float | None:
        """Seconds from a start's command to readiness; None before the first."""
        return self._start_s

    def started(self, seconds: float) -> None:
        """An instance came up."""
        self._start_s = _mean(self._start_s, seconds)

    def answered(self, model: str, seconds: float, *, hot: bool, loaded: bool, slowdown: float) -> None:
        """A request was answered well, ``seconds`` after it was sent.

        :param loaded: the instance had to load the model for it.
        :param slowdown: by what ran beside it.
        """
        seen = self._seen.get(model)
        if seen is None:
            seen = self._seen[model] = _Seen()
        if hot:
            seen.service_s = _mean(seen.service_s, seconds / slowdown)
        elif loaded:
            seen.load_s = _mean(seen.load_s, max(0.0, seconds - (seen.service_s or 0.0)))
        else:
            return
        self._changed.add(model)

    def changed(self) -> set[str]:
        """Models with new observations since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def applied(self, model: Model) -> Model:
        """``model`` with what was seen; the same object when that is no news."""
        seen = self._seen.get(model.id, _Seen())
        stages = model.stages
        wanted = (self._start_s, seen.load_s, seen.service_s)
        if not any(_moved(new, old) for new, old in zip(wanted, (model.start_s, model.load_s, model.service_s))):  # noqa: B905
            return model
        if self._start_s is not None:
            stages = replace(stages, sandbox_start=self._start_s * 1000, runtime_init=0.0, attest=0.0)
        if seen.load_s is not None:
            stages = replace(stages, key_fetch=0.0, model_fetch=seen.load_s * 1000, model_decrypt=0.0, engine_init=0.0)
        if seen.service_s is not None:
            stages = replace(stages, request_decrypt=0.0, inference=seen.service_s * 1000, response_encrypt=0.0)
        return replace(model, stages=stages)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + (new - old) * SMOOTHING


def _moved(new: float | None, old: float) -> bool:
    return new is not None and abs(new - old) > NOTEWORTHY * max(old, 1e-6)
