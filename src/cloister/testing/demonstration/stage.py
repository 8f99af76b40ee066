"""The stage of the demonstration: a local cloud, wiretaps where its network would be, and the people."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.client.client import Client
from cloister.client.identity import create_identity
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.wiretap import Wiretap

_SAMPLE: Final = re.compile(r"cloister_stage_seconds_(sum|count)\{([^}]*)\} ([0-9.e+-]+)")
_LABEL: Final = re.compile(r'(stage|path)="([^"]*)"')
_START: Final = re.compile(r"cloister_gateway_instance_start_seconds_(sum|count)(?:\{\})? ([0-9.e+-]+)")
LEASE_S: Final = 3  # short, so that nobody waits a minute to see a revocation bite
PEOPLE: Final = ("alice", "bob", "carol", "dave")


@dataclass(slots=True)
class Stage:
    """Everything that the acts need.

    :param keyservice_wire: between everybody and the KeyService; ``gateway_wire`` between users and the gateway.
    :param people: alice owns the models; bob uses them; carol has no grant; dave never consents.
    """

    folder: Path
    cloud: LocalCloud
    keyservice: str
    gateway: str
    keyservice_wire: Wiretap
    gateway_wire: Wiretap
    people: dict[str, Client]

    @property
    def alice(self) -> Client:
        """The owner."""
        return self.people["alice"]

    @property
    def bob(self) -> Client:
        """The user."""
        return self.people["bob"]

    def operator_view(self) -> dict[tuple[str, str], float]:
        """(stage, path) to mean milliseconds, as the operator's metrics have them: of the instances that run now."""
        http = HttpClient(SystemClock())
        sums: dict[tuple[str, str], float] = {}
        counts: dict[tuple[str, str], float] = {}
        try:
            for record in (self.cloud.folder / "gateway" / "instances").glob("*.json"):
                origin = f"unix:{json.loads(record.read_text())['socket']}"
                text = bytes(http.request("GET", origin, "/metrics").checked().body).decode()
                for kind, labels, value in _SAMPLE.findall(text):
                    found = dict(_LABEL.findall(labels))
                    total = sums if kind == "sum" else counts
                    key = (found["stage"], found["path"])
                    total[key] = total.get(key, 0.0) + float(value)
            text = bytes(http.request("GET", self.gateway, "/metrics").checked().body).decode()
        finally:
            http.close()
        means = {key: 1000 * value / counts[key] for key, value in sums.items() if counts.get(key)}
        starts = dict(_START.findall(text))
        if float(starts.get("count", 0)):
            until_ready = 1000 * float(starts["sum"]) / float(starts["count"])
            inside = means.get(("runtime_init", "cold"), 0.0)
            means["sandbox_start", "cold"] = max(0.0, until_ready - inside)
        return means

    def stop_instances(self) -> None:
        """As an operator would: end every runtime, and wait until it is gone."""
        records = list((self.cloud.folder / "gateway" / "instances").glob("*.json"))
        for record in records:
            with contextlib.suppress(OSError, ValueError, KeyError):
                os.kill(json.loads(record.read_text())["pid"], signal.SIGTERM)
        while any(record.exists() for record in records):
            time.sleep(0.01)


@contextlib.contextmanager
def raised(folder: Path) -> Iterator[Stage]:
    """Start everything in a folder; nothing is left running."""
    settings = {"lease_s": LEASE_S}
    cloud = LocalCloud(folder, packer="all-in-one", instances=1, keep_alive_s=120.0, keyservice_settings=settings)
    with ExitStack() as stack:
        stack.callback(cloud.stop)
        cloud.prepare()
        keyservice = cloud.start_keyservice()
        keyservice_wire = stack.enter_context(Wiretap.before(keyservice))
        gateway = cloud.start_gateway(keyservice_wire.address)
        gateway_wire = stack.enter_context(Wiretap.before(gateway))
        profile = cloud.write_profile(keyservice_wire.address, gateway_wire.address)
        people: dict[str, Client] = {}
        for name in PEOPLE:
            people[name] = Client(profile, create_identity(cloud.home, name))
            stack.callback(people[name].close)
            people[name].register()
        yield Stage(folder, cloud, keyservice, gateway, keyservice_wire, gateway_wire, people)
