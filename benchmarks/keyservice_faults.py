"""Three replicas of a KeyService under load, each killed in turn: what callers notice, and what is lost.

    python benchmarks/keyservice_faults.py [--seconds 10] [--rounds 1] [--pairs 2] [--pause] [--postgres] [--plot FILE]

Three replicas and three witnesses are processes on this machine, asked over HTTP. For each pair of owner and user four
people grant, revoke and consent, and two runtimes ask for keys, one call after the other, each waiting for its answer.
Every ``--seconds`` one replica is killed (kill -9), whoever leads; as long after, it is started again. With
``--pause`` it is stopped (SIGSTOP) instead, and goes on. With ``--postgres`` all three keep their records in one server
of PostgreSQL, which is killed and started again in the end, and then restarted in order. At last every acknowledgement
is looked for in the log, and the history of all calls is checked to be linearizable.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from cloister.adapters.http.blocking import HttpClient
from cloister.attest.bundle import open_bundle
from cloister.testing.people import Person, simulation_policy
from cloister.testing.permission_links import LinkCaller, OverHttp
from cloister.testing.permissions import Denied, Granted, Released, Revoked, Storm
from cloister.testing.postgres import PostgresServer
from cloister.testing.replica_processes import ReplicaProcesses

WITHIN_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
Calls = list[tuple[float, float, bool]]
Faults = list[dict[str, Any]]


def storm(world: ReplicaProcesses, client: HttpClient, pairs: int) -> tuple[Storm, LinkCaller]:
    bundle = open_bundle(world.bundle.read_bytes(), world.bundle_key.public_key, 1, world.clock.now())
    addresses = ",".join(replica.address for replica in world.replicas)
    tee = world.runtime

    def connect() -> LinkCaller:
        return LinkCaller(OverHttp(client, lambda: addresses), bundle=bundle, clock=world.clock, tee=tee)

    people = [Person(world.root.id, world.clock) for _ in range(4 * pairs)]
    policies = [simulation_policy(tee.measurement).encode()]
    policies += [simulation_policy(tee.measurement, maximum_age_s=36_000 + more).encode() for more in range(2)]
    return Storm(people, connect, policies, pairs=pairs, reads=False), connect()


def silences(calls: Calls, faults: Faults, end: float) -> None:
    """Adds to each fault how long nobody had an answer while it lasted, and how many calls came to nothing."""
    answered = sorted(returned for _, returned, good in calls if good)
    for number, fault in enumerate(faults):
        until = faults[number + 1]["at"] if number + 1 < len(faults) else end
        inside = [fault["at"], *(when for when in answered if fault["at"] <= when < until), until]
        fault["silent_s"] = round(max(after - before for before, after in pairwise(inside)), 2)
        fault["failed"] = sum(not good for called, returned, good in calls if called < until and returned > fault["at"])


class Scene:
    """Three replicas, the load on them, and what was done to them, with the time."""

    def __init__(self, world: ReplicaProcesses, seconds: float) -> None:
        self.world = world
        self.seconds = seconds
        self.faults: Faults = []

    def does(self, what: str, act: Callable[[], object]) -> None:
        """One fault, or its end, and time for it to be felt."""
        self.faults.append({"what": what, "at": time.monotonic()})
        act()
        time.sleep(self.seconds)

    def kill(self, number: int) -> None:
        led = self.world.role(number)["role"] == "leader"
        self.does(f"{'leader' if led else 'follower'} killed", self.world.replicas[number].kill)
        self.does("started again", lambda: self.world.start(number))

    def pause(self, number: int) -> None:
        led = self.world.role(number)["role"] == "leader"
        process = self.world.replicas[number].process
        assert process is not None
        pid = process.pid
        self.does(f"{'leader' if led else 'follower'} stopped", lambda: os.kill(pid, signal.SIGSTOP))
        self.does("goes on", lambda: os.kill(pid, signal.SIGCONT))

    def database(self, server: PostgresServer) -> None:
        self.does("database killed", server.kill)
        self.does("started again", server.start)
        self.does("database restarted", server.restart)


def measured(seconds: float, rounds: int, pairs: int, *, pause: bool, postgres: bool) -> tuple[Any, Calls, Faults]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        server = stack.enter_context(PostgresServer()) if postgres else None
        stores = [server.url(f"replica{number}") for number in range(3)] if server else ()
        world = ReplicaProcesses(Path(folder), stores=stores)
        client = HttpClient(world.clock)
        try:
            world.start_all()
            load, link = storm(world, client, pairs)
            load.begin()
            began = time.monotonic()
            time.sleep(seconds)
            scene = Scene(world, seconds)
            for number in [*range(3)] * rounds:
                (scene.pause if pause else scene.kill)(number)
            if server is not None:
                scene.database(server)
            end = time.monotonic()
            history = load.end()
            world.leader()
            lost, repeated = load.lost_and_repeated(link)
            operations = history.check(without=(Denied,))
        finally:
            client.close()
            world.close()
    faults = scene.faults
    calls = [call for call in history.calls if call[0] >= began]
    silences(calls, faults, end)
    good = [returned - called for called, returned, answered in calls if answered]
    found = {
        "seconds": round(end - began),
        "calls": len(calls),
        "acknowledged": history.count(Granted, Revoked),
        "released": history.count(Released),
        "answered_percent": round(100 * len(good) / len(calls), 3),
        "within_percent": {
            str(limit): round(100 * sum(took <= limit for took in good) / len(calls), 3) for limit in WITHIN_S
        },
        "longest_silence_s": max(fault["silent_s"] for fault in faults),
        "acknowledged_statements_lost": lost,
        "statements_twice": repeated,
        "operations_checked_linearizable": operations,
        "errors": dict(history.errors),
        "load_average": os.getloadavg()[0],
    }
    for fault in faults:
        fault["at"] = round(fault["at"] - began, 1)
    return found, [(called - began, returned - began, good) for called, returned, good in calls], faults


def plot(calls: Calls, faults: Faults, where: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "cloister"
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5), sharex=True)
    end = max(returned for _, returned, _ in calls)
    above.hist([returned for _, returned, good in calls if good], bins=int(end * 2), range=(0, end), color="#4477aa")
    above.set_ylabel("answers in half a second")
    good = [(returned, returned - called) for called, returned, answered in calls if answered]
    bad = [(returned, returned - called) for called, returned, answered in calls if not answered]
    below.scatter(*zip(*good, strict=True), s=3, color="#4477aa", label="answered")
    if bad:
        below.scatter(*zip(*bad, strict=True), s=9, color="#cc3311", marker="x", label="came to nothing")
    below.set_yscale("log")
    below.set_ylabel("took, seconds")
    below.set_xlabel("seconds")
    below.legend(loc="upper left", fontsize=8)
    for fault in faults:
        down = any(word in fault["what"] for word in ("killed", "stopped", "restarted"))
        for axes in (above, below):
            axes.axvline(fault["at"], color="#cc3311" if down else "#228833", linewidth=0.8, linestyle="--")
        above.text(
            fault["at"], above.get_ylim()[1], f" {fault['what']}", rotation=30, fontsize=7, ha="left", va="bottom"
        )
    above.spines[["top", "right"]].set_visible(False)
    below.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(where, metadata={"Date": None} if where.suffix == ".svg" else None, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--pause", action="store_true")
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    found, calls, faults = measured(
        options.seconds, options.rounds, options.pairs, pause=options.pause, postgres=options.postgres
    )
    print(json.dumps(found, indent=2))
    print(f"{'at s':>6} {'what':18} {'silent s':>9} {'calls failed':>13}")
    for fault in faults:
        print(f"{fault['at']:6} {fault['what']:18} {fault['silent_s']:9} {fault['failed']:13}")
    if options.plot:
        plot(calls, faults, options.plot)


if __name__ == "__main__":
    main()
