"""Measures a cost profile (docs/reference/profile.md) on this machine: a local cloud, real requests, its own stages.

Each stage is what the runtime or the gateway said it took, median of several; ``sandbox_start`` is what a start took,
from the gateway's command to readiness, beyond ``runtime_init``. What no stage has is added where it belongs: to
``engine_init`` what a warm request took beyond a hot one, to ``overhead_ms`` what a hot one took beyond its stages.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import median, pstdev
from typing import Any, Final

import numpy as np

from cloister.base.errors import InvalidInput
from cloister.base.ids import ModelId
from cloister.client.client import Client
from cloister.client.identity import create_identity
from cloister.client.inference import Outputs
from cloister.control.simulator.profile import FORMAT
from cloister.control.snapshot import LOAD_STAGES, SERVICE_STAGES, STAGES
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.models.small import identity
from cloister.testing.operator import Operator
from cloister.wire.oip import DTYPES

FIRST: Final = "first"  # a model of nothing, which starts instances
COLD_RUNS, HOT_RUNS, TOGETHER_RUNS = 3, 30, 12
PAGE_FAULT_US: Final = 10.0
Feed = Mapping[str, Any]


@dataclass(slots=True)
class Bench:
    """A local cloud, its operator, one owner and one user.

    :param models: name to id and inputs of what was published.
    """

    cloud: LocalCloud
    operator: Operator
    owner: Client
    user: Client
    models: dict[str, tuple[ModelId, Feed]]

    def publish(self, name: str, source: Path) -> None:
        """Pack, publish, grant, consent, and make inputs."""
        policy = self.cloud.runtime_policy()
        packed = self.cloud.folder / f"{name}.packed"
        self.owner.pack(source, packed, name=name)
        self.owner.publish(packed)
        self.owner.grant(name, self.user.account.identity.id, policy)
        model = self.owner.own_model(name)
        self.user.consent(model, policy)
        self.models[name] = (model, feed_of(self.user.metadata(model, deadline_s=120.0)))

    def infer(self, name: str) -> tuple[float, Outputs]:
        """Milliseconds at the user, and what came."""
        model, feed = self.models[name]
        began = time.perf_counter()
        outputs = self.user.infer(model, feed, deadline_s=120.0)
        return (time.perf_counter() - began) * 1000, outputs

    def restart_gateway(self) -> None:
        """With the cloud's settings of now; instances end."""
        self.operator.stop_instances()
        self.cloud.stop_service("gateway")
        gateway = self.cloud.start_gateway(self.user.profile.keyservice)
        self.operator = Operator(self.cloud.folder, gateway)
        profile = self.cloud.write_profile(self.user.profile.keyservice, gateway)
        self.owner.profile = self.user.profile = profile


@contextmanager
def bench(cloud: LocalCloud) -> Iterator[Bench]:
    """Start a cloud and the two people; nothing is left running."""
    try:
        profile = cloud.start()
        people = [Client(profile, create_identity(cloud.home, name)) for name in ("owner", "user")]
        owner, user = people
        with owner, user:
            owner.register()
            user.register()
            found = Bench(cloud, Operator(cloud.folder, profile.gateway), owner, user, {})
            source = cloud.folder / "first.onnx"
            source.write_bytes(identity())
            found.publish(FIRST, source)
            yield found
    finally:
        cloud.stop()


def feed_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs that a model takes: numbers between 0 and 1, or zeros; free dimensions are 1.

    :raises InvalidInput: ``profile-input`` for inputs of bytes or of a type that numpy lacks.
    """
    draws = np.random.Generator(np.random.PCG64(1))
    feed: dict[str, Any] = {}
    for item in metadata["inputs"]:
        kind = DTYPES.get(item["datatype"])
        if kind is None:
            raise InvalidInput("profile-input", f"cannot make up an input of type {item['datatype']}: {item['name']}")
        shape = [max(1, int(dim)) for dim in item["shape"]]
        dtype = kind
        feed[item["name"]] = draws.random(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
    return feed


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one model, in ms; ``starts_ms`` is how long each start took."""

    memory_mb: float
    stages: dict[str, float]
    overhead_ms: float
    starts_ms: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """An entry of the profile's ``models``."""
        stages = {name: round(self.stages[name], 3) for name in STAGES}
        return {"memory_mb": self.memory_mb, "overhead_ms": round(self.overhead_ms, 3), "stages": stages}


def measure_model(there: Bench, name: str, *, cold_runs: int = COLD_RUNS, hot_runs: int = HOT_RUNS) -> Costs:
    """Cold, warm and hot requests of one model, by itself."""
    warm, starts = [], []
    told: dict[str, list[float]] = {}

    def hear(outputs: Outputs, names: Sequence[str]) -> None:
        timing = dict(outputs.provenance.timing_ms)
        for stage in names:
            if stage in timing:
                told.setdefault(stage, []).append(timing[stage])

    for _ in range(cold_runs):
        there.operator.stop_instances()
        before = there.operator.starts()
        _, outputs = there.infer(name)
        after = there.operator.starts()
        starts.append(1000 * (after[0] - before[0]) / max(1, after[1] - before[1]))
        hear(outputs, ("runtime_init", "attest"))
        there.operator.stop_instances()
        there.infer(FIRST)
        took, outputs = there.infer(name)
        warm.append(took)
        hear(outputs, LOAD_STAGES)
    hot = []
    for _ in range(hot_runs):
        took, outputs = there.infer(name)
        hot.append(took)
        hear(outputs, SERVICE_STAGES)
    stages = {stage: median(told.get(stage, [0.0])) for stage in STAGES}
    stages["response_encrypt"] = there.operator.stages().get(("response_encrypt", "hot"), 0.0)
    service = sum(stages[stage] for stage in SERVICE_STAGES)
    load = median(warm) - median(hot)
    stages["engine_init"] += max(0.0, load - sum(stages[stage] for stage in LOAD_STAGES))
    stages["sandbox_start"] = max(0.0, median(starts) - stages["runtime_init"])
    known = next(item for item in there.operator.status()["models"] if item["id"] == str(there.models[name][0]))
    return Costs(float(known["memory_mb"]), stages, max(0.0, median(hot) - service), tuple(starts))


def measure_slowdown(there: Bench, name: str, most: int, *, runs: int = TOGETHER_RUNS) -> list[float]:
    """How much longer an inference takes with 1, 2, ... at once in one instance; never falling."""
    curve: list[float] = []
    alone = 0.0
    for together in range(1, most + 1):
        begin = threading.Barrier(together)

        def caller(begin: threading.Barrier = begin) -> list[float]:
            begin.wait(60)
            return [dict(there.infer(name)[1].provenance.timing_ms)["inference"] for _ in range(runs)]

        with ThreadPoolExecutor(together) as pool:
            callers = [pool.submit(caller) for _ in range(together)]
            value = median(took for one in callers for took in one.result())
        alone = alone or value
        curve.append(round(max(1.0, value / alone if alone else 1.0, *curve[-1:]), 3))
    return curve


def measure_profile(
    there: Bench,
    names: Sequence[str],
    *,
    instances: int,
    cold_runs: int = COLD_RUNS,
    hot_runs: int = HOT_RUNS,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The profile, as JSON: every model by itself, then the heaviest one several at once.

    :param instances: the bound to write into it; one is enough to measure.
    """
    found: dict[str, Costs] = {}
    runtime_mb = 0.0
    for name in names:
        progress(f"{name}: cold, warm, hot")
        found[name] = measure_model(there, name, cold_runs=cold_runs, hot_runs=hot_runs)
    there.operator.stop_instances()
    there.infer(FIRST)
    runtime_mb = max((_resident_mb(process) for process in there.operator.processes()), default=0.0)
    heaviest = max(found, key=lambda name: (found[name].stages["inference"], name))
    progress(f"{heaviest}: up to {there.cloud.concurrency} at once")
    slowdown = measure_slowdown(there, heaviest, there.cloud.concurrency)
    # The factor is on every duration. Starts decide it: they are seconds, and the noise of a request is milliseconds.
    usual = {name: median(costs.starts_ms) for name, costs in found.items()}
    spread = pstdev(log(ms / usual[name]) for name, costs in found.items() for ms in costs.starts_ms if ms > 0)
    load = os.getloadavg()[0]
    return {
        "format": FORMAT,
        "origin": f"Measured by `cloister profile` on a machine with {os.cpu_count()} cores, load average {load:.1f}, "
        f"in simulated TEEs: {cold_runs} cold and warm starts and {hot_runs} hot requests a model, medians; slowdown "
        f"with {heaviest}. page_fault_us is an assumption: nothing pages in a simulated TEE.",
        "fleet": {
            "instances": instances,
            "memory_mb": round(there.cloud.memory_mb + runtime_mb, 1),
            "runtime_mb": round(runtime_mb, 1),
            "concurrency": there.cloud.concurrency,
            "keep_alive_s": there.cloud.keep_alive_s,
            "slo_ms": 1000,
        },
        "slowdown": slowdown,
        "hosts": {
            "count": 1,
            "cores": os.cpu_count() or 1,
            "secure_memory_mb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20),
            "page_fault_us": PAGE_FAULT_US,
        },
        "jitter": round(min(spread, 1.0), 3),
        "models": {name: costs.as_json() for name, costs in found.items()},
        "others": list(found),
    }


def _resident_mb(process: int) -> float:
    """Memory of a process's own, of which the runtime says nothing."""
    for line in Path(f"/proc/{process}/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
