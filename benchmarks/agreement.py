"""Does the simulator agree with the real local platform? The same arrivals through both, side by side.

    python benchmarks/agreement.py [--seconds 600] [--policy adaptive] [--json]

First a profile is measured (what `cloister profile` does), in the local cloud that then serves the replay: KeyService,
gateway and runtimes as processes, requests through the SDK, each sent at its time whether or not others were answered.
The simulator replays the same arrivals with that profile and the same policies. Four small networks at about one
request a second, so that a loaded machine can do it; instances hold two of the four, and go after 15 s without work.

Cold starts are instances started. GB-seconds of the real fleet are sampled four times a second from the gateway's
status page. Latencies of the real fleet are at the user, from the time a request was due.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cloister.base.errors import CloisterError
from cloister.control.policies import PACKERS, balancer, packer, scaler
from cloister.control.simulator.profile import Profile, parse_profile
from cloister.control.simulator.result import summarise
from cloister.control.simulator.workload import Arrival, merge, poisson, sessions
from cloister.control.simulator.world import World
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.models.small import small_convnet
from cloister.testing.profiling import Bench, bench, measure_profile

SIDES = {"often": 64, "sometimes": 96, "rare-1": 128, "rare-2": 128}
INSTANCES, CONCURRENCY, KEEP_ALIVE_S = 3, 2, 15.0
SAMPLE_S = 0.25
PATHS = ("cold", "warm", "hot")


def workload(seconds: float, seed: int) -> list[Arrival]:
    """A steady model with pauses of its own, one that comes now and then, and visitors who try two rare ones."""
    return merge(
        poisson(0.6, seconds, "often", seed=seed),
        poisson(0.15, seconds, "sometimes", seed=seed + 1),
        sessions(["rare-1", "rare-2"], 40.0, 3.0, seconds, seed=seed + 2),
    )


def replay(there: Bench, arrivals: list[Arrival], memory_mb: float) -> dict[str, Any]:
    """Through the SDK, in real time."""
    latencies: list[float] = []
    failed: list[str] = []
    gb_seconds, most = 0.0, 0
    over = threading.Event()

    def one(due: float, name: str) -> None:
        try:
            there.infer(name)
            latencies.append((time.perf_counter() - due) * 1000)
        except CloisterError as error:
            failed.append(repr(error))

    def sample() -> None:
        nonlocal gb_seconds, most
        last = time.perf_counter()
        while not over.wait(SAMPLE_S):
            up = len(there.operator.status()["instances"])
            now = time.perf_counter()
            gb_seconds, last, most = gb_seconds + up * (now - last) * memory_mb / 1024, now, max(most, up)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        with ThreadPoolExecutor(32) as pool:
            begin = time.perf_counter()
            for item in arrivals:
                time.sleep(max(0.0, begin + item.time_s - time.perf_counter()))
                pool.submit(one, begin + item.time_s, item.model)
    finally:
        over.set()
        sampler.join()
    return {
        "requests": len(arrivals),
        "lost": len(failed),
        "mean_ms": float(np.mean(latencies)),
        "p50_ms": float(np.percentile(latencies, 50)),
        "p99_ms": float(np.percentile(latencies, 99)),
        "cold_starts": there.operator.starts()[1],
        "gb_seconds": gb_seconds,
        "instances_max": most,
        "paths": there.operator.paths(),
        "failures": failed[:3],
    }


def predict(profile: Profile, arrivals: list[Arrival], policy: str, seed: int) -> dict[str, Any]:
    """The same in the simulator, with the gateway's default balancer and scaler."""
    world = World(profile, packer(policy), balancer("least-outstanding"), scaler("keep-alive"), seed=seed)
    record = world.run(arrivals)
    result = summarise(record).as_json()
    paths = {path.value: (n, record.path_ms[path] / max(1, n)) for path, n in record.paths.items()}
    kept = {name: result[name] for name in ("requests", "lost", "mean_ms", "p50_ms", "p99_ms")}
    rest = {"gb_seconds": result["gb_seconds"], "instances_max": result["instances_max"], "paths": paths}
    return kept | {"cold_starts": record.launches} | rest


def why(predicted: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """The difference of the means, taken apart: other paths taken, or the same paths at another price."""
    total = max(1, measured["requests"])
    lines = []
    for path in PATHS:
        expected, mean = predicted["paths"][path]
        count, real = measured["paths"][path]
        other, price = (count - expected) * mean / total, count * (real - mean) / total
        lines.append(
            f"  {path:4}  {expected:5d} predicted at {mean:7.1f} ms, {count:5d} measured at {real:7.1f} ms: "
            f"{other:+7.1f} ms of the mean by other paths, {price:+7.1f} ms by another price"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--policy", choices=PACKERS, default="adaptive")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cold-runs", type=int, default=3)
    parser.add_argument("--profile", type=Path, help="write the measured profile there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    arrivals = workload(options.seconds, options.seed)
    with tempfile.TemporaryDirectory(prefix="cloister-agreement-") as name:
        folder = Path(name)
        cloud = LocalCloud(
            folder / "cloud",
            concurrency=CONCURRENCY,
            memory_mb=20,
            instances=1,
            keep_alive_s=600.0,
            packer="all-in-one",
        )
        with bench(cloud) as there:
            for seed, (model, side) in enumerate(SIDES.items()):
                (folder / f"{model}.onnx").write_bytes(small_convnet(seed=seed, side=side))
                there.publish(model, folder / f"{model}.onnx")
            value = measure_profile(there, list(SIDES), instances=INSTANCES, cold_runs=options.cold_runs)
            value["fleet"]["keep_alive_s"] = KEEP_ALIVE_S
            profile = parse_profile(json.dumps(value).encode())
            if options.profile is not None:
                options.profile.write_text(json.dumps(value, indent=2) + "\n")
            cloud.instances, cloud.keep_alive_s, cloud.packer = INSTANCES, KEEP_ALIVE_S, options.policy
            there.restart_gateway()
            before = os.getloadavg()
            measured = replay(there, arrivals, profile.memory_mb)
            after = os.getloadavg()
    predicted = predict(profile, arrivals, options.policy, options.seed)
    load = {"before": before[0], "after": after[0]}
    if options.json:
        print(json.dumps({"predicted": predicted, "measured": measured, "load": load}, indent=2))
        return
    print(
        f"{options.policy}, {options.seconds:g} s; load average {load['before']:.1f} before, {load['after']:.1f} after"
    )
    print(f"{'':14}{'predicted':>12}{'measured':>12}")
    for key in ("requests", "lost", "mean_ms", "p50_ms", "p99_ms", "cold_starts", "gb_seconds", "instances_max"):
        print(f"{key:14}{predicted[key]:12.1f}{measured[key]:12.1f}")
    print("why the means differ:", *why(predicted, measured), sep="\n")


if __name__ == "__main__":
    main()
