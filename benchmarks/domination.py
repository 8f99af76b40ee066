"""Hunts for workloads on which ``adaptive`` loses: made-up cases, each under every packer with the same caps.

    python benchmarks/domination.py [--cases 200] [--seed 1] [--requests 4000] [--only FAMILY] [--json FILE]

A case is a workload and a platform, both drawn from the seed and the case's number: what comes, how often, for how
long, from whom; how many instances of which size, how long starts, loads and inferences take, who shares with whom.
Of each case four things are said: whether another policy dominates ``adaptive`` (at least as good on mean, p99 and
GB-seconds, better on one), whether weight 0 stays within 5 % of one-to-one's mean, weight 1 within 5 % of
all-in-one's GB-seconds, and on the packer's own workload whether ``adaptive`` beats ``fnpacker`` on all three.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cloister.control.policies import balancer, packer, scaler
from cloister.control.simulator.profile import Hosts, Profile, read_profile
from cloister.control.simulator.result import Result, summarise
from cloister.control.simulator.workload import (
    Arrival,
    burst,
    merge,
    mmpp,
    poisson,
    sessions,
    steady_and_interactive,
    zipf,
)
from cloister.control.simulator.world import World
from cloister.control.snapshot import Model, Stages

Rng = np.random.Generator
RIVALS = ("one-to-one", "all-in-one", "fnpacker")
WITHIN = 1.05


@dataclass(frozen=True, slots=True)
class Case:
    """A workload on a platform."""

    name: str
    profile: Profile
    arrivals: list[Arrival]


# ---- platforms -----------------------------------------------------------------------------------------------------


def _scaled(model: Model, start: float, load: float, service: float) -> Model:
    kept = model.stages
    stages = Stages(
        sandbox_start=kept.sandbox_start * start,
        runtime_init=kept.runtime_init * start,
        attest=kept.attest * start,
        key_fetch=kept.key_fetch * load,
        model_fetch=kept.model_fetch * load,
        model_decrypt=kept.model_decrypt * load,
        engine_init=kept.engine_init * load,
        request_decrypt=kept.request_decrypt,
        inference=kept.inference * service,
        response_encrypt=kept.response_encrypt,
    )
    return replace(model, stages=stages)


def platform(rng: Rng) -> tuple[str, Profile]:
    """The shipped profile, or one that differs in everything that a profile can say."""
    profile = read_profile(None)
    kind = str(rng.choice(["shipped", "slow-start", "slow-load", "slow-both", "free-start", "fast-service", "drawn"]))
    factors = {
        "shipped": (1.0, 1.0, 1.0),
        "slow-start": (20.0, 1.0, 1.0),
        "slow-load": (1.0, 20.0, 1.0),
        "slow-both": (20.0, 10.0, 1.0),
        "free-start": (0.0, 1.0, 1.0),
        "fast-service": (10.0, 3.0, 0.1),
        "drawn": tuple(float(10 ** rng.uniform(-1.0, 2.0)) for _ in range(3)),
    }[kind]
    start, load, service = factors
    models = {name: _scaled(model, start, load, service) for name, model in profile.models.items()}
    if rng.random() < 0.2:  # owners who share with nobody
        models = {name: replace(model, owner=name, shares_with=frozenset()) for name, model in models.items()}
        kind += ",apart"
    concurrency = int(rng.choice([1, 2, 4, 4, 4, 16]))
    slowdown = profile.slowdown if concurrency == 4 else tuple(1.0 + 0.2 * n for n in range(concurrency))
    hosts = profile.hosts
    if rng.random() < 0.15:
        hosts = Hosts(count=2, cores=int(rng.choice([2, 8])), secure_memory_mb=(600.0, 4096.0), page_fault_us=10.0)
        kind += ",hosts"
    instances = int(rng.choice([1, 2, 3, 4, 8, 16, 16, 64]))
    memory_mb = float(rng.choice([320, 400, 512, 512, 1024, 4096]))
    keep_alive_s = float(rng.choice([10, 60, 60, 60, 300]))
    jitter = float(rng.choice([0.0, 0.05, 0.05, 0.3]))
    kind += f" n={instances} mb={memory_mb:g} c={concurrency} ka={keep_alive_s:g} j={jitter:g}"
    return kind, replace(
        profile,
        models=models,
        concurrency=concurrency,
        slowdown=slowdown,
        hosts=hosts,
        instances=instances,
        memory_mb=memory_mb,
        keep_alive_s=keep_alive_s,
        jitter=jitter,
    )


# ---- workloads -----------------------------------------------------------------------------------------------------


def _names(rng: Rng, count: int) -> list[str]:
    if rng.random() < 0.5:
        return [f"m{n}" for n in range(count)]
    pool = ["mobilenet", "densenet", "resnet"]
    return [pool[n] if n < len(pool) else f"m{n}" for n in range(count)]


def _packer(rng: Rng, most: int, seed: int) -> list[Arrival]:
    rate = float(rng.choice([1.0, 2.0, 4.0, 8.0]))
    return steady_and_interactive(most / (2 * rate), seed=seed, rate=rate, rare=int(rng.integers(3, 9)))


def _interactive(rng: Rng, most: int, seed: int) -> list[Arrival]:
    names = _names(rng, int(rng.integers(2, 12)))
    every, think = float(rng.choice([5, 20, 60, 300])), float(rng.choice([1, 3, 15]))
    rounds = int(rng.integers(1, 4))
    return sessions(names, every, think, most / len(names) / rounds * every, seed=seed, rounds=rounds)


def _poisson(rng: Rng, most: int, seed: int) -> list[Arrival]:
    names = _names(rng, int(rng.integers(1, 8)))
    rates = [float(10 ** rng.uniform(-2.0, 1.5)) for _ in names]
    seconds = min(7200.0, most / sum(rates))
    parts = enumerate(zip(names, rates, strict=True))
    return merge(*(poisson(rate, seconds, name, seed=seed + n) for n, (name, rate) in parts))


def _mmpp(rng: Rng, most: int, seed: int) -> list[Arrival]:
    names = _names(rng, int(rng.integers(1, 8)))
    loud = float(rng.choice([2.0, 8.0, 30.0]))
    stay = float(rng.choice([5.0, 40.0, 120.0]))
    seconds = min(7200.0, most / (len(names) * loud / 2))
    return merge(*(mmpp([loud / 80, loud], stay, seconds, name, seed=seed + n) for n, name in enumerate(names)))


def _zipf(rng: Rng, most: int, seed: int) -> list[Arrival]:
    count = int(rng.choice([10, 100, 1000, 5000]))
    rate = float(rng.choice([1.0, 5.0, 20.0, 60.0]))
    return zipf(rate, most / rate, count, seed=seed, exponent=float(rng.choice([0.7, 1.1, 1.6])))


def _burst(rng: Rng, most: int, seed: int) -> list[Arrival]:
    loud, length = float(rng.choice([20, 60, 200])), float(rng.choice([5, 30]))
    seconds = 600.0
    calm = min(1.0, most / seconds / 2)
    return burst(calm, loud, begin_s=200.0, length_s=length, duration_s=seconds, model=_names(rng, 1)[0], seed=seed)


def _diurnal(rng: Rng, most: int, seed: int) -> list[Arrival]:
    period, names = float(rng.choice([120.0, 600.0, 1800.0])), _names(rng, int(rng.integers(1, 6)))
    out = []
    for n, name in enumerate(names):
        rate = float(10 ** rng.uniform(-1.0, 1.0))
        all_day = poisson(2 * rate, min(2 * period, most / rate / len(names)), name, seed=seed + n)
        draws, phase = np.random.default_rng(seed + 100 + n), float(rng.uniform(0, 6.28))
        out.append([a for a in all_day if draws.random() < (1 + np.sin(6.283 * a.time_s / period + phase)) / 2])
    return merge(*out)


def _on_off(rng: Rng, most: int, seed: int) -> list[Arrival]:
    names, on, off = _names(rng, int(rng.integers(1, 6))), float(rng.choice([10, 60])), float(rng.choice([20, 90, 400]))
    rate = float(rng.choice([0.5, 4.0, 15.0]))
    out, draws = [], np.random.default_rng(seed)
    for n, name in enumerate(names):
        at = float(draws.uniform(0, on + off))
        for turn in range(max(2, int(most / (rate * on * len(names))))):
            if turn > 15:
                break
            out.append(poisson(rate, on, name, seed=seed + 97 * turn + n, start_s=at))
            at += on + off
    return merge(*out)


def _batches(rng: Rng, most: int, seed: int) -> list[Arrival]:
    names, size = _names(rng, int(rng.integers(1, 6))), int(rng.choice([3, 10, 50, 100]))
    every = float(rng.choice([10.0, 60.0, 200.0]))
    draws, out, at = np.random.default_rng(seed), [], 0.0
    for _ in range(max(1, min(60, most // size))):
        out += [Arrival(at, names[int(draws.integers(len(names)))], f"u{n % 3}") for n in range(size)]
        at += float(draws.exponential(every))
    return out


def _regular(rng: Rng, most: int, _seed: int) -> list[Arrival]:
    names = _names(rng, int(rng.integers(1, 8)))
    out = []
    for name in names:
        every, offset = float(10 ** rng.uniform(-0.5, 2.3)), float(rng.uniform(0, 5))
        count = min(most // len(names), int(7200 / every))
        out.append([Arrival(offset + every * n, name, f"u{n % 5}") for n in range(count)])
    return merge(*out)


def _once(rng: Rng, _most: int, _seed: int) -> list[Arrival]:
    count = int(rng.choice([1, 5, 100]))
    names = _names(rng, int(rng.integers(1, 7)))
    return [Arrival(0.0, names[n % len(names)], f"u{n % 7}") for n in range(count)]


def _alternating(rng: Rng, most: int, seed: int) -> list[Arrival]:
    """Two models that do not fit together, in turn: the worst for an instance that switches."""
    draws, out, at = np.random.default_rng(seed), [], 0.0
    mean = float(rng.choice([0.05, 0.3, 2.0, 20.0]))
    names = ["resnet", str(rng.choice(["resnet-like-12", "densenet"]))]
    for n in range(min(most, 2000)):
        out.append(Arrival(at, names[n % 2], f"u{n % 2}"))
        at += float(draws.exponential(mean))
    return out


FAMILIES: dict[str, Callable[[Rng, int, int], list[Arrival]]] = {
    "packer": _packer,
    "interactive": _interactive,
    "poisson": _poisson,
    "mmpp": _mmpp,
    "zipf": _zipf,
    "burst": _burst,
    "diurnal": _diurnal,
    "on-off": _on_off,
    "batches": _batches,
    "regular": _regular,
    "once": _once,
    "alternating": _alternating,
}


def case(number: int, seed: int, most: int, only: str | None = None) -> Case:
    """The case of that number."""
    rng = np.random.default_rng([seed, number])
    kinds = list(FAMILIES)
    family = only or kinds[number % len(kinds)]
    kind, profile = platform(rng)
    made = FAMILIES[family](rng, most, int(rng.integers(1, 1 << 30)))[: 2 * most]
    return Case(f"#{number} {family} {kind}", profile, made)


# ---- judging -------------------------------------------------------------------------------------------------------


def run(there: Case, name: str, *, seed: int, weight: float = 0.5, scaling: str = "keep-alive") -> Result:
    """One policy on one case, with the command's default balancer."""
    scales = scaler(scaling, slo_ms=there.profile.slo_ms, window_s=there.profile.keep_alive_s)
    world = World(there.profile, packer(name, cost_weight=weight), balancer("tee-aware"), scales, seed=seed)
    return summarise(world.run(there.arrivals))


def figures(result: Result) -> tuple[float, float, float]:
    """What policies are compared by."""
    return result.mean_ms, result.p99_ms, result.gb_seconds


def dominates(other: Result, ours: Result) -> bool:
    """True when ``other`` is at least as good on all three, and better on one."""
    a, b = figures(other), figures(ours)
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def judge(there: Case, *, seed: int, scaling: str = "keep-alive") -> tuple[list[str], dict[str, Result]]:
    """What is wrong with ``adaptive`` on this case, and all figures."""
    runs = {name: run(there, name, seed=seed, scaling=scaling) for name in (*RIVALS, "adaptive")}
    runs["adaptive 0"] = run(there, "adaptive", seed=seed, weight=0.0, scaling=scaling)
    runs["adaptive 1"] = run(there, "adaptive", seed=seed, weight=1.0, scaling=scaling)
    wrong = [f"dominated by {name}" for name in RIVALS if dominates(runs[name], runs["adaptive"])]
    if runs["adaptive 0"].mean_ms > WITHIN * runs["one-to-one"].mean_ms:
        wrong.append(f"weight 0: {runs['adaptive 0'].mean_ms / runs['one-to-one'].mean_ms:.2f} x mean")
    if runs["adaptive 1"].gb_seconds > WITHIN * runs["all-in-one"].gb_seconds:
        wrong.append(f"weight 1: {runs['adaptive 1'].gb_seconds / runs['all-in-one'].gb_seconds:.2f} x cost")
    if " packer " in there.name:
        pairs = zip(figures(runs["adaptive"]), figures(runs["fnpacker"]), ("mean", "p99", "cost"), strict=True)
        missed = [what for ours, theirs, what in pairs if not ours < theirs]
        if missed:
            wrong.append("fnpacker not beaten on " + ", ".join(missed))
    if any(result.lost for result in runs.values()):
        wrong.append("lost")
    return wrong, runs


def main() -> None:
    """Hunt, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=4000, help="about how many a case")
    parser.add_argument("--only", choices=FAMILIES)
    parser.add_argument("--scaler", default="keep-alive")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    found: list[dict[str, Any]] = []
    for number in range(options.first, options.first + options.cases):
        there = case(number, options.seed, options.requests, options.only)
        if not there.arrivals:
            continue
        wrong, runs = judge(there, seed=options.seed, scaling=options.scaler)
        counts["cases"] += 1
        counts.update(what.split(":")[0].split(" on ")[0] for what in wrong)
        if wrong:
            print(
                f"{there.name}, {len(there.arrivals)} requests in {there.arrivals[-1].time_s:.0f} s: {'; '.join(wrong)}"
            )
            for name, result in runs.items():
                three = f"mean {result.mean_ms:10.1f}  p99 {result.p99_ms:10.1f}  GB-s {result.gb_seconds:9.1f}"
                paths = f"cold {result.cold:5d}  warm {result.warm:5d}  hot {result.hot:6d}"
                print(f"    {name:11} {three}  {paths}  instances {result.instances_max}")
            sys.stdout.flush()
        found.append({"case": there.name, "wrong": wrong, "runs": {k: v.as_json() for k, v in runs.items()}})
    print(dict(counts))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
