"""The ten stages of a request, timed by stage and path, and the bytes that models fetched again cost (clause 9.6).

Towards the operator: histograms. Towards the user: the field ``server-timing`` inside the sealed response.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from time import perf_counter
from typing import Final

from cloister.adapters.metrics import Registry


class Stage(StrEnum):
    """The same names in metrics, traces, benchmarks and documents (ARCHITECTURE.md, life of a request)."""

    SANDBOX_START = "sandbox_start"
    RUNTIME_INIT = "runtime_init"
    ATTEST = "attest"
    KEY_FETCH = "key_fetch"
    MODEL_FETCH = "model_fetch"
    MODEL_DECRYPT = "model_decrypt"
    ENGINE_INIT = "engine_init"
    REQUEST_DECRYPT = "request_decrypt"
    INFERENCE = "inference"
    RESPONSE_ENCRYPT = "response_encrypt"


class Path(StrEnum):
    """How much had to be done for a request."""

    COLD = "cold"
    WARM = "warm"
    HOT = "hot"


_HOT_STAGES: Final = frozenset({Stage.REQUEST_DECRYPT, Stage.INFERENCE, Stage.RESPONSE_ENCRYPT})
_COLD_STAGES: Final = frozenset({Stage.SANDBOX_START, Stage.RUNTIME_INIT, Stage.ATTEST})

_REMEMBERED: Final = 4096  # models; enough to see thrashing, and it never grows
BOUNDS_S: Final = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
)  # fmt: skip


class Timings:
    """Seconds spent by one request in each stage. One request is in one thread at a time."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {}

    def add(self, stage: Stage, seconds: float) -> None:
        """Count ``seconds`` to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Time what happens inside."""
        started = perf_counter()
        try:
            yield
        finally:
            self.add(stage, perf_counter() - started)

    @property
    def path(self) -> Path:
        """Hot when only the last three stages ran, cold when the process or its attestation was part of it."""
        if not self.seconds.keys() - _HOT_STAGES:
            return Path.HOT
        return Path.COLD if self.seconds.keys() & _COLD_STAGES else Path.WARM

    def server_timing(self) -> str:
        """RFC 8941-style ``name;dur=milliseconds``, to two significant digits: a user's own timing needs no more."""
        entries = [f"{stage};dur={float(f'{1e3 * value:.2g}'):g}" for stage, value in self.seconds.items()]
        return ", ".join([f'path;desc="{self.path}"', *entries])


class StageMetrics:
    """Histograms per stage and path, requests per path and outcome, churn; no user, no model, no exact size (S10).

    Safe for many threads.
    """

    def __init__(self, registry: Registry) -> None:
        self._stages = registry.histogram(
            "cloister_stage_seconds", "Time in each stage of a request.", ("stage", "path"), bounds=BOUNDS_S
        )
        self._requests = registry.counter(
            "cloister_requests_total", "Requests by path and outcome: ok, or the error's code.", ("path", "outcome")
        )
        self._fetched = registry.counter("cloister_model_bytes_total", "Bytes of models fetched and decrypted.")
        self._churn = registry.counter("cloister_churn_bytes_total", "Bytes of models fetched and decrypted again.")
        self._lock = threading.Lock()
        self._seen: dict[object, None] = {}

    @property
    def churn_bytes(self) -> int:
        """Bytes of models fetched and decrypted again: memory is too small for what is asked of this instance."""
        return int(self._churn.value())

    @property
    def fetched_bytes(self) -> int:
        """Bytes of models fetched and decrypted."""
        return int(self._fetched.value())

    def observe(self, timings: Timings) -> None:
        """A request is done."""
        path = timings.path.value
        for stage, seconds in timings.seconds.items():
            self._stages.observe(seconds, stage.value, path)

    def count(self, path: str, outcome: str) -> None:
        """A request ended: ``outcome`` is ``ok`` or a stable error code of ours."""
        self._requests.add(path, outcome)

    def loaded(self, model: object, size: int) -> None:
        """A model was fetched and decrypted; again, if it had been here before: that is churn."""
        self._fetched.add(amount=size)
        with self._lock:
            again = model in self._seen
            self._seen[model] = None
            if len(self._seen) > _REMEMBERED:
                del self._seen[next(iter(self._seen))]
        if again:
            self._churn.add(amount=size)
