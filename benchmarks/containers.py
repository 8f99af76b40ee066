"""A cold start by stage, in a container beside the local platform.

    make image && python benchmarks/containers.py [--models breast-cancer mobilenet-v1] [--rounds 7] [--json]

Both start the same runtime with the same options for the same user; one as the local platform's child process, one as a
container of the image on a private network, as deploy/compose and the tests run it. Each round starts one of each,
waits until it is ready, asks it once, reads its own stages, and ends it. Nothing is between user and runtime, so no
gateway's polling is in the figures. ``sandbox_start`` is what is left of the wait for readiness without runtime_init
and attest: the engine's or the platform's work, and up to 10 ms of asking. Medians; both share this machine's caches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cloister import Client
from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.base.errors import CloisterError
from cloister.client.identity import create_identity, load_identity
from cloister.client.profile import Profile, load_profile
from cloister.platforms.local import LocalPlatform
from cloister.platforms.port import Ready
from cloister.runtime.stages import Stage
from cloister.testing.containers import Engine
from cloister.testing.demonstration.serving import VISION
from cloister.testing.fleet_cloud import FleetCloud
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.models.patients import patient_model

STAGES = tuple(stage.value for stage in Stage)
SAMPLE = re.compile(r"cloister_stage_seconds_sum\{([^}]*)\} ([0-9.e+-]+)")
POLL_S = 0.01


def models(names: list[str]) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Name to ONNX bytes and one input."""
    found: dict[str, tuple[bytes, dict[str, Any]]] = {}
    image = np.random.Generator(np.random.PCG64(7)).random((1, 224, 224, 3), dtype=np.float32)
    for name in names:
        if name == "breast-cancer":
            patients = patient_model()
            found[name] = (patients.onnx, {"measurements": patients.test_inputs[:1]})
        else:
            found[name] = (VISION[name]().onnx, {"input": image})
    return found


@dataclass
class Place:
    """One way to start a runtime.

    :param start: a context manager that gives the address of one that is ready.
    """

    cloud: LocalCloud
    start: Callable[[], Any]
    taken: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def publish(self, offered: dict[str, tuple[bytes, dict[str, Any]]], folder: Path) -> None:
        """Alice offers every model, bob may ask."""
        for name in ("alice", "bob"):
            create_identity(self.cloud.home, name)
        policy = self.cloud.runtime_policy()
        with Client.open(self.cloud.home, "alice") as alice, Client.open(self.cloud.home, "bob") as bob:
            alice.register()
            bob.register()
            for name, (onnx, _) in offered.items():
                source = folder / f"{name}.onnx"
                source.write_bytes(onnx)
                packed = folder / f"{name}-{id(self)}"
                alice.pack(source, packed, name=name)
                alice.publish(packed)
                alice.grant(name, bob.account.identity.id, policy)
                bob.consent(alice.own_model(name), policy)

    def cold(self, name: str, feed: dict[str, Any]) -> None:
        """One cold start and its first request."""
        profile: Profile = load_profile(self.cloud.home)
        began = time.perf_counter()
        with self.start() as address:
            ready = time.perf_counter()
            with Client(replace(profile, gateway=address), load_identity(self.cloud.home, "bob")) as bob:
                bob.keys.key(bob.model_id(name))  # the user's own preparation is not the runtime's
                asked = time.perf_counter()
                bob.infer(name, feed)
                answered = time.perf_counter()
            took = stages(address)
        took["until ready"] = 1000 * (ready - began)
        took["first request"] = 1000 * (answered - asked)
        took["sandbox_start"] = max(0.0, took["until ready"] - took["runtime_init"] - took["attest"])
        self.taken.setdefault(name, []).append(took)


def stages(address: str) -> dict[str, float]:
    """Milliseconds of each stage, of an instance that answered one request."""
    http = HttpClient(SystemClock())
    try:
        text = bytes(http.request("GET", address, "/metrics").checked().body).decode()
    finally:
        http.close()
    found = dict.fromkeys(STAGES, 0.0)
    for labels, value in SAMPLE.findall(text):
        stage = re.search(r'stage="([^"]*)"', labels)
        assert stage is not None
        found[stage[1]] += 1000 * float(value)
    return found


@contextmanager
def as_process(cloud: LocalCloud, keyservice: str, folder: Path) -> Iterator[str]:
    """By the local platform, to readiness."""
    platform = LocalPlatform(folder, cloud.runtime_command(keyservice))
    with asyncio.Runner() as runner:

        async def begin() -> str:
            await platform.start("i-1", "bench")
            async for event in platform.events():
                assert isinstance(event, Ready), event
                return event.address
            raise AssertionError

        try:
            yield runner.run(begin())
        finally:
            runner.run(platform.stop_all())
            runner.run(platform.close())


@contextmanager
def as_container(cloud: FleetCloud) -> Iterator[str]:
    """By the engine, asked as often as the local platform asks."""
    container = cloud.start_runtime()
    http = HttpClient(SystemClock())
    try:
        while True:
            try:
                http.request("GET", container.address, "/readyz", deadline_s=2.0).checked()
                break
            except CloisterError:
                assert container.alive, container.output()[1]
                time.sleep(POLL_S)
        yield container.address
    finally:
        http.close()
        container.kill()


def measure(names: list[str], rounds: int, image: str) -> dict[str, Any]:
    """Everything."""
    engine = Engine.find(image)
    offered = models(names)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloister-bench-")))
        local = LocalCloud(folder / "local", instances=1)
        stack.callback(local.stop)
        local.prepare()
        keyservice = local.start_keyservice()
        local.write_profile(keyservice, keyservice)
        fleet = FleetCloud(folder / "containers", engine, image, image, runtimes=0)
        stack.callback(fleet.remove_network)
        stack.callback(fleet.stop)
        fleet.prepare()
        inside = fleet.start_keyservice()
        fleet.share_trust()
        fleet.write_profile(inside, inside)
        places = {
            "process": Place(local, lambda: as_process(local, keyservice, folder / "platform")),
            "container": Place(fleet, lambda: as_container(fleet)),
        }
        for place in places.values():
            place.publish(offered, folder)
        for turn in range(rounds + 1):  # the first of each warms the page cache, and is not counted
            for name, (_, feed) in offered.items():
                for place in places.values():
                    place.cold(name, feed)
                    if not turn:
                        place.taken.clear()
    rows = ("until ready", *STAGES, "first request")
    return {
        "engine": " ".join(engine.command),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "rounds": rounds,
        "milliseconds": {
            name: {
                kind: {row: round(statistics.median(one[row] for one in place.taken[name]), 2) for row in rows}
                for kind, place in places.items()
            }
            for name in offered
        },
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["breast-cancer", "mobilenet-v1"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--image", default="localhost/cloister:test")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.models, args.rounds, args.image)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['engine']}, {found['cores']} cores, load {found['load']}, medians of {found['rounds']}, ms")
    for name, kinds in found["milliseconds"].items():
        print(f"\n{name:<18}{'process':>10}{'container':>11}")
        for row in kinds["process"]:
            print(f"{row:<18}{kinds['process'][row]:>10.1f}{kinds['container'][row]:>11.1f}")


if __name__ == "__main__":
    main()
