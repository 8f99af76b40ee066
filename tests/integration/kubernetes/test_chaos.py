"""Anything at once: starts, stops, deaths, a bad API, lost events; when it is over, all is as it was asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.platforms.kubernetes import api, driver, mirror
from cloister.platforms.kubernetes.pods import INSTANCE
from cloister.platforms.port import Gone, Leaving, Ready
from cloister.testing.kubernetes import cluster as clusters
from cloister.testing.kubernetes.bench import Bench, Driver, run
from cloister.testing.kubernetes.kubelet import Kubelet
from cloister.testing.kubernetes.server import Fault, leave

OPERATIONS = 60
VERBS = {
    "kubernetes": (
        *(("patch", "deployments/scale"), ("patch", "pods")),
        *((verb, "pods") for verb in ("delete", "list", "watch")),
    ),
    "knative": tuple((verb, "services") for verb in ("create", "delete", "list", "watch")),
}
FAULTS: tuple[dict[str, Any], ...] = (
    {"cut": True},
    {"cut": True, "late": True},
    {"code": 409, "reason": "Conflict"},
    {"code": 429, "after": 1},
    {"code": 500},
    {"code": 410, "reason": "Expired"},
    {"slow_s": 0.2},
    {"body": b"nonsense"},
)


class Promptly(Kubelet):
    """Pods without processes: ready at once, and dead when they are told to be."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.dead: set[str] = set()

    async def _run(self, name: str, node: str) -> None:
        container = self._store.get("pods", name)["spec"]["containers"][0]
        self._status(name, podIP=f"127.0.0.{2 + self._count % 250}", phase="Running")
        self._container(name, container, {"running": {}}, 0, {})
        await asyncio.sleep(0.02)
        self._condition(name, "Ready", True)
        while "deletionTimestamp" not in self._store.get("pods", name)["metadata"]:
            if name in self.dead:
                self.dead.discard(name)
                self._condition(name, "Ready", False)
                self._container(name, container, {"terminated": {"exitCode": 1}}, 0, {})
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.05)
        self._store.remove("pods", name)


class Books:
    """What was asked, and what was told."""

    def __init__(self) -> None:
        self.wanted: set[str] = set()
        self.ready: set[str] = set()
        self.gone: set[str] = set()
        self.count = 0

    async def listen(self, d: Driver) -> None:
        while True:
            event = await d.next(3600)
            name = event.instance
            match event:
                case Ready():
                    assert name not in self.ready, f"{name} became ready twice"
                    assert name not in self.gone, f"{name} became ready after it was gone"
                    self.ready.add(name)
                case Leaving():
                    assert name in self.ready
                case Gone():
                    assert name not in self.gone, f"{name} went twice"
                    self.gone.add(name)
                    self.wanted.discard(name)


def objects(bench: Bench, kind: str) -> list[dict[str, Any]]:
    """What an instance is: its pod, or its Service."""
    return [one["metadata"] for one in bench.cluster.store.all_of("pods" if kind == "kubernetes" else "services")]


async def disturb(bench: Bench, d: Driver, books: Books, rng: np.random.Generator, kind: str) -> None:
    """One thing happens."""
    cluster = bench.cluster
    there = [pod["metadata"]["name"] for pod in cluster.pods() if "deletionTimestamp" not in pod["metadata"]]
    taken = [meta["name"] for meta in objects(bench, kind) if "deletionTimestamp" not in meta]
    match int(rng.integers(10)):
        case 0 | 1 | 2 | 3:
            books.count += 1
            name = f"i-{books.count}"
            books.wanted.add(name)
            await d.platform.start(name, "g")
        case 4 | 5:
            if books.wanted:
                name = sorted(books.wanted)[int(rng.integers(len(books.wanted)))]
                books.wanted.discard(name)
                await d.platform.stop(name)
        case 6:
            if there:
                cluster.kubelet.dead.add(there[int(rng.integers(len(there)))])  # type: ignore[attr-defined]
        case 7:
            if taken:
                name, plural = taken[int(rng.integers(len(taken)))], "pods" if kind == "kubernetes" else "services"
                cluster.store.change(plural, name, lambda one: leave(one, 30, cluster.store.now()))
                if rng.random() < 0.5:
                    cluster.api.lose(cluster.store.version)
        case 8:
            await cluster.api.down()
            if rng.random() < 0.5:
                cluster.store.compact()
            await asyncio.sleep(float(rng.random()) * 0.3)
            await cluster.api.up()
        case _:
            verb, resource = VERBS[kind][int(rng.integers(len(VERBS[kind])))]
            fault = FAULTS[int(rng.integers(len(FAULTS)))]
            if verb == "watch" and "late" in fault:
                return
            cluster.api.faults.append(Fault(verb, resource, times=1, **fault))
    await asyncio.sleep(float(rng.random()) * 0.08)


def settled(bench: Bench, books: Books, kind: str) -> bool:
    found = objects(bench, kind)
    labels = sorted((meta.get("labels") or {}).get(INSTANCE, "") for meta in found)
    return (
        books.wanted == books.ready - books.gone
        and labels == sorted(books.wanted)
        and bench.cluster.replicas("d") == (len(books.wanted) if kind == "kubernetes" else 0)
        and not any("deletionTimestamp" in meta for meta in found)
    )


@pytest.mark.parametrize(
    ("kind", "seed"),
    [*(("kubernetes", seed) for seed in (0, 1, 2, 3, 14, 22)), *(("knative", seed) for seed in (0, 115, 221))],
)
def test_whatever_happens_the_end_is_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int
) -> None:
    monkeypatch.setattr(clusters, "Kubelet", Promptly)
    monkeypatch.setattr(driver, "SPARE_S", 0.3)
    for module, name, seconds in ((api, "BACKOFF_S", 0.02), (mirror, "FIRST_WAIT_S", 0.05), (api, "SLACK_S", 0.5)):
        monkeypatch.setattr(module, name, seconds)

    async def body(bench: Bench) -> None:
        rng = np.random.default_rng(seed)
        if kind == "kubernetes":
            d = await bench.open(poll_s=1.0, stop_grace_s=1.0)
        else:
            d = await bench.open_knative("k", stop_grace_s=1.0, start_timeout_s=5.0)
        books = Books()
        listening = asyncio.ensure_future(books.listen(d))
        for _ in range(OPERATIONS):
            await disturb(bench, d, books, rng, kind)
            assert not listening.done(), listening.exception()
        for fault in bench.cluster.api.faults:
            fault.times = 0
        try:
            await bench.until(lambda: listening.done() or settled(bench, books, kind), 40)
        except TimeoutError:
            found = [(meta["name"], (meta.get("labels") or {}).get(INSTANCE)) for meta in objects(bench, kind)]
            told = books.wanted, books.ready - books.gone, found, bench.cluster.replicas("d")
            raise AssertionError(told) from None
        assert not listening.done(), listening.exception()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        assert {there.instance for there in await d.platform.running()} == books.wanted
        await d.platform.stop_all()
        assert not objects(bench, kind)
        assert bench.cluster.replicas("d") == 0
        assert not [event for event in bench.log.events if event[0] == "internal-error"]

    run(tmp_path, body)
